import json
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.model import Family
from isengard.domain.performance import Quantization
from isengard.domain.training import Optimizer, Precision, TimestepSampling, TrainingSpec
from isengard.engines.lora_format import read_spec
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.errors import (
    DiskFull,
    InvalidSpec,
    JobCancelled,
    JobPaused,
    JobYielded,
    LeaseLost,
    OutOfMemory,
    TrainingFailed,
)
from tests.pictures import picture

CPU = torch.device("cpu")


class Reports:
    """A ``report`` that remembers everything and raises or asks at chosen moments."""

    def __init__(self):
        self.seen: list[Progress] = []
        self.raises: dict = {}
        self.asks: dict = {}

    def at(self, phase, step=None, *, do):
        (self.raises if isinstance(do, BaseException) else self.asks)[(phase, step)] = do
        return self

    def __call__(self, progress):
        self.seen.append(progress)
        for key in ((progress.phase, None), (progress.phase, progress.step)):
            if key in self.raises:
                raise self.raises.pop(key)
            if key in self.asks:
                return self.asks.pop(key)
        return Requests()

    @property
    def phases(self):
        return list(dict.fromkeys(progress.phase for progress in self.seen))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(tiny_model, training_images, training_spec, tmp_path, shared_cache):
    """Train in a folder of the given name; every default can be replaced."""

    def run(name="run", *, report=None, spec=training_spec, images=training_images, cache=shared_cache):
        return trained_in(tmp_path / name, tiny_model, spec, images, cache, report or Reports())

    return run


def trained_in(run_dir, model, spec, images, cache, report):
    run_dir.mkdir(exist_ok=True)
    return NativeTrainer(adapters={Family.FLUX: FluxAdapter}, device=CPU).train(
        spec=spec, model=model, images=images, run_dir=run_dir, cache_dir=cache, report=report
    )


@pytest.fixture(scope="session")
def undisturbed(tiny_model, training_spec, tmp_path_factory, shared_cache):
    """What a training gives that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    images = [picture(folder / f"{number}.png", number) for number in range(9)]
    trained = trained_in(folder / "run", tiny_model, training_spec, images, shared_cache, Reports())
    return {
        "weights": weights(trained),
        "metrics": (folder / "run" / "metrics.jsonl").read_text(),
        "sample": (folder / "run" / "samples" / "00000006-0.png").read_bytes(),
    }


def weights(trained):
    return load_file(trained.path)


def changed(spec, changes):
    return TrainingSpec.model_validate({**spec.model_dump(), **changes})


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def metrics(tmp_path, name="run"):
    return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


def test_a_training_reports_its_phases_and_leaves_checkpoints_samples_and_metrics(train, tmp_path):
    reports = Reports()
    trained = train(report=reports)
    assert reports.phases == [
        Phase.LOADING, Phase.CACHING, Phase.TRAINING, Phase.VALIDATING, Phase.SAMPLING, Phase.SAVING,
    ]  # fmt: skip
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000002", "step-00000004", "step-00000006",
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        "00000000-0.png", "00000003-0.png", "00000006-0.png",
    ]  # fmt: skip
    with Image.open(run / "samples" / "00000006-0.png") as sample:
        assert sample.size == (64, 64)
    assert trained.path == run / "checkpoints" / "step-00000006" / "lora.safetensors"
    assert [row["step"] for row in metrics(tmp_path) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in trained.validation_losses] == [0, 2, 3, 4, 6]
    last = [progress for progress in reports.seen if progress.phase is Phase.TRAINING][-1]
    assert (last.step, last.total) == (6, 6)
    assert None not in (last.loss, last.validation_loss, last.steps_per_s, last.memory_bytes)


def test_the_loss_falls_on_the_validation_set(train, training_spec):
    spec = changed(
        training_spec,
        {"steps": 40, "learning_rate": 2e-2, "save_every": 40, "sample_every": 0, "ema_decay": 0.0},
    )
    losses = dict(train(spec=spec).validation_losses)
    assert losses[40] < 0.97 * losses[0]


def test_frozen_weights_stay_equal_bit_for_bit(train, tiny_model, monkeypatch):
    kept = []
    load = FluxAdapter.load_denoiser
    monkeypatch.setattr(
        FluxAdapter, "load_denoiser", lambda self, **options: kept.append(load(self, **options)) or kept[0]
    )
    train()
    after = {name.replace(".base_layer", ""): value for name, value in kept[0].state_dict().items()}
    before = load_file(tiny_model.path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_spec_gives_the_same_weights_and_another_seed_others(train, training_spec, undisturbed):
    assert same(weights(train()), undisturbed["weights"])
    other = train("other", spec=changed(training_spec, {"seed": 1}))
    assert not same(weights(other), undisturbed["weights"])


@pytest.mark.parametrize(
    ("phase", "step", "stop"),
    [
        (Phase.LOADING, None, JobCancelled),
        (Phase.CACHING, 3, JobPaused),
        (Phase.TRAINING, 0, JobYielded),
        (Phase.TRAINING, 1, JobCancelled),
        (Phase.TRAINING, 5, JobPaused),
        (Phase.VALIDATING, 1, JobYielded),
        (Phase.SAVING, 4, JobCancelled),
        (Phase.SAMPLING, 1, JobPaused),
        (Phase.TRAINING, 6, JobYielded),
    ],
)
def test_a_stop_in_any_phase_is_obeyed_at_once_and_costs_nothing(
    train, tmp_path, undisturbed, phase, step, stop
):
    reports = Reports().at(phase, step, do=stop())
    with pytest.raises(stop):
        train(report=reports)
    assert reports.seen[-1].phase is phase
    trained = train()
    assert same(weights(trained), undisturbed["weights"])
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == undisturbed["metrics"]
    assert not list(tmp_path.rglob("*.partial-*"))


def test_a_stop_between_two_forward_passes_of_a_step_costs_nothing(train, training_spec):
    spec = changed(training_spec, {"gradient_accumulation_steps": 3})
    straight = weights(train("straight", spec=spec))

    class StopMidStep(Reports):
        def __call__(self, progress):
            super().__call__(progress)
            if [seen.step for seen in self.seen if seen.phase is Phase.TRAINING].count(4) == 2:
                raise JobYielded
            return Requests()

    with pytest.raises(JobYielded):
        train(spec=spec, report=StopMidStep())
    assert same(weights(train(spec=spec)), straight)


def test_after_a_stop_the_samples_are_made_that_were_due(train, tmp_path, undisturbed):
    with pytest.raises(JobYielded):
        train(report=Reports().at(Phase.SAMPLING, 2, do=JobYielded()))
    train()
    assert (tmp_path / "run" / "samples" / "00000000-0.png").exists()
    assert (tmp_path / "run" / "samples" / "00000006-0.png").read_bytes() == undisturbed["sample"]


def test_a_worker_that_lost_its_lease_writes_nothing_more(train, tmp_path):
    with pytest.raises(LeaseLost):
        train(report=Reports().at(Phase.TRAINING, 5, do=LeaseLost()))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
    assert max(row["step"] for row in metrics(tmp_path)) == 4


def test_a_finished_training_started_again_only_returns_what_it_has(train, undisturbed):
    train()
    reports = Reports()
    assert same(weights(train(report=reports)), undisturbed["weights"])
    assert {progress.step for progress in reports.seen if progress.phase is Phase.TRAINING} == {6}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(train, tmp_path, undisturbed, caplog):
    with pytest.raises(JobYielded):
        train(report=Reports().at(Phase.TRAINING, 5, do=JobYielded()))
    (tmp_path / "run" / "checkpoints" / "step-00000005" / "state.pt").write_bytes(b"half a file")
    assert same(weights(train()), undisturbed["weights"])
    assert "checkpoint damaged" in caplog.text


def test_checkpoints_of_stops_go_when_a_newer_one_is_there(train, tmp_path):
    with pytest.raises(JobYielded):
        train(report=Reports().at(Phase.TRAINING, 3, do=JobYielded()))
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").exists()
    train()
    assert not (tmp_path / "run" / "checkpoints" / "step-00000003").exists()


def test_save_now_and_sample_now_act_at_the_next_step(train, tmp_path):
    train(report=Reports().at(Phase.TRAINING, 1, do=Requests(save=True, sample=True)))
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "lora.safetensors").exists()
    assert (tmp_path / "run" / "samples" / "00000001-0.png").exists()


def test_a_training_that_is_asked_to_finish_ends_at_that_step_as_if_it_were_the_last(train, tmp_path):
    trained = train(report=Reports().at(Phase.TRAINING, 3, do=Requests(finish=True)))
    assert (trained.steps, trained.path.parent.name) == (3, "step-00000003")
    assert trained.path.is_file()


def test_a_run_may_go_on_with_more_steps_and_another_learning_rate(train, training_spec, tmp_path):
    train()
    spec = changed(training_spec, {"steps": 8, "learning_rate": 1e-3, "lr_scheduler": "constant"})
    with pytest.raises(InvalidSpec, match="lr_scheduler cannot change"):
        train(spec=spec)
    spec = changed(training_spec, {"steps": 8, "learning_rate": 1e-3})
    assert train(spec=spec).steps == 8
    rates = {row["step"]: row["lr"] for row in metrics(tmp_path) if "lr" in row}
    assert 0 < rates[7] < 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": Optimizer.PRODIGY, "learning_rate": 1.0, "lr_warmup_steps": 0},
        {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
        {"precision": Precision.BF16, "loss_weighting": "cosmap", "timestep_sampling": TimestepSampling.SHIFTED},
        {"flip": True, "ema_decay": 0.0, "timestep_sampling": TimestepSampling.UNIFORM, "max_grad_norm": 0},
        {"quantization": Quantization.INT8, "targets": "attention"},
        {"quantization": Quantization.FP8, "targets": r".*\.proj_mlp", "loss_weighting": "sigma_sqrt"},
        {"quantization": Quantization.NF4, "streamed_blocks": 2, "gradient_checkpointing": True},
        {"optimizer": Optimizer.ADAMW_8BIT, "rank": 128, "text_encoders": "int8"},
        {"resolutions": (64, 80), "targets": "attention_mlp", "max_upscale": 2},
    ],
)  # fmt: skip
def test_every_setting_trains_and_resumes_exactly(train, training_spec, changes):
    spec = changed(
        training_spec,
        {"steps": 4, "sample_every": 0, "validate_every": 0, "lr_scheduler": "constant", **changes},
    )
    straight = weights(train("straight", spec=spec))
    with pytest.raises(JobYielded):
        train(spec=spec, report=Reports().at(Phase.TRAINING, 3, do=JobYielded()))
    assert same(weights(train(spec=spec)), straight)
    assert any(value.abs().max() > 0 for key, value in straight.items() if "lora_B" in key)


def test_the_file_says_alpha_equals_rank_and_holds_the_spec(train, training_spec):
    trained = train()
    assert read_spec(trained.path) == training_spec
    state = torch.load(trained.path.parent / "state.pt", weights_only=True)
    key = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    assert key in weights(trained)
    assert state["random"] == {"seed": 0, "step": 6}


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint(
    train, tmp_path, monkeypatch, undisturbed
):
    predict, calls = FluxAdapter.predict, []

    def diverging(*args, **kwargs):
        calls.append(None)
        return predict(*args, **kwargs) * (float("nan") if torch.is_grad_enabled() and len(calls) > 10 else 1)

    monkeypatch.setattr(FluxAdapter, "predict", diverging)
    with pytest.raises(TrainingFailed, match=r"no longer a number at step \d .* resume from it with a lower"):
        train()
    monkeypatch.undo()
    assert same(weights(train()), undisturbed["weights"])


def test_a_vanished_image_is_named(train, training_images, tmp_path):
    training_images[4].path.unlink()
    with pytest.raises(TrainingFailed, match=r"image 4\.png cannot be read any more"):
        train(cache=tmp_path / "fresh")


def test_a_vanished_image_that_is_cached_does_not_matter(train, training_images, undisturbed):
    training_images[4].path.unlink()
    assert same(weights(train()), undisturbed["weights"])


def test_a_damaged_cache_file_is_computed_again(train, tmp_path, undisturbed, caplog):
    cache = tmp_path / "cache"
    train("first", cache=cache)
    for path in list(cache.rglob("*.safetensors"))[:3]:
        path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    assert same(weights(train(cache=cache)), undisturbed["weights"])
    assert "cached tensors unreadable" in caplog.text


def test_out_of_memory_says_what_to_change(train, training_spec, monkeypatch):
    def no_memory(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(FluxAdapter, "predict", no_memory)
    with pytest.raises(OutOfMemory, match=r"lower batch_size \(now 2\); or switch gradient_checkpointing on"):
        train()
    small = changed(
        training_spec,
        {"batch_size": 1, "resolutions": (64, 768), "gradient_checkpointing": True, "quantization": "int8"},
    )
    with pytest.raises(
        OutOfMemory, match=r"not enough: leave out the highest of resolutions \(now 768\); or close"
    ):
        train("small", spec=small)


def test_a_full_disk_ends_in_plain_words_and_the_run_goes_on_when_there_is_room(
    train, tmp_path, undisturbed, monkeypatch
):
    write = Path.write_bytes

    def full(path, content):
        if "step-00000004" in str(path):
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFull, match="no space left on the disk"):
        train()
    assert not list(tmp_path.rglob("*.partial-*"))
    monkeypatch.setattr(Path, "write_bytes", write)
    assert same(weights(train()), undisturbed["weights"])


def test_targets_that_match_nothing_are_refused_with_examples(train, training_spec):
    with pytest.raises(InvalidSpec, match="no linear layer matches 'attn_q'; there are, among others"):
        train(spec=changed(training_spec, {"targets": "attn_q"}))


def test_a_family_without_an_adapter_is_refused(tiny_model, training_images, training_spec, tmp_path):
    with pytest.raises(InvalidSpec, match="this engine trains sdxl models; Tiny FLUX is of the family flux"):
        NativeTrainer(adapters={Family.SDXL: FluxAdapter}, device=CPU).train(
            spec=training_spec, model=tiny_model, images=training_images, run_dir=tmp_path,
            cache_dir=tmp_path, report=Reports(),
        )  # fmt: skip


def test_a_training_without_images_is_refused(train):
    with pytest.raises(InvalidSpec, match="no image to train on"):
        train(images=[])


def test_images_of_different_shapes_train_together(train, training_spec, tmp_path):
    images = [
        picture(tmp_path / f"shape{number}.png", number, size=size)
        for number, size in enumerate([(64, 64), (128, 64), (64, 128), (200, 100)])
    ]
    trained = train(images=images, spec=changed(training_spec, {"sample_every": 0}))
    assert len(trained.validation_losses) == 5


def test_nothing_of_the_worker_thread_is_left_behind(train):
    before = threading.active_count()
    train()
    assert threading.active_count() == before
