"""The benchmark for a GPU, tried out on the CPU with a transformer of two blocks. What it measures is not judged here."""

import subprocess
import sys

import pytest

from benchmarks import gpu
from benchmarks.gpu_cases import CASES, GENERATE, TRAIN, Case, Measured, Result, floor_flops
from benchmarks.random_flux import Shape
from isengard.settings import ROOT

pytestmark = pytest.mark.usefixtures("unmeasured_children")

TINY = ["--layers", "1", "1", "--heads", "1", "--sides", "64", "--image-side", "64", "--steps", "2"]
#: Half as much to compile.
ONE_BLOCK = ["--layers", "0", "1"]
#: What a machine that has CUDA, torch, transformers, peft and accelerate may well lack.
ABSENT = ("gradio", "torchao", "bitsandbytes", "pi_heif", "prodigyopt", "typer", "flash_attn")


@pytest.mark.slow
def test_cases_are_measured_once_and_go_into_the_file_and_the_documentation(tmp_path, capsys):
    file = tmp_path / "results" / "card.json"
    arguments = [*TINY, "--results", str(file)]
    gpu.main([*arguments, "--cases", "train:bf16"])
    assert "nothing is left" in capsys.readouterr().out
    found = gpu.Results.model_validate_json(file.read_text(encoding="utf-8"))
    assert [result.case.key for result in found.results] == ["train:bf16"]
    assert all(row.seconds > 0 for result in found.results for row in result.rows)
    gpu.main([*arguments, "--cases", "train:bf16", "--minutes", "0"])
    assert file.read_text(encoding="utf-8") == found.model_dump_json(indent=1)
    assert "| train | bf16 | 64 |" in gpu.markdown(found)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["train:fp8_matmul + compile", "generate:blocks offloaded"])
def test_it_needs_no_package_that_a_bare_gpu_machine_may_lack(case):
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT}));"
        f"from benchmarks import gpu; gpu.main({[*TINY, *ONE_BLOCK, '--only', case]})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    result = Result.model_validate_json(done.stdout.splitlines()[-1])
    assert (len(result.rows), result.refused) == (1, "")


@pytest.mark.aitoolkit
@pytest.mark.slow
def test_ai_toolkit_is_measured_where_it_is(capsys):
    gpu.main([*TINY, "--only", "train:AI-Toolkit, its defaults"])
    result = Result.model_validate_json(capsys.readouterr().out.splitlines()[-1])
    assert (len(result.rows), result.refused) == (1, "")


def test_a_setting_that_this_machine_lacks_is_a_row_without_numbers(capsys):
    gpu.main([*TINY, "--only", "train:flash_3 + compile"])
    result = Result.model_validate_json(capsys.readouterr().out.splitlines()[-1])
    assert not result.rows
    assert "flash_3" in result.refused
    assert f"none: {result.refused}" in gpu.cells(results(result))[0]


def results(*found):
    return gpu.Results(
        device="Card",
        torch="2",
        diffusers="0",
        date="2026-01-01",
        shape=Shape(),
        matmul_tflops=800,
        results=found,
    )


def test_the_floor_is_the_one_that_was_counted_for_flux_dev():
    step, image = Case(kind=TRAIN, name="x"), Case(kind=GENERATE, name="x")
    assert floor_flops(step, 512, Shape()) == pytest.approx(43e12, rel=0.02)
    assert floor_flops(step, 1024, Shape()) == pytest.approx(155e12, rel=0.05)
    assert floor_flops(image, 1024, Shape()) / 28 == pytest.approx(74e12, rel=0.02)


def test_the_table_says_which_share_of_the_cards_rate_was_reached():
    step = Result(
        case=Case(kind=TRAIN, name="ours"),
        rows=(Measured(side=512, seconds=0.108, peak_bytes=2**30, first_s=9),),
    )
    image = Result(
        case=Case(kind=GENERATE, name="ours"),
        rows=(Measured(side=1024, seconds=3, peak_bytes=2**30, first_s=9, swap_s=0.25),),
    )
    train, generate = gpu.cells(results(step, image))
    assert train == ["train", "ours", "512", "0.108", "", "50%", "1.0", "9", ""]
    assert generate == ["generate", "ours", "1024", "3.000", "20.0", "87%", "1.0", "9", "0.25"]


def test_the_documentation_has_a_place_for_the_table():
    text = gpu.DOCS.read_text(encoding="utf-8")
    once = gpu.with_table(text, "| new |")
    assert "| new |" in once
    assert gpu.with_table(once, "| newer |").count("| new") == 1
    with pytest.raises(SystemExit, match="has no place for the table"):
        gpu.with_table("nothing", "| new |")


def test_every_case_has_a_name_of_its_own():
    keys = [case.key for case in CASES]
    assert len(set(keys)) == len(keys)


@pytest.mark.skipif(gpu.has_gpu(), reason="here it would run")
def test_the_full_size_is_not_tried_without_a_gpu(capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "has no CUDA device" in capsys.readouterr().err
