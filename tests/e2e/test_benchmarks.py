"""The benchmarks run and end by themselves. What they measure is not judged here."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import engines, load, resume, step_cache, train_step
from benchmarks.process import fresh
from benchmarks.task import Measured, step_seconds

pytestmark = pytest.mark.usefixtures("unmeasured_children")


@pytest.mark.slow
def test_train_step_measures_both_loops_on_the_same_adapter(tmp_path, capsys):
    train_step.main(["--steps", "6", "--rounds", "1", "--json", str(tmp_path / "result.json")])
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    (pair,) = result["rounds"]
    assert pair["ours"]["parameters"] == pair["textbook"]["parameters"]
    assert [len(pair[loop]["seconds"]) for loop in train_step.LOOPS] == [1, 1]
    printed = capsys.readouterr().out
    assert "peak MiB" in printed
    assert "ours by textbook" in printed


@pytest.mark.slow
def test_resume_tells_what_a_start_with_and_without_a_checkpoint_takes(tmp_path, capsys):
    resume.main(["--rounds", "1", "--json", str(tmp_path / "result.json")])
    (pair,) = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["rounds"]
    for start in resume.STARTS:
        assert tuple(pair[start]) == resume.PARTS
        assert all(seconds >= 0 for seconds in pair[start].values())
    assert "in all" in capsys.readouterr().out


@pytest.mark.slow
def test_engines_without_ai_toolkit_measures_ours_and_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ISENGARD_AI_TOOLKIT", str(tmp_path / "nothing"))
    engines.main(["--steps", "6", "--rounds", "1", "--json", str(tmp_path / "result.json")])
    rows = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["engine"], row["batch_size"]) for row in rows] == [("native", 8), ("native", 1)]
    assert [len(row["rounds"][0]["seconds"]) for row in rows] == [1, 1]
    assert "run: python -m isengard ai-toolkit install" in capsys.readouterr().out


@pytest.mark.aitoolkit
@pytest.mark.slow
def test_engines_measures_both_on_the_same_training(tmp_path, capsys):
    engines.main(["--steps", "6", "--rounds", "1", "--json", str(tmp_path / "result.json")])
    rows = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["rows"]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert (ours["engine"], theirs["engine"]) == ("native", "ai-toolkit")
        assert ours["batch_size"] == theirs["batch_size"]
        losses = [row["rounds"][0]["validation_loss"] for row in (ours, theirs)]
        assert losses[0] == pytest.approx(
            losses[1], rel=0.2
        )  # six steps in: the same base model, the same set
    assert "loss of AI-Toolkit by native" in capsys.readouterr().out


def test_engines_tells_the_speed_and_how_far_the_losses_are_apart():
    ours, theirs = (
        engines.Row(
            engine=engine,
            batch_size=8,
            rounds=[
                engines.Trained(
                    seconds=(seconds,),
                    process_bytes=2**30,
                    device_bytes=device_bytes,
                    validation_loss=loss,
                    device="a GPU",
                )
            ],
        )
        for engine, seconds, loss, device_bytes in (
            ("native", 0.5, 0.2, 2**20),
            ("ai-toolkit", 0.6, 0.21, 3 * 2**20),
        )
    )
    table = engines.table([ours, theirs], title="both")
    for cell in ("0.5000", "2.00", "1024", "GPU MiB", "+5.0%"):
        assert cell in table


@pytest.mark.parametrize("arguments", [["--steps", "5"], ["--rounds", "0"]])
def test_engines_refuses_what_it_cannot_measure(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        engines.main(arguments)
    assert "must be" in capsys.readouterr().err


def test_seconds_per_step_leave_out_the_warm_up():
    marks = [0, 10, 20, 30, 40, 50, 51, 53]
    assert step_seconds(marks) == (1, 2)


def test_a_rounds_ratio_is_above_one_when_ours_is_faster():
    ours, textbook = (Measured(seconds=(s,), peak_bytes=2**20, parameters=1) for s in (0.5, 0.6))
    one = train_step.Round(ours=ours, textbook=textbook)
    assert one.ratio == pytest.approx(1.2)
    assert "0.5000" in train_step.table([one], title="round")


@pytest.mark.parametrize("arguments", [["--steps", "5"], ["--rounds", "0"]])
def test_train_step_refuses_what_it_cannot_measure(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_step.main(arguments)
    assert "must be" in capsys.readouterr().err


def test_resume_refuses_no_rounds(capsys):
    with pytest.raises(SystemExit, match="2"):
        resume.main(["--rounds", "0"])
    assert "--rounds must be 1 or more, got 0" in capsys.readouterr().err


def test_a_failing_process_ends_the_benchmark_with_its_output(tmp_path: Path):
    with pytest.raises(
        SystemExit, match=r"benchmarks.train_step --only nothing ended with 2:(.|\n)*invalid choice"
    ):
        fresh("benchmarks.train_step", ["--only", "nothing"])


def test_the_step_cache_is_compared_with_exact_images(capsys):
    step_cache.main(["--steps", "4", "--count", "1"])
    assert "first_block beside exact, per picture" in capsys.readouterr().out


@pytest.mark.slow
def test_the_load_is_put_on_a_page_beside_a_real_training(capsys):
    load.main(["--browsers", "1", "--clients", "1", "--every", "0.1", "--seconds", "1", "--warm-up", "1"])
    printed = capsys.readouterr().out
    for row in ("page", "state", "tab", "a program's call", "steps/s", "processors: worker"):
        assert row in printed
    assert re.search(r"failed +│ 0 ", printed)
