"""Trainings by the real AI-Toolkit, on a tiny FLUX and a tiny SDXL."""

import logging
import os
import sys
import time

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

from isengard.domain.generation import ImageSpec
from isengard.domain.job import Phase
from isengard.domain.model import Family
from isengard.domain.training import AI_TOOLKIT, LrScheduler, TimestepSampling
from isengard.engines.ai_toolkit.trainer import AIToolkitTrainer
from isengard.engines.lora_format import save_lora
from isengard.engines.native.checkpoint import Checkpoints, read_metrics
from isengard.engines.native.dataset import held_out, prepare
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.sdxl import SdxlAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.engines.native.validation import validation_loss
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.errors import InvalidSpec, JobPaused, LeaseLost, OutOfMemory, TrainingFailed
from tests.engines.demo_model import Reports

# AI-Toolkit and what it imports warn of their own.
pytestmark = [pytest.mark.aitoolkit, pytest.mark.filterwarnings("ignore")]

CPU = torch.device("cpu")
ADAPTERS = {Family.FLUX: FluxAdapter, Family.SDXL: SdxlAdapter}
STEPS = 6


@pytest.fixture
def trainer(ai_toolkit_checkout):
    return AIToolkitTrainer(checkout=ai_toolkit_checkout, adapters=ADAPTERS, device=CPU)


@pytest.fixture
def spec(training_spec):
    return training_spec.model_copy(update={"engine": AI_TOOLKIT})


@pytest.fixture
def train(trainer, spec, tiny_model, training_images, tmp_path):
    def trained(*, report=None, model=tiny_model, images=training_images, **changes):
        return trainer.train(
            spec=spec.model_copy(update=changes),
            model=model,
            images=images,
            run_dir=tmp_path / "run",
            cache_dir=tmp_path / "cache",
            report=Reports() if report is None else report,
        )

    (tmp_path / "run").mkdir()
    return trained


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def at_step(step, stop):
    return Reports(stop, lambda progress: progress.phase is Phase.TRAINING and progress.step == step)


def steps_trained(run_dir):
    return [row["step"] for row in read_metrics(run_dir / "metrics.jsonl") if "loss" in row]


def test_a_training_leaves_what_ours_leaves(train, run_dir, tiny_model, training_images, spec, tmp_path):
    reports = Reports()
    trained = train(report=reports)
    assert trained.steps == STEPS
    assert steps_trained(run_dir) == list(range(1, STEPS + 1))
    assert Checkpoints(run_dir).steps() == [2, 4, 6]
    assert sorted(path.name for path in (run_dir / "samples").iterdir()) == [
        "00000000-0.png", "00000003-0.png", "00000006-0.png",
    ]  # fmt: skip
    phases = {progress.phase for progress in reports}
    assert phases == {
        Phase.LOADING, Phase.CACHING, Phase.TRAINING, Phase.VALIDATING, Phase.SAVING, Phase.SAMPLING,
    }  # fmt: skip
    assert not (run_dir / "ai-toolkit").exists()

    ours = NativeTrainer(adapters=ADAPTERS, device=CPU).train(
        spec=spec, model=tiny_model, images=training_images, run_dir=tmp_path / "ours", cache_dir=tmp_path / "cache",
        report=Reports(),
    )  # fmt: skip
    one, other = load_file(trained.path), load_file(ours.path)
    assert {key: tensor.shape for key, tensor in one.items()} == {
        key: tensor.shape for key, tensor in other.items()
    }
    assert trained.validation_losses[0] == ours.validation_losses[0]


def test_the_file_does_what_was_trained(train, spec, tiny_model, training_images, tmp_path):
    """Alpha is a quarter of the rank, a moving average is on: the file alone gives the loss that was measured."""
    changes = {"rank": 4, "alpha": 1.0, "learning_rate": 0.05, "ema_decay": 0.5}
    trained = train(**changes)
    adapter = FluxAdapter(tiny_model, device=CPU)
    kept = [image for image in training_images if image.sha256 in held_out(training_images)]
    dataset = prepare(spec, kept, adapter=adapter, cache_dir=tmp_path / "cache", on_item=lambda *_: None)
    denoiser = FluxTransformer2DModel.from_pretrained(tiny_model.path / "transformer")

    def loss():
        return validation_loss(
            denoiser, dataset.train, adapter=adapter, guidance_scale=spec.guidance_scale, batch_size=2,
            device=CPU, on_batch=lambda *_: None,
        )  # fmt: skip

    before = loss()
    denoiser.load_lora_adapter(load_file(trained.path), prefix="transformer")
    assert loss() == pytest.approx(trained.validation_losses[-1][1], abs=1e-5)
    assert abs(loss() - before) > 1e-4


def test_plain_diffusers_takes_the_file(train, tiny_flux):
    trained = train(learning_rate=0.1)
    pipeline = FluxPipeline.from_pretrained(tiny_flux, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def image():
        return np.asarray(
            pipeline(
                "ohwx", width=64, height=64, num_inference_steps=2, max_sequence_length=16,
                generator=torch.Generator().manual_seed(1),
            ).images[0]
        )  # fmt: skip

    before = image()
    pipeline.load_lora_weights(trained.path.parent, weight_name=trained.path.name)
    assert not np.array_equal(before, image())


@pytest.mark.parametrize("sampling", TimestepSampling)
@pytest.mark.parametrize("schedule", LrScheduler)
def test_schedules_and_noise_levels_are_ours(
    train, run_dir, spec, sampling, schedule, tmp_path, tiny_model, training_images
):
    changes = {
        "lr_scheduler": schedule,
        "timestep_sampling": sampling,
        "lr_warmup_steps": 2,
        "sample_every": 0,
        "validate_every": 0,
    }
    train(**changes)
    NativeTrainer(adapters=ADAPTERS, device=CPU).train(
        spec=spec.model_copy(update=changes), model=tiny_model, images=training_images, run_dir=tmp_path / "ours",
        cache_dir=tmp_path / "cache", report=Reports(),
    )  # fmt: skip
    rates = [
        [row["lr"] for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (run_dir, tmp_path / "ours")
    ]
    assert rates[0] == pytest.approx(rates[1])


def test_sdxl_trains(train, tiny_sdxl_model, run_dir):
    trained = train(model=tiny_sdxl_model, timestep_sampling=TimestepSampling.UNIFORM)
    assert steps_trained(run_dir) == list(range(1, STEPS + 1))
    assert all(key.startswith("unet.") for key in load_file(trained.path))
    assert len(list((run_dir / "samples").iterdir())) == 3


def test_a_training_adapter_is_there_in_training_and_away_for_pictures(
    train, tiny_model, training_spec, tmp_path, run_dir
):
    """With it merged in, the model before the first step would have another loss; taken back it has its own."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "single_transformer_blocks.0.attn.to_k": (32, 32),
        "transformer_blocks.0.attn.to_q": (32, 32),
    }
    weights = {}
    for name, (out, into) in shapes.items():
        weights[f"transformer.{name}.lora_A.weight"] = torch.randn(4, into, generator=generator)
        weights[f"transformer.{name}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_lora(path, weights, spec=training_spec, card=tiny_model.card, step=1, image_count=1, created_at=0.0)
    plain = train(steps=2, sample_every=0).validation_losses[0][1]
    for entry in (run_dir / "metrics.jsonl", *run_dir.glob("checkpoints/*/*")):
        entry.unlink()
    distilled = tiny_model.model_copy(update={"training_adapter": path})
    trained = train(steps=2, model=distilled, sample_every=0)
    assert trained.validation_losses[0][1] == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    "phase", [Phase.CACHING, Phase.TRAINING, Phase.VALIDATING, Phase.SAVING, Phase.SAMPLING]
)
def test_a_stop_saves_and_the_next_run_goes_on(train, run_dir, phase):
    with pytest.raises(JobPaused):
        train(report=Reports(JobPaused(), lambda progress: progress.phase is phase))
    train()
    assert steps_trained(run_dir) == list(range(1, STEPS + 1))


# Hazards, each of which AI-Toolkit has by itself


def test_out_of_memory_ends_the_run_with_advice(train, run_dir, trainer, monkeypatch):
    """AI-Toolkit would leave the batch out, count the step, and end in success."""
    train(steps=2, save_every=1)
    from extensions_built_in.sd_trainer import SDTrainer

    calls = []

    def fails(self, batch):
        calls.append(batch)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(SDTrainer.SDTrainer, "train_single_accumulation", fails)
    with pytest.raises(OutOfMemory, match=r"64 px: 0 of 1 batches trained.*batch_size"):
        train()
    assert len(calls) == 1
    assert Checkpoints(run_dir).steps() == [1, 2]


def test_a_loss_that_is_no_number_ends_the_run(train, run_dir, monkeypatch):
    """AI-Toolkit would put zero in its place and go on."""
    train(steps=2)
    from extensions_built_in.sd_trainer import SDTrainer

    real = SDTrainer.SDTrainer.calculate_loss
    monkeypatch.setattr(
        SDTrainer.SDTrainer, "calculate_loss", lambda *args, **options: real(*args, **options) * float("nan")
    )
    with pytest.raises(TrainingFailed, match="no longer a number at step 3"):
        train()
    assert Checkpoints(run_dir).steps() == [2]


def test_the_newest_checkpoint_is_chosen_by_its_step(train, run_dir):
    """AI-Toolkit would take the file that was changed last: a copied folder starts it anew from any."""
    with pytest.raises(JobPaused):
        train(report=at_step(5, JobPaused()))
    assert Checkpoints(run_dir).steps() == [2, 4, 5]
    later = time.time() + 100
    for path in (run_dir / "checkpoints" / "step-00000002").iterdir():
        os.utime(path, (later, later))
    reports = Reports()
    train(report=reports)
    assert min(progress.step for progress in reports if progress.phase is Phase.TRAINING) == 5
    assert steps_trained(run_dir) == list(range(1, STEPS + 1))


def test_only_our_policy_deletes_checkpoints(train, run_dir):
    """AI-Toolkit keeps the last few by file time, also where the best is an early one."""
    train(steps=8, save_every=1, validate_every=0, sample_every=0)
    assert Checkpoints(run_dir).steps() == list(range(1, 9))


def test_a_crash_while_saving_leaves_the_checkpoint_before(train, run_dir, monkeypatch):
    """AI-Toolkit writes its files in place."""
    from isengard.engines.ai_toolkit import run

    real = run.save_lora

    def crashes(path, *args, step, **options):
        real(path, *args, step=step, **options)
        if step == 4:
            raise RuntimeError("the power went")

    monkeypatch.setattr(run, "save_lora", crashes)
    with pytest.raises(RuntimeError, match="the power went"):
        train()
    assert Checkpoints(run_dir).steps() == [2]
    assert not list((run_dir / "checkpoints").glob("*.partial-*"))
    monkeypatch.undo()
    train()
    assert steps_trained(run_dir) == list(range(1, STEPS + 1))


def test_an_optimizer_that_does_not_fit_is_an_error(train, run_dir):
    """AI-Toolkit would print it and go on with an empty one."""
    train(steps=2)
    checkpoints = Checkpoints(run_dir)
    step, state = checkpoints.newest()
    state["optimizer"]["param_groups"] = []
    about = checkpoints.about(step)
    lora = (checkpoints.path(step) / "lora.safetensors").read_bytes()
    checkpoints.write(
        step, state=state, about=about, extra=lambda folder: (folder / "lora.safetensors").write_bytes(lora)
    )
    with pytest.raises(TrainingFailed, match="optimizer's state of the checkpoint at step 2 does not fit"):
        train()


def test_a_run_that_goes_on_writes_over_nothing(train, run_dir):
    """AI-Toolkit's last file has no step in its name."""
    first = train(steps=2).path
    kept = first.read_bytes()
    second = train(steps=4).path
    assert (first.read_bytes() == kept, first != second) == (True, True)


def test_a_lost_lease_writes_nothing(train, run_dir):
    with pytest.raises(LeaseLost):
        train(report=at_step(3, LeaseLost("gone")))
    assert Checkpoints(run_dir).steps() == [2]


def test_another_engine_cannot_take_over(train, run_dir, spec, tiny_model, training_images, tmp_path):
    train(steps=2)
    with pytest.raises(InvalidSpec, match="engine cannot change on the way"):
        NativeTrainer(adapters=ADAPTERS, device=CPU).train(
            spec=spec.model_copy(update={"engine": "native"}), model=tiny_model, images=training_images,
            run_dir=run_dir, cache_dir=tmp_path / "cache", report=Reports(),
        )  # fmt: skip


# Isolation


def test_images_before_and_after_are_the_same(train, tiny_model, tmp_path):
    """As it is where the worker is a thread: nothing starts anew."""
    spec = ImageSpec(
        base_model="tiny",
        prompt="a portrait",
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=3.5,
        seed=5,
    )

    def image():
        generator = PipelineGenerator(device=CPU)
        (made,) = generator.generate(
            spec=spec,
            prompt="a portrait",
            model=tiny_model,
            loras=(),
            preview=tmp_path / "p.png",
            report=Reports(),
        )
        generator.unload()
        return np.asarray(made.image)

    before, path, modes = image(), list(sys.path), _modes()  # noqa: TID251  # is looked at only
    train()
    assert np.array_equal(before, image())
    assert (list(sys.path), _modes()) == (path, modes)  # noqa: TID251  # as above


def _modes():
    return (
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
    )  # fmt: skip


def test_what_it_prints_goes_into_the_log(train, caplog, capsys):
    with caplog.at_level(logging.INFO, logger="isengard"):
        train(steps=1, save_every=1, sample_every=0)
    assert any("create LoRA network" in record.getMessage() for record in caplog.records)
    assert "create LoRA network" not in capsys.readouterr().out
