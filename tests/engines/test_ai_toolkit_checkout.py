"""AI-Toolkit's checkout: how it is imported, what is set in it while it runs, what it is given; with a stand-in for it."""

import inspect
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from isengard.domain.ai_toolkit import facts
from isengard.domain.model import Family
from isengard.domain.training import TimestepSampling
from isengard.engines.ai_toolkit.checkout import CacheBar, fenced, load
from isengard.engines.ai_toolkit.process import process_class
from isengard.engines.ai_toolkit.trainer import in_process, write_dataset
from isengard.errors import JobPaused, NotAvailable, TrainingFailed
from tests.toolkit_stand_in import forget, write_checkout

CPU = torch.device("cpu")


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
    return load(checkout)


def ignore(*_):
    """Nobody listens."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Its import


def test_without_a_checkout_it_says_how_to_get_one(tmp_path):
    with pytest.raises(
        NotAvailable, match=r"not at .*nowhere: run `python -m isengard ai-toolkit install`, or"
    ):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["import a_package_that_nobody_has", "raise RuntimeError('of another version')"]
)
def test_a_checkout_that_cannot_be_imported_says_why_and_what_to_do(tmp_path, text):
    broken = write_checkout(tmp_path / "broken")
    (broken / "toolkit" / "train_tools.py").write_text(text)
    before = list(sys.path)  # noqa: TID251
    with pytest.raises(NotAvailable, match=r"(a_package_that_nobody_has|of another version).*engine native"):
        load(broken)
    assert sys.path == before  # noqa: TID251


def test_the_folder_of_a_checkout_is_on_the_path_for_its_import_only(checkout):
    before = list(sys.path)  # noqa: TID251
    load(checkout)
    assert sys.path == before  # noqa: TID251


# What it is given


def test_an_image_more_is_laid_out_and_one_less_taken_away(training_images, tmp_path):
    for some in (training_images[:2], training_images[:3], training_images[1:2]):
        folder = write_dataset(tmp_path / "dataset", some)
        assert len(names(folder)) == 2 * len(some)


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"no image any more")])
def test_an_image_that_has_vanished_or_is_damaged_is_named(training_images, tmp_path, lose):
    lose(training_images[4].path)
    with pytest.raises(TrainingFailed, match=r"image 4\.png cannot be read any more"):
        write_dataset(tmp_path / "dataset", training_images)
    assert not (tmp_path / "dataset").exists()


# What is set in it while it runs


def patched(toolkit):
    return (
        sys.stdout,
        toolkit.process_module.get_model_class,
        toolkit.process_module.ToolkitProgressBar,
        toolkit.prompts_module.encode_prompts_flux,
        toolkit.caching_module.tqdm,
        toolkit.loader_module.tqdm,
        list(sys.path),  # noqa: TID251
    )


def test_everything_is_put_back_also_after_an_error(toolkit):
    before = patched(toolkit)
    inside = []

    def failing():
        with fenced(toolkit, device=CPU, text_length=16, on_item=ignore):
            inside.extend(patched(toolkit))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert patched(toolkit) == before
    assert all(old is not new for old, new in zip(before[:6], inside[:6], strict=True))


def test_what_this_thread_prints_is_logged_and_what_another_prints_is_not(toolkit, caplog):
    caplog.set_level(logging.INFO)

    def elsewhere():
        sys.stdout.write("said elsewhere\n")
        sys.stdout.flush()
        sys.stderr.write("complained elsewhere\n")

    out, err = StringIO(), StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        fenced(toolkit, device=CPU, text_length=16, on_item=ignore),
    ):
        sys.stdout.write("half a line, ")
        sys.stdout.write("and the rest  \n\n\n10%\r20%\n")
        sys.stdout.flush()
        sys.stderr.write("complained\n")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        bar = toolkit.process_module.ToolkitProgressBar(total=2)
        bar.update()
        bar.close()
    assert caplog.messages == [
        "AI-Toolkit: half a line, and the rest", "AI-Toolkit: 10%", "AI-Toolkit: 20%",
    ]  # fmt: skip
    assert (out.getvalue(), err.getvalue()) == ("said elsewhere\n", "complained\ncomplained elsewhere\n")


def test_its_device_is_ours_and_stays_that_of_the_process(toolkit):
    made = []
    for _ in range(2):
        with fenced(toolkit, device=CPU, text_length=16, on_item=ignore):
            made.append(toolkit.accelerator_module.get_accelerator())
    assert made[0] is made[1]
    assert made[0].device == CPU


def test_a_cache_bar_counts_what_is_given_through_it():
    told = []
    items = CacheBar(lambda *progress: told.append(progress), "ab", desc="Caching Letters", leave=True)
    assert list(items) == ["a", "b"]
    assert told == [(0, 2, "caching letters"), (1, 2, "caching letters"), (2, 2, "caching letters")]


def test_a_cache_bar_counts_what_it_is_told():
    told = []
    bar = CacheBar(lambda *progress: told.append(progress), total=5)
    bar.set_description("Latents")
    bar.update(3)
    bar.close()
    assert told == [(0, 5, ""), (3, 5, "latents")]


def test_a_stop_while_caching_leaves_the_loop():
    def stop(done, total, what):
        if done:
            raise JobPaused

    with pytest.raises(JobPaused):
        list(CacheBar(stop, range(3)))


# The configuration


@pytest.mark.parametrize("family", [Family.FLUX, Family.SDXL])
def test_the_schedule_the_layers_and_the_noise_levels_are_not_left_to_it(training_spec, family):
    asked = {"targets": r".*\.to_q", "lr_warmup_steps": 3, "timestep_sampling": TimestepSampling.SHIFTED}
    if family is Family.SDXL:
        asked["timestep_sampling"] = TimestepSampling.UNIFORM
    places = {"model_path": "m", "dataset_dir": "d", "training_dir": "t", "name": "lora", "device": "cpu"}
    (process,) = in_process(training_spec.model_copy(update=asked), family=family, **places)["config"][
        "process"
    ]
    assert process["datasets"][0]["num_repeats"] == training_spec.batch_size
    assert process["train"].get("timestep_type") == ("sigmoid" if family is Family.FLUX else None)
    assert process["train"]["lr_scheduler_params"] == {}


# The stand-in is like the real one, as far as it was recorded


def takes(function):
    kinds = inspect.Parameter
    given = inspect.signature(function).parameters.values()
    return [one.name for one in given if one.kind not in (kinds.VAR_KEYWORD, kinds.VAR_POSITIONAL)]


def test_every_method_we_override_is_recorded_and_the_stand_in_takes_the_same(toolkit):
    known = facts()["trainer"]["methods"]
    ours = process_class(toolkit.trainer, None)
    overridden = {name for name, value in vars(ours).items() if inspect.isfunction(value)}
    assert overridden <= known.keys()
    for name in known.keys() & set(dir(toolkit.trainer)):
        assert takes(getattr(toolkit.trainer, name))[1:] == known[name], name
    assert overridden <= set(dir(toolkit.trainer))


def test_the_stand_in_has_the_names_that_are_recorded(toolkit):
    recorded = facts()
    for module, classes in recorded["classes"].items():
        for name in classes:
            theirs = getattr(sys.modules.get(module), name, None)
            methods = recorded["parameters"].get(module, {})
            for method in methods.keys() & set(dir(theirs)):
                assert takes(getattr(theirs, method)) == methods[method]
    theirs = takes(toolkit.prompts_module.encode_prompts_flux)
    assert theirs == recorded["parameters"]["toolkit.train_tools"]["encode_prompts_flux"]
