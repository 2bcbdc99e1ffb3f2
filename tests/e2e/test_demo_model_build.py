"""The demo model is built from nothing, in miniature: every stage runs, is resumed, and the result is a pipeline."""

import json

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file
from typer.testing import CliRunner

from isengard.engines.drawn_figures import FigureEncoder
from scripts.demo_model.__main__ import app
from scripts.demo_model.stage import Stage


@pytest.mark.slow
def test_a_miniature_build_gives_a_pipeline_an_encoder_and_a_report(tmp_path):
    options = ["build", "--build", str(tmp_path), "--device", "cpu", "--effort", "0.0002", "--people", "32"]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert "PSNR" in result.output
    pipe = FluxPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    images = pipe(
        "a person", height=128, width=128, num_inference_steps=2, max_sequence_length=40, output_type="np"
    ).images
    assert images.shape == (1, 128, 128, 3)
    FigureEncoder().load_state_dict(load_file(tmp_path / "figure-encoder.safetensors"))
    assert json.loads((tmp_path / "about.json").read_text())["psnr"] > 0


class Counter:
    """A training whose state is a list of the steps it took."""

    def __init__(self):
        self.steps = []

    def step(self, number):
        if number == self.dies_at:
            raise KeyboardInterrupt
        self.steps.append(number)
        return {"loss": torch.tensor(1.0)}

    def state_dict(self):
        return {"steps": list(self.steps)}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])


def test_a_killed_stage_goes_on_from_its_last_state(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.demo_model.stage.SAVE_EVERY_S", 0)
    killed, resumed = Counter(), Counter()
    killed.dies_at, resumed.dies_at = 5, None
    with pytest.raises(KeyboardInterrupt):
        Stage("counting", tmp_path, 9).run({"counter": killed}, killed.step)
    Stage("counting", tmp_path, 9).run({"counter": resumed}, resumed.step)
    assert resumed.steps == list(range(9))
    finished = Counter()
    Stage("counting", tmp_path, 9).run({"counter": finished}, finished.step)
    assert finished.steps == resumed.steps
