"""A LoRA that works is proven to; one that does not is told so with its own reason."""

import gc
import re

import pytest
import torch
from PIL import Image

from isengard.domain.job import Phase
from isengard.engines.pipelines.generator import PipelineGenerator
from isengard.engines.pipelines.verifier import PipelineVerifier
from isengard.errors import JobCancelled, VerificationFailed
from tests.engines.demo_model import MODEL, Reports, lora_weights, write_lora


@pytest.fixture(scope="module")
def verifier():
    generator = PipelineGenerator(device=torch.device("cpu"))
    yield PipelineVerifier(generator=generator)
    generator.unload()
    gc.collect()


@pytest.fixture
def verify(verifier, tmp_path):
    def verified(weights, report=None):
        return verifier.verify(
            model=MODEL,
            lora=write_lora(tmp_path / "lora.safetensors", weights),
            prompt="a portrait",
            out_dir=tmp_path / "proof",
            resolution=64,
            steps=2,
            report=Reports() if report is None else report,
        )

    return verified


def test_a_good_lora_passes_and_leaves_two_pictures(verify, tmp_path):
    weights = lora_weights()
    reports = Reports()
    found = verify(weights, reports)
    expected = sum(
        float(torch.linalg.matrix_norm(up @ weights[key.replace("lora_B", "lora_A")])) ** 2
        for key, up in weights.items()
        if "lora_B" in key
    )
    assert found.modules == len(weights) // 2
    assert found.delta_norm == pytest.approx(expected**0.5, rel=1e-4)
    assert found.image_difference > 0
    assert sorted(path.name for path in (tmp_path / "proof").iterdir()) == ["after.png", "before.png"]
    with Image.open(tmp_path / "proof" / "after.png") as image:
        assert image.size == (64, 64)
    assert {progress.phase for progress in reports} == {Phase.VERIFYING}
    assert [progress.step for progress in reports if progress.message.startswith("image")] == [1, 2, 3, 4]


def test_a_lora_of_zeros_is_told(verify):
    weights = {key: tensor * ("lora_A" in key) for key, tensor in lora_weights().items()}
    with pytest.raises(VerificationFailed, match="every weight delta of the LoRA is zero"):
        verify(weights)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_told_with_its_place(verify, value):
    weights = lora_weights()
    key = sorted(weights)[3]
    weights[key][0, 0] = value
    module = key.removeprefix("transformer.").removesuffix(".weight")
    with pytest.raises(VerificationFailed, match=f"not numbers in {re.escape(module)};"):
        verify(weights)


def test_a_missing_key_is_told(verify):
    weights = lora_weights()
    del weights["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"]
    with pytest.raises(VerificationFailed, match=r"to_q\.lora_B is missing"):
        verify(weights)


def test_an_extra_key_is_told(verify):
    extra = {"transformer.transformer_blocks.0.attn.to_q.bias": torch.zeros(1)}
    with pytest.raises(VerificationFailed, match="is no part of a LoRA"):
        verify(lora_weights() | extra)


def test_a_lora_of_another_model_is_told(verify):
    weights = {key.replace("blocks.0.", "blocks.30."): tensor for key, tensor in lora_weights().items()}
    with pytest.raises(VerificationFailed, match="Demo: the model has no layer"):
        verify(weights)


def test_a_lora_too_faint_to_see_is_told(verify):
    weights = {key: tensor * 1e-6 for key, tensor in lora_weights().items()}
    with pytest.raises(VerificationFailed, match="equals the one without it"):
        verify(weights)


def test_a_stop_passes_through(verify, tmp_path):
    with pytest.raises(JobCancelled):
        verify(
            lora_weights(),
            Reports(JobCancelled(), lambda progress: progress.step == 3 and progress.total == 4),
        )
    assert [path.name for path in (tmp_path / "proof").iterdir()] == ["before.png"]
