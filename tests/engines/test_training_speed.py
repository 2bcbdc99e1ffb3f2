"""What makes a step fast must not change what it computes."""

import functools
import json

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from peft import inject_adapter_in_model
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from isengard.domain.job import Phase, Requests
from isengard.domain.model import Family
from isengard.domain.performance import Attention
from isengard.domain.training import TrainingSpec
from isengard.engines import compiling
from isengard.engines.native import dataset, lora, trainer
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.readings import Readings
from isengard.engines.native.sdxl import SdxlAdapter
from isengard.engines.native.share import Share
from isengard.engines.native.state import TrainingState
from isengard.engines.native.trainer import NativeTrainer
from isengard.engines.native.training_adapter import TrainingAdapter
from isengard.errors import InvalidSpec, JobYielded, TrainingFailed
from tests.pictures import picture

CPU = torch.device("cpu")
ADAPTERS = {Family.FLUX: FluxAdapter, Family.SDXL: SdxlAdapter}
BARE = {"steps": 4, "lr_scheduler": "constant", "sample_every": 0, "validate_every": 0, "ema_decay": 0.0}
#: Compiled code may add up in another order; float32 keeps 7 digits, and four steps make little of the difference.
TOLERANCE = 1e-5


def compiles(test):
    """Torch's compiler warns of what it does itself."""
    for warning in (
        ".*should not be instantiated:DeprecationWarning",
        "The .grad attribute of a Tensor:UserWarning",
        ".torch.jit.script_method. is deprecated:DeprecationWarning",
    ):
        test = pytest.mark.filterwarnings(f"ignore:{warning}")(test)
    return test


@pytest.fixture(scope="session")
def speed_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(tiny_model, training_spec, tmp_path, speed_cache):
    def run(name, *, model=tiny_model, stop_at=None, **changes):
        def report(progress):
            if progress.phase is Phase.TRAINING and progress.step == stop_at:
                raise JobYielded
            return Requests()

        (tmp_path / name).mkdir(exist_ok=True)
        trained = NativeTrainer(adapters=ADAPTERS, device=CPU).train(
            spec=TrainingSpec.model_validate({**training_spec.model_dump(), **BARE, **changes}),
            model=model,
            images=[picture(tmp_path / f"{number}.png", number, size=(96, 96)) for number in range(3)],
            run_dir=tmp_path / name,
            cache_dir=speed_cache,
            report=report,
        )
        return load_file(trained.path)

    return run


def apart(one, other):
    assert one.keys() == other.keys()
    return max((one[key] - other[key]).abs().max().item() for key in one)


class NoReading(TorchDispatchMode):
    """Inside, a number taken out of a tensor is an error: on a GPU it would wait for all work given out so far."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read"
        return func(*args, **(kwargs or {}))


def test_the_guard_of_the_next_test_sees_what_it_forbids():
    with pytest.raises(AssertionError, match="a value was read"), NoReading():
        torch.ones(1).sum().item()


@pytest.mark.parametrize("name", ["tiny_model", "tiny_sdxl_model"])
def test_no_step_reads_a_value_of_its_own(request, train, monkeypatch, name):
    step = trainer._Run._train_step

    @functools.wraps(step)
    def guarded(run):
        with NoReading():
            step(run)

    monkeypatch.setattr(trainer._Run, "_train_step", guarded)
    train("run", model=request.getfixturevalue(name), precision="bf16", gradient_accumulation_steps=2)


def test_figures_come_a_step_late_and_all_of_them(train, tmp_path):
    readings = Readings()
    taken = []
    for step in (1, 2, 3):
        readings.note(step=step, lr=0.1, loss=torch.tensor(step / 2), grad_norm=torch.tensor(1.0))
        taken.append([row["step"] for row in readings.take(lag=1)])
    assert taken == [[], [1], [2]]
    assert readings.take(lag=0) == [{"step": 3, "loss": 1.5, "lr": 0.1, "grad_norm": 1.0}]


def test_a_stop_right_after_a_spoilt_step_saves_nothing_of_it(train, tmp_path, monkeypatch):
    predict = FluxAdapter.predict
    calls = []

    def diverging(*args, **kwargs):
        calls.append(None)
        return predict(*args, **kwargs) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(FluxAdapter, "predict", diverging)
    with pytest.raises(TrainingFailed, match="no longer a number at step 3"):
        train("run", save_every=2, stop_at=3)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000002"]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_data_too_large_for_the_device_stay_where_they_are(tiny_model, training_images, training_spec, tmp_path, monkeypatch):  # fmt: skip
    data = dataset.prepare(
        training_spec.model_copy(update={"flip": True}),
        training_images,
        adapter=FluxAdapter(tiny_model, device=CPU),
        cache_dir=tmp_path,
        on_item=lambda *_: None,
    )
    near = dataset.placed(data, CPU)
    assert all(
        torch.equal(one.mirrored, two.mirrored) for one, two in zip(near.train, data.train, strict=True)
    )
    monkeypatch.setattr(dataset, "KEPT_ON_DEVICE", 1000)
    assert dataset.placed(data, CPU) is data


@pytest.mark.parametrize("name", ["tiny_model", "tiny_sdxl_model"])
def test_only_the_adapter_has_gradients_and_a_state_in_the_optimizer(request, training_spec, training_images, tmp_path, name):  # fmt: skip
    model = request.getfixturevalue(name)
    adapter = ADAPTERS[model.card.family](model, device=CPU)
    data = dataset.prepare(
        training_spec, training_images, adapter=adapter, cache_dir=tmp_path, on_item=lambda *_: None
    )
    denoiser = adapter.load_denoiser(dtype=torch.float32, quantization=training_spec.quantization)
    none = TrainingAdapter(denoiser, None, dtype=torch.float32, device=CPU)
    state = TrainingState(
        training_spec,
        model.card,
        denoiser,
        adapter=adapter,
        training_adapter=none,
        image_count=9,
        share=Share(),
    )
    loss = state.loss(data.train[:2], no_prompt=data.no_prompt, generator=state.generator())
    loss.backward()
    weights = dict(denoiser.named_parameters())
    trainable = {key for key, weight in weights.items() if weight.requires_grad}
    assert all(".lora_" in key for key in trainable)
    assert {key for key, weight in weights.items() if weight.grad is not None} == trainable
    state.update(loss=loss)
    assert {id(weight) for weight in state._optimizer.state} == {id(weights[key]) for key in trainable}


class OneBlock(torch.nn.Module):
    """A FLUX block of 2 heads of 128; what it keeps per token grows with its width."""

    width = 256

    def __init__(self, kind):
        super().__init__()
        self.blocks = torch.nn.ModuleList([kind(self.width, 2, 128)]).to(torch.bfloat16)

    def add_adapter(self, config):
        inject_adapter_in_model(config, self, "default")

    def kept(self, *, text=64, image=128):
        """Bytes kept for the gradient per token and unit of width, weights left out."""
        weights = {weight.untyped_storage().data_ptr() for weight in self.parameters()}
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights and tensor.numel() >= text * 64:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        def stream(tokens):
            return torch.randn(1, tokens, self.width, dtype=torch.bfloat16, requires_grad=True)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.blocks[0](
                hidden_states=stream(image),
                encoder_hidden_states=stream(text),
                temb=torch.randn(1, self.width, dtype=torch.bfloat16),
                image_rotary_emb=(torch.randn(text + image, 128), torch.randn(text + image, 128)),
            )
        return sum(size for size, _ in kept.values()) / (text + image) / self.width


@pytest.mark.parametrize(("kind", "most"), [(FluxTransformerBlock, 34.5), (FluxSingleTransformerBlock, 32.5)])
def test_an_adapter_makes_a_block_keep_one_input_per_group_of_layers(kind, most):
    frozen, adapted = OneBlock(kind), OneBlock(kind)
    frozen.requires_grad_(False)
    lora.add_lora(
        adapted, pattern=r"blocks\.0\.attn\.(to_.|add_._proj|to_out\.0|to_add_out)", rank=2, alpha=2, seed=0
    )
    assert (
        adapted.kept() - frozen.kept() < 4.5
    )  # what goes into q, k and v, once, and into the output: 2 bytes each
    assert adapted.kept() < most


@pytest.fixture
def quick_compiler(monkeypatch):
    """All of torch.compile but the making of machine code, which takes half a minute a block."""
    monkeypatch.setattr(compiling, "_BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.no_cover  # which takes a third of torch's compiler's time
@compiles
def test_compiled_blocks_train_alike_and_serve_all_sizes_with_one_graph(train, quick_compiler):
    changes = {"resolutions": (64, 80, 96), "batch_size": 1, "steps": 5}
    plain = train("plain", **changes)
    assert apart(train("compiled", compile=True, **changes), plain) < TOLERANCE
    stats = torch._dynamo.utils.counters["stats"]
    assert stats["unique_graphs"] <= 4  # two kinds of blocks, and the one without a gradient to its input


@pytest.mark.slow
@pytest.mark.no_cover  # which takes a third of torch's compiler's time
@compiles
def test_a_compiled_training_goes_on_without_compilation_and_the_other_way(train, quick_compiler):
    plain = train("plain", gradient_checkpointing=True)
    for name, first in (("on", True), ("off", False)):
        with pytest.raises(JobYielded):
            train(name, stop_at=2, compile=first, gradient_checkpointing=True)
        assert apart(train(name, compile=not first, gradient_checkpointing=True), plain) < TOLERANCE


@pytest.mark.slow
@pytest.mark.no_cover  # which takes a third of torch's compiler's time
@compiles
def test_sdxls_transformer_blocks_are_compiled_too(train, tiny_sdxl_model, quick_compiler):
    changes = {"model": tiny_sdxl_model, "steps": 2, "batch_size": 1, "targets": "attention"}
    plain = train("plain", **changes)
    assert apart(train("compiled", compile=True, **changes), plain) < TOLERANCE
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.slow
@compiles
def test_machine_code_trains_alike(train):
    torch._dynamo.reset()
    changes = {"steps": 2, "targets": r"single_transformer_blocks\.0\.attn\.to_q"}
    plain = train("plain", **changes)
    assert apart(train("compiled", compile=True, **changes), plain) < TOLERANCE
    torch._dynamo.reset()


def test_a_kernel_that_is_not_here_is_refused_before_anything_is_loaded(train, tmp_path):
    with pytest.raises(InvalidSpec, match="attention cudnn needs an NVIDIA GPU"):
        train("run", attention=Attention.CUDNN)
    assert not list((tmp_path / "run").iterdir())
