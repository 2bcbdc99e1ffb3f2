import json
import os
import time

import pytest
import torch

from isengard.domain.training import TrainingImage
from isengard.engines.native.cache import TensorCache, fingerprint
from isengard.engines.native.checkpoint import Checkpoints, Metrics, Reason, read_metrics
from isengard.engines.native.dataset import HOLD_OUT_FROM, held_out
from isengard.errors import LeaseLost


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path)


def write(checkpoints, *steps, reason=Reason.SCHEDULED):
    for step in steps:
        checkpoints.write(
            step,
            state={"weights": torch.full((2,), float(step))},
            about={"reason": reason},
            extra=lambda folder: (folder / "lora.safetensors").write_bytes(b"lora"),
        )


def test_the_newest_checkpoint_is_chosen_by_step_and_not_by_file_time(checkpoints):
    write(checkpoints, 300, 20, 100)
    step, state = checkpoints.newest()
    assert (step, state["weights"].tolist()) == (300, [300.0, 300.0])


def test_a_new_run_has_none(checkpoints):
    assert checkpoints.newest() is None
    assert checkpoints.steps() == []


def test_a_cached_tensor_that_is_used_again_after_days_is_marked_as_used(tmp_path):
    cache, tensors = TensorCache(tmp_path), {"x": torch.ones(2)}
    cache.get({"text": "a"}, lambda: tensors)
    (file,) = tmp_path.rglob("*.safetensors")
    for age_days, marked in ((0.5, False), (9, True)):
        then = time.time() - age_days * 86_400
        os.utime(file, (then, then))
        assert cache.get({"text": "a"}, dict)["x"].tolist() == [1, 1]
        assert (file.stat().st_mtime > then + 1) is marked


def test_half_written_checkpoints_are_swept_and_never_chosen(checkpoints, tmp_path):
    write(checkpoints, 10)
    (tmp_path / "checkpoints" / "step-00000020.partial-12345678").mkdir()
    assert checkpoints.newest()[0] == 10
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_changed_byte_is_noticed_and_the_one_before_is_taken(checkpoints, caplog):
    write(checkpoints, 10, 20)
    state = checkpoints.path(20) / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    assert checkpoints.newest()[0] == 10
    assert "checkpoint damaged" in caplog.text


def test_a_checkpoint_without_its_facts_is_not_trusted(checkpoints):
    write(checkpoints, 10, 20)
    (checkpoints.path(20) / "about.json").write_text("{")
    assert checkpoints.newest()[0] == 10


def test_an_error_while_writing_leaves_nothing(checkpoints, tmp_path):
    def broken(_folder):
        raise RuntimeError("no LoRA today")

    with pytest.raises(RuntimeError):
        checkpoints.write(10, state={}, about={}, extra=broken)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_without_a_limit_all_scheduled_checkpoints_stay(checkpoints):
    write(checkpoints, 10, 20, 30)
    checkpoints.retain(keep=0, best=10)
    assert checkpoints.steps() == [10, 20, 30]


def test_retention_keeps_the_newest_the_best_the_pinned_and_the_requested(checkpoints):
    write(checkpoints, 10, 20, 30, 50, 60)
    write(checkpoints, 40, reason=Reason.REQUESTED)
    (checkpoints.path(20) / "pinned").touch()
    checkpoints.retain(keep=1, best=10)
    assert checkpoints.steps() == [10, 20, 40, 60]


def test_a_checkpoint_of_a_stop_goes_when_a_newer_one_is_there(checkpoints):
    write(checkpoints, 10)
    write(checkpoints, 15, reason=Reason.STOPPED)
    checkpoints.retain(keep=0, best=None)
    assert checkpoints.steps() == [10, 15]
    write(checkpoints, 20)
    checkpoints.retain(keep=0, best=None)
    assert checkpoints.steps() == [10, 20]


def test_metrics_are_rewound_to_the_checkpoint_and_a_torn_line_is_dropped(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo'
    )
    metrics = Metrics(tmp_path)
    metrics.rewind(2)
    assert "metrics line cut short" in caplog.text
    metrics.add(step=3, loss=1.5)
    assert len(read_metrics(path)) == 2
    metrics.flush()
    metrics.flush()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 1.5},
    ]


def test_metrics_that_another_worker_has_begun_anew_are_left_to_it(tmp_path):
    stopped, next_owner = Metrics(tmp_path), Metrics(tmp_path)
    stopped.rewind(0)
    stopped.add(step=1, loss=1.0)
    next_owner.rewind(0)
    with pytest.raises(LeaseLost, match="begun anew"):
        stopped.flush()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def images(tmp_path, count):
    return [
        TrainingImage(path=tmp_path / f"{n}.png", sha256=f"{n:064x}", width=64, height=64, caption="x")
        for n in range(count)
    ]


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (7, 0), (8, 1), (12, 2), (24, 4), (100, 4)])
def test_images_are_held_out_when_there_are_enough(tmp_path, count, expected):
    assert HOLD_OUT_FROM == 8
    assert len(held_out(images(tmp_path, count))) == expected


def test_the_held_out_images_do_not_depend_on_the_order(tmp_path):
    some = images(tmp_path, 12)
    assert held_out(some) == held_out(some[::-1])


def test_the_cache_computes_once_and_again_for_another_key(tmp_path):
    cache, calls = TensorCache(tmp_path), []

    def compute():
        calls.append(1)
        return {"x": torch.arange(6).view(2, 3).t()}

    for key in ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2}):
        assert torch.equal(cache.get(key, compute)["x"], torch.arange(6).view(2, 3).t())
    assert len(calls) == 2


def test_a_fingerprint_changes_with_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"a" * 200_000)
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"a" * 199_999 + b"b")
    assert fingerprint(tmp_path) != before
