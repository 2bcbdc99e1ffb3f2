"""Real LoRAs of the demo model: one without effect, an over-cooked one and a copying one are named as such, a good one is not.

The files in ``tests/assets/loras`` are written by ``python -m scripts.demo_model loras``.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from isengard.domain.evaluation import Candidate, Fault
from isengard.domain.job import JobKind
from isengard.equipment import equip
from isengard.services.examples import example
from isengard.settings import ASSETS, ROOT, Settings
from isengard.wiring import build
from tests.engines.demo_model import Reports

LORAS = ROOT / "tests" / "assets" / "loras"
pytestmark = pytest.mark.slow
ZERO, GOOD, OVERCOOKED, COPYING = range(1, 5)
QUICK = {"strengths": (1.0,), "num_inference_steps": 4}


@pytest.fixture(scope="module")
def verdict(tmp_path_factory):
    """All four as checkpoints of one training of Nova, compared as the app compares."""
    app = build(Settings(data_dir=tmp_path_factory.mktemp("data"), device="cpu"))
    nova = example(app.characters, ASSETS / "characters" / "nova")
    run = app.training.submit(character_id=nova.id, base_model="demo", preset="quick", overrides={}).id
    app.jobs.cancel(run)
    for step, name in ((GOOD, "good"), (OVERCOOKED, "overcooked"), (COPYING, "copying")):
        shutil.copyfile(LORAS / f"{name}.safetensors", checkpoint(app, run, step))
    good = load_file(LORAS / "good.safetensors")
    zero = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in good.items()}
    save_file(zero, checkpoint(app, run, ZERO))
    spec = app.comparison.plan(run, **QUICK)
    job = app.comparison.submit(spec.model_copy(update={"prompts": spec.prompts[:4]}))
    equip(app.settings, app).handlers[JobKind.EVALUATE_CHECKPOINTS](job, Reports())
    return app.comparison.of_run(run).verdict


def checkpoint(app, run, step):
    path = app.settings.runs_dir / run / "checkpoints" / f"step-{step:08d}" / "lora.safetensors"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("step", "faults"),
    [(ZERO, (Fault.NO_EFFECT,)), (GOOD, ()), (OVERCOOKED, (Fault.OVERCOOKED,)), (COPYING, (Fault.COPYING,))],
    ids=["zero", "good", "overcooked", "copying"],
)
def test_what_is_wrong_with_a_lora_is_named(verdict, step, faults):
    score = next(one for one in verdict.scores if one.candidate.step == step)
    assert score.faults == faults, score


def test_the_only_sound_one_is_recommended(verdict):
    assert verdict.recommended == Candidate(step=GOOD, strength=1.0)
