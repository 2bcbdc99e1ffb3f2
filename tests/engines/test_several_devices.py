"""A training that processes share, each as if it had a GPU of its own."""

import multiprocessing

import psutil
import pytest
import torch
from safetensors.torch import load_file

from isengard.domain.job import Phase, Requests
from isengard.domain.model import Family
from isengard.domain.training import TrainingSpec
from isengard.engines.native.flux import FluxAdapter
from isengard.engines.native.followers import devices_of
from isengard.engines.native.trainer import NativeTrainer
from isengard.errors import InvalidSpec, JobPaused, TrainingFailed
from tests.pictures import picture

CPU = torch.device("cpu")
CHANGES = {"steps": 3, "lr_scheduler": "constant", "sample_every": 0, "validate_every": 0, "batch_size": 1}
#: Two means of one example each are one mean of two, but for the order of the additions in float32.
TOLERANCE = 1e-5


class Mortal(FluxAdapter):
    """Dies in a follower's process as it loads the network."""

    def load_denoiser(self, **options):
        if multiprocessing.parent_process() is not None:
            raise SystemExit(3)
        return super().load_denoiser(**options)


@pytest.fixture
def train(tiny_model, training_spec, tmp_path):
    def run(name, *, adapter=FluxAdapter, stop_at=None, **changes):
        def report(progress):
            if progress.phase is Phase.TRAINING and progress.step == stop_at:
                raise JobPaused
            return Requests()

        (tmp_path / name).mkdir(exist_ok=True)
        trained = NativeTrainer(adapters={Family.FLUX: adapter}, device=CPU).train(
            spec=TrainingSpec.model_validate({**training_spec.model_dump(), **CHANGES, **changes}),
            model=tiny_model,
            images=[picture(tmp_path / f"{number}.png", number) for number in range(4)],
            run_dir=tmp_path / name,
            cache_dir=tmp_path / "cache",
            report=report,
        )
        return load_file(trained.path)

    return run


def followers_left():
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_two_devices_do_what_one_does_with_twice_the_batch_and_resume_exactly(train):
    one = train("one", batch_size=2)
    two = train("two", devices=2)
    assert max((one[key] - two[key]).abs().max().item() for key in one) < TOLERANCE
    with pytest.raises(JobPaused):
        train("paused", devices=2, stop_at=2)
    assert not followers_left()
    resumed = train("paused", devices=2)
    assert all(torch.equal(two[key], resumed[key]) for key in two)
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_a_device_whose_process_dies_fails_the_training_and_leaves_none_behind(train):
    with pytest.raises(TrainingFailed, match=r"on device 2 of 2 \(cpu\) ended with code 3; the log says why"):
        train("run", devices=2, adapter=Mortal)
    assert not followers_left()
    assert not torch.distributed.is_initialized()


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(
        InvalidSpec, match="devices is 2, and this machine has 1 of the kind mps; set devices to 1"
    ):
        devices_of(torch.device("mps"), 2)


def test_one_device_needs_no_other():
    assert devices_of(CPU, 1) == [CPU]
