"""AI-Toolkit behind our contract, with a stand-in for its source."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.model import Family
from isengard.domain.training import LrScheduler, Optimizer, TimestepSampling, TrainingSpec
from isengard.engines.ai_toolkit.checkout import load
from isengard.engines.ai_toolkit.smoke import smoke
from isengard.engines.ai_toolkit.trainer import AIToolkitTrainer
from isengard.engines.lora_format import read_spec
from isengard.engines.native.dataset import held_out, prepare
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.trainer import NativeTrainer
from isengard.engines.native.validation import validation_loss
from isengard.errors import (
    InvalidSpec,
    JobCancelled,
    JobPaused,
    JobYielded,
    LeaseLost,
    NotAvailable,
    OutOfMemory,
    TrainingFailed,
)
from tests.toolkit_stand_in import forget, write_checkout

# AI-Toolkit sets the schedule to the step it goes on with, in the way that torch would like to do without.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

CPU = torch.device("cpu")


class Reports:
    """A ``report`` that remembers everything and raises or asks at chosen moments."""

    def __init__(self):
        self.seen: list[Progress] = []
        self.acts: dict = {}

    def at(self, phase, when=None, *, do):
        """``when``: a step or a message; always when None."""
        self.acts[phase, when] = do
        return self

    def __call__(self, progress):
        self.seen.append(progress)
        for key in (
            (progress.phase, None),
            (progress.phase, progress.step),
            (progress.phase, progress.message),
        ):
            if isinstance(self.acts.get(key), BaseException):
                raise self.acts.pop(key)
            if key in self.acts:
                return self.acts.pop(key)
        return Requests()

    @property
    def phases(self):
        return list(dict.fromkeys(progress.phase for progress in self.seen))

    @property
    def steps(self):
        return sorted({progress.step for progress in self.seen if progress.phase is Phase.TRAINING})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return write_checkout(tmp_path_factory.mktemp("ai-toolkit"))


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Each test imports the stand-in anew, and none leaves it to another."""
    forget()
    yield
    forget()


@pytest.fixture
def toolkit(checkout):
    """The parts of the stand-in, which a training in the same test gets too."""
    return load(checkout)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def spec(training_spec):
    return changed(training_spec, {"engine": "ai-toolkit", "loss_weighting": "none", "lr_warmup_steps": 0})


@pytest.fixture
def train(checkout, tiny_model, training_images, spec, tmp_path, shared_cache):
    """Train in a folder of the given name; every default can be replaced."""

    def run(
        name="run", *, report=None, spec=spec, images=training_images, model=tiny_model, checkout=checkout
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        trainer = AIToolkitTrainer(checkout=checkout, adapters={Family.FLUX: FluxAdapter}, device=CPU)
        return trainer.train(
            spec=spec,
            model=model,
            images=images,
            run_dir=tmp_path / name,
            cache_dir=shared_cache,
            report=report or Reports(),
        )

    return run


def changed(spec, changes):
    return TrainingSpec.model_validate({**spec.model_dump(), **changes})


def rows(tmp_path, name="run"):
    return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]


def steps_noted(tmp_path, name="run"):
    return [row["step"] for row in rows(tmp_path, name) if "loss" in row]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# A training


def test_a_training_leaves_what_the_contract_says(train, tmp_path, spec):
    reports = Reports()
    trained = train(report=reports)
    run = tmp_path / "run"
    assert set(reports.phases) == set(Phase) - {Phase.VERIFYING, Phase.GENERATING, Phase.CAPTIONING}
    assert names(run) == ["checkpoints", "metrics.jsonl", "samples"]
    assert names(run / "checkpoints") == ["step-00000002", "step-00000004", "step-00000006"]
    assert names(run / "samples") == ["00000000-0.png", "00000003-0.png", "00000006-0.png"]
    assert steps_noted(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert trained.path == run / "checkpoints" / "step-00000006" / "lora.safetensors"
    assert (trained.steps, read_spec(trained.path)) == (6, spec)
    losses = dict(trained.validation_losses)
    assert list(losses) == [0, 2, 3, 4, 6]
    assert trained.best_step == min((2, 4, 6), key=losses.get)


def test_the_loss_falls_on_the_validation_set(train, spec):
    longer = {"steps": 40, "learning_rate": 2e-2, "save_every": 40, "validate_every": 40, "ema_decay": 0.0}
    losses = dict(train(spec=changed(spec, {**longer, "sample_every": 0})).validation_losses)
    assert losses[40] < 0.97 * losses[0]


def test_the_exported_file_has_the_loss_that_was_measured_while_training(
    train, spec, tiny_model, training_images, shared_cache
):
    trained = train()
    assert spec.alpha != spec.rank
    transformer = FluxTransformer2DModel.from_pretrained(tiny_model.path, subfolder="transformer")
    base = measured(transformer, spec, tiny_model, training_images, shared_cache)
    transformer.load_lora_adapter(load_file(trained.path), prefix="transformer")
    loaded = measured(transformer, spec, tiny_model, training_images, shared_cache)
    losses = dict(trained.validation_losses)
    assert loaded == pytest.approx(losses[6], rel=1e-6)
    assert base == pytest.approx(losses[0], rel=1e-6)
    assert abs(loaded - base) > 1e-4 * base


def measured(transformer, spec, model, images, cache_dir):
    """The validation loss of a model that no engine has touched."""
    adapter = FluxAdapter(model, device=CPU)
    dataset = prepare(spec, images, adapter=adapter, cache_dir=cache_dir, on_item=ignore)
    return validation_loss(
        transformer,
        dataset.validation,
        adapter=adapter,
        guidance_scale=spec.guidance_scale,
        batch_size=spec.batch_size,
        device=CPU,
        on_batch=ignore,
    )


def ignore(*_):
    """Nobody listens."""


def test_the_same_spec_gives_the_same_weights(train, short):
    one, other = (load_file(train(name, spec=short).path) for name in ("one", "other"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="session")
def short(spec):
    """Two steps and one checkpoint, and nothing else."""
    changes = {"steps": 2, "save_every": 2, "sample_every": 0, "validate_every": 0}
    return changed(spec, {**changes, "ema_decay": 0.0})


@pytest.fixture
def native(tiny_model, training_images, tmp_path, shared_cache):
    """Train with our own engine, in the folder ``native``."""

    def run(spec):
        (tmp_path / "native").mkdir()
        return NativeTrainer(adapters={Family.FLUX: FluxAdapter}, device=CPU).train(
            spec=spec, model=tiny_model, images=training_images, run_dir=tmp_path / "native",
            cache_dir=shared_cache, report=Reports(),
        )  # fmt: skip

    return run


@pytest.mark.parametrize("targets", ["attention", r".*\.proj_mlp"])
def test_the_layers_are_those_of_our_own_engine(train, short, native, targets):
    chosen = changed(short, {"targets": targets, "steps": 1})
    assert load_file(train(spec=chosen).path).keys() == load_file(native(chosen).path).keys()


@pytest.mark.parametrize("schedule", LrScheduler)
def test_the_learning_rates_are_those_of_our_own_engine_also_after_a_stop(
    train, short, native, tmp_path, schedule
):
    chosen = changed(short, {"steps": 6, "lr_scheduler": schedule, "lr_warmup_steps": 3})
    native(chosen)
    with pytest.raises(JobPaused):
        train(spec=chosen, report=Reports().at(Phase.TRAINING, 2, do=JobPaused()))
    train(spec=chosen)
    ours, theirs = ([row["lr"] for row in rows(tmp_path, name)] for name in ("native", "run"))
    assert theirs == pytest.approx(ours)
    assert len(set(ours)) > 3


def test_targets_that_match_nothing_are_refused(train, short):
    with pytest.raises(InvalidSpec, match="no linear layer matches 'attn_q'"):
        train(spec=changed(short, {"targets": "attn_q"}))


def test_batches_are_whole(train, short, toolkit, monkeypatch):
    sizes = []
    original = toolkit.trainer.train_single_accumulation
    monkeypatch.setattr(
        toolkit.trainer,
        "train_single_accumulation",
        lambda self, batch: sizes.append(len(batch.file_items)) or original(self, batch),
    )
    train(spec=changed(short, {"steps": 9, "batch_size": 3, "save_every": 9}))
    assert sizes == [3] * 9


def test_with_few_images_all_are_trained_on_and_measured(train, spec, training_images, tmp_path):
    reports = Reports().at(Phase.TRAINING, 1, do=JobPaused())
    with pytest.raises(JobPaused):
        train(images=training_images[:4], report=reports)
    assert len(list((tmp_path / "run" / "ai-toolkit" / "dataset").glob("*.png"))) == 4
    assert [row["step"] for row in rows(tmp_path) if "validation_loss" in row] == [0]


def test_noise_levels_are_drawn_as_our_own_engine_draws_them(train, short, toolkit, monkeypatch):
    drawn = []
    original = toolkit.model.add_noise
    monkeypatch.setattr(
        toolkit.model,
        "add_noise",
        lambda self, latents, noise, timesteps: (
            drawn.append(self.noise_scheduler.timesteps) or original(self, latents, noise, timesteps)
        ),
    )
    train(spec=changed(short, {"timestep_sampling": TimestepSampling.UNIFORM}))
    assert all(levels.shape == (1000,) and 0 < levels.min() < levels.max() <= 1000 for levels in drawn)
    assert not torch.equal(drawn[0], drawn[1])


def test_a_schedule_without_noise_levels_of_its_own_is_left_alone(train, short, toolkit, monkeypatch):
    monkeypatch.delattr("toolkit.stable_diffusion_model.Scheduler.set_train_timesteps")
    assert train(spec=short).steps == 2


def test_prompts_have_the_length_that_the_card_says(train, short, caplog):
    caplog.set_level(logging.INFO)
    train(spec=short)
    assert "AI-Toolkit: 1 prompt of 16 tokens" in caplog.messages
    assert not [line for line in caplog.messages if "of 512 tokens" in line]


def test_save_now_and_sample_now_act_at_the_next_step(train, tmp_path):
    train(report=Reports().at(Phase.TRAINING, 1, do=Requests(save=True, sample=True)))
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "lora.safetensors").exists()
    assert (tmp_path / "run" / "samples" / "00000001-0.png").exists()


def test_a_training_that_is_asked_to_finish_ends_at_that_step_as_if_it_were_the_last(train, tmp_path):
    trained = train(report=Reports().at(Phase.TRAINING, 3, do=Requests(finish=True)))
    assert (trained.steps, trained.path.parent.name) == (3, "step-00000003")
    assert trained.path.is_file()


def test_a_training_that_had_finished_early_makes_no_further_step_when_it_is_handed_out_again(train):
    reports = Reports().at(Phase.TRAINING, 3, do=Requests(finish=True))
    train(report=reports)
    again = Reports().at(Phase.TRAINING, 3, do=Requests(finish=True))
    assert train(report=again).steps == 3
    assert again.steps == [3]


def test_two_steps_on_the_bundled_model_are_the_smoke_test(checkout, tmp_path):
    assert smoke(checkout, "cpu", tmp_path).steps == 2


# Stops, and going on


@pytest.mark.parametrize(
    ("phase", "when", "stop", "goes_on_at"),
    [
        (Phase.LOADING, "loading AI-Toolkit", JobCancelled, 0),
        (Phase.LOADING, "loading Tiny FLUX", JobPaused, 0),
        (Phase.CACHING, 3, JobPaused, 0),
        (Phase.CACHING, "caching latents to disk", JobYielded, 0),
        (Phase.CACHING, "caching text embeddings to disk", JobYielded, 0),
        (Phase.TRAINING, 0, JobYielded, 0),
        (Phase.TRAINING, 1, JobCancelled, 1),
        (Phase.TRAINING, 5, JobPaused, 5),
        (Phase.VALIDATING, 1, JobYielded, 0),
        (Phase.SAVING, 4, JobCancelled, 4),
        (Phase.SAMPLING, 1, JobPaused, 0),
        (Phase.TRAINING, 6, JobYielded, 6),
    ],
)
def test_a_stop_in_any_phase_is_obeyed_at_once_and_no_step_is_lost_or_made_twice(
    train, tmp_path, phase, when, stop, goes_on_at
):
    reports, after = Reports().at(phase, when, do=stop()), Reports()
    with pytest.raises(stop):
        train(report=reports)
    assert reports.seen[-1].phase is phase
    assert train(report=after).steps == 6
    assert after.steps[0] == goes_on_at
    assert steps_noted(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(tmp_path) if "validation_loss" in row] == [0, 2, 3, 4, 6]
    assert not list(tmp_path.rglob("*.partial-*"))


def test_weights_optimizer_and_average_are_those_of_the_stop(train, toolkit, tmp_path, monkeypatch):
    with pytest.raises(JobPaused):
        train(report=Reports().at(Phase.TRAINING, 5, do=JobPaused()))
    folder = tmp_path / "run" / "checkpoints" / "step-00000005"
    saved, kept = torch.load(folder / "state.pt", weights_only=True), {}
    original = toolkit.trainer.hook_train_loop

    def look(self, batch):
        kept.update(
            adapter={name: tensor.clone() for name, tensor in self.network.state_dict().items()},
            moment=self.optimizer.state_dict()["state"][0]["exp_avg"].clone(),
            average=self.ema.state_dict()["shadow_params"][0].clone(),
        )
        return original(self, batch)

    monkeypatch.setattr(toolkit.trainer, "hook_train_loop", look)
    train()
    assert all(torch.equal(kept["adapter"][name], tensor) for name, tensor in saved["adapter"].items())
    assert torch.equal(kept["moment"], saved["optimizer"]["state"][0]["exp_avg"])
    assert torch.equal(kept["average"], saved["ema"]["shadow_params"][0])


def test_a_step_draws_the_same_noise_levels_after_a_stop_as_without_one(train, short, toolkit, monkeypatch):
    drawn = []
    original = toolkit.model.add_noise
    monkeypatch.setattr(
        toolkit.model,
        "add_noise",
        lambda self, latents, noise, timesteps: (
            drawn.append(timesteps) or original(self, latents, noise, timesteps)
        ),
    )
    longer = changed(short, {"steps": 4})
    train("straight", spec=longer)
    with pytest.raises(JobPaused):
        train(spec=longer, report=Reports().at(Phase.TRAINING, 2, do=JobPaused()))
    train(spec=longer)
    assert len(drawn) == 8
    assert all(torch.equal(one, other) for one, other in zip(drawn[:4], drawn[4:], strict=True))


def test_the_newest_checkpoint_is_the_one_with_the_highest_step_whatever_the_files_say(
    train, toolkit, tmp_path
):
    with pytest.raises(JobPaused):
        train(report=Reports().at(Phase.TRAINING, 5, do=JobPaused()))
    run, later = tmp_path / "run", 4_000_000_000
    for path in [*(run / "checkpoints" / "step-00000002").iterdir(), run / "checkpoints" / "step-00000002"]:
        os.utime(path, (later, later))
    (run / "ai-toolkit" / "lora" / "lora.safetensors").write_bytes(b"a file that AI-Toolkit would go on with")
    reports = Reports()
    train(report=reports)
    assert reports.steps == [5, 6]


def test_without_an_average_it_goes_on_as_well(train, short, tmp_path):
    with pytest.raises(JobPaused):
        train(spec=short, report=Reports().at(Phase.TRAINING, 1, do=JobPaused()))
    assert train(spec=short).steps == 2
    assert steps_noted(tmp_path) == [1, 2]


def tampered(folder, change):
    """Change the saved state of a checkpoint, and its checksum with it."""
    state = torch.load(folder / "state.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "state.pt")
    about = json.loads((folder / "about.json").read_text())
    about["sha256"] = hashlib.sha256((folder / "state.pt").read_bytes()).hexdigest()
    (folder / "about.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "lose",
    [
        lambda state: state.pop("optimizer"),
        lambda state: state["optimizer"].update(param_groups=[]),
        lambda state: state["optimizer"]["param_groups"][0].update(params=[0]),
    ],
)
def test_an_optimizer_state_that_is_lost_is_refused_with_a_way_out(train, short, tmp_path, lose):
    with pytest.raises(JobPaused):
        train(spec=short, report=Reports().at(Phase.TRAINING, 1, do=JobPaused()))
    tampered(tmp_path / "run" / "checkpoints" / "step-00000001", lose)
    with pytest.raises(TrainingFailed, match=r"at step 1 does not fit .* delete that checkpoint"):
        train(spec=short)


def test_a_setting_that_cannot_change_on_the_way_is_refused(train, short):
    train(spec=short)
    with pytest.raises(InvalidSpec, match="rank cannot change on the way: the checkpoint at step 2 has 4"):
        train(spec=changed(short, {"rank": 8}))


def test_extending_a_finished_run_writes_nothing_over(train, spec, tmp_path):
    train()
    run = tmp_path / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(spec=changed(spec, {"steps": 8})).steps == 8
    assert steps_noted(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    for path, content in before.items():
        assert path.read_bytes().startswith(content), path
    assert names(run / "checkpoints")[-2:] == ["step-00000006", "step-00000008"]


def test_a_finished_training_started_again_only_returns_what_it_has(train):
    one, reports = train(), Reports()
    assert train(report=reports) == one
    assert reports.steps == [6]


def test_a_worker_that_lost_its_lease_writes_nothing_more(train, tmp_path):
    with pytest.raises(LeaseLost):
        train(report=Reports().at(Phase.TRAINING, 5, do=LeaseLost()))
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000002", "step-00000004"]
    assert max(row["step"] for row in rows(tmp_path)) == 4


# What goes wrong


def test_a_batch_that_does_not_fit_into_memory_ends_the_run(train, spec, toolkit, tmp_path, monkeypatch):
    calls = []
    original = toolkit.trainer.train_single_accumulation

    def no_memory(self, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, batch)

    monkeypatch.setattr(toolkit.trainer, "train_single_accumulation", no_memory)
    with pytest.raises(OutOfMemory, match=r"64 px: 1 of 2 batches trained; lower batch_size \(now 2\); or"):
        train()
    assert len(calls) == 2
    assert steps_noted(tmp_path) in ([], [1])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_error_of_a_step_is_not_taken_for_it(train, short, toolkit, monkeypatch):
    def wrong(self, batch):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(toolkit.trainer, "train_single_accumulation", wrong)
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(spec=short)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda loss, predicted: loss * float("nan"), "the loss is no longer a number at step 4"),
        (lambda loss, predicted: loss + (predicted * 0).abs().sqrt().sum(), "the weights at step 4 are not"),
    ],
    ids=["loss", "gradients"],
)
def test_a_number_that_is_none_ends_the_run_and_gets_into_no_checkpoint(
    train, toolkit, tmp_path, monkeypatch, spoil, said
):
    original = toolkit.trainer.calculate_loss

    def spoilt(self, noise_pred, *args, **options):
        loss = original(self, noise_pred, *args, **options)
        return spoil(loss, noise_pred) if self.step_num == 3 else loss

    with monkeypatch.context() as patch:
        patch.setattr(toolkit.trainer, "calculate_loss", spoilt)
        with pytest.raises(TrainingFailed, match=f"{said}.*lower learning_rate"):
            train()
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000002"]
    assert train().steps == 6
    assert steps_noted(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_training_without_images_is_refused(train):
    with pytest.raises(InvalidSpec, match="no image to train on"):
        train(images=[])


def test_eight_bit_adamw_without_a_gpu_is_refused(train, spec):
    with pytest.raises(InvalidSpec, match="adamw8bit needs an NVIDIA GPU; choose adamw or prodigy"):
        train(spec=changed(spec, {"optimizer": Optimizer.ADAMW_8BIT}))


def test_a_run_that_fails_leaves_output_and_names_as_they_were(train, short, toolkit):
    def now():
        process = toolkit.process_module
        return sys.stdout, sys.stderr, process.get_model_class, toolkit.caching_module.tqdm

    before = now()
    with pytest.raises(LeaseLost):
        train(spec=short, report=Reports().at(Phase.TRAINING, 1, do=LeaseLost()))
    assert now() == before


def test_without_a_checkout_nothing_is_written(train, tmp_path):
    with pytest.raises(NotAvailable, match="ai-toolkit install"):
        train(checkout=tmp_path / "nowhere")
    assert names(tmp_path / "run") == []


# The images


def dataset_of(tmp_path):
    folder = tmp_path / "run" / "ai-toolkit" / "dataset"
    return {path.name: path.read_text() for path in folder.glob("*.txt")}


def paused(train, images, spec):
    with pytest.raises(JobPaused):
        train(images=images, spec=spec, report=Reports().at(Phase.TRAINING, 1, do=JobPaused()))


def encoded(caplog):
    found = [line for line in caplog.messages if line.startswith("AI-Toolkit: encoded")]
    caplog.clear()
    return len(found)


def test_images_that_are_the_same_are_not_encoded_again_and_a_new_caption_is_read(
    train, short, training_images, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    paused(train, training_images, short)
    assert encoded(caplog) == 8
    before = dataset_of(tmp_path)
    spec = changed(short, {"steps": 4, "save_every": 4})
    with pytest.raises(JobPaused):
        train(spec=spec, report=Reports().at(Phase.TRAINING, 2, do=JobPaused()))
    assert (encoded(caplog), dataset_of(tmp_path)) == (0, before)
    other = [image.model_copy(update={"caption": f"{image.caption}, outside"}) for image in training_images]
    with pytest.raises(JobPaused):
        train(images=other, spec=spec, report=Reports().at(Phase.TRAINING, 3, do=JobPaused()))
    assert encoded(caplog) == 8
    assert dataset_of(tmp_path) == {name: f"{text}, outside" for name, text in before.items()}


def test_held_out_images_are_not_among_those_it_trains_on(train, short, training_images, tmp_path):
    paused(train, training_images, short)
    (kept_out,) = held_out(training_images)
    assert not [name for name in dataset_of(tmp_path) if kept_out[:16] in name]


# The distilled model


@pytest.fixture
def distilled(tiny_model, tmp_path):
    """The tiny model with a training adapter that changes it visibly."""
    generator = torch.Generator().manual_seed(0)
    name = "transformer.transformer_blocks.0.attn.to_q"
    weights = {
        f"{name}.lora_A.weight": torch.randn(4, 32, generator=generator),
        f"{name}.lora_B.weight": torch.randn(32, 4, generator=generator),
    }
    save_file(weights, tmp_path / "adapter.safetensors")
    return tiny_model.model_copy(update={"training_adapter": tmp_path / "adapter.safetensors"})


def test_a_training_adapter_counts_minus_one_while_measuring_and_nothing_while_training(
    train, spec, toolkit, distilled, tiny_model, training_images, shared_cache, monkeypatch
):
    models, seen = [], {"training": [], "measuring": []}
    load_model, theirs, ours = toolkit.model.load_model, toolkit.model.predict_noise, FluxAdapter.predict

    def look(where):
        (adapter,) = {model.assistant_lora for model in models}
        seen[where].append((adapter.is_active, adapter.multiplier))

    monkeypatch.setattr(toolkit.model, "load_model", lambda self: models.append(self) or load_model(self))
    monkeypatch.setattr(
        toolkit.model, "predict_noise", lambda *args, **options: look("training") or theirs(*args, **options)
    )
    monkeypatch.setattr(
        FluxAdapter, "predict", lambda *args, **options: look("measuring") or ours(*args, **options)
    )
    trained = train(model=distilled)
    assert set(seen["training"]) == {(False, -1.0)}
    assert set(seen["measuring"]) == {(True, -1.0)}
    assert not models[0].assistant_lora.is_active
    monkeypatch.undo()
    plain = FluxTransformer2DModel.from_pretrained(tiny_model.path, subfolder="transformer")
    base = measured(plain, spec, tiny_model, training_images, shared_cache)
    assert dict(trained.validation_losses)[0] == pytest.approx(base, rel=1e-4)


def test_a_training_adapter_is_off_again_after_a_stop_while_measuring(train, toolkit, distilled, monkeypatch):
    models = []
    load_model = toolkit.model.load_model
    monkeypatch.setattr(toolkit.model, "load_model", lambda self: models.append(self) or load_model(self))
    with pytest.raises(JobPaused):
        train(model=distilled, report=Reports().at(Phase.VALIDATING, 1, do=JobPaused()))
    assert not models[0].assistant_lora.is_active
