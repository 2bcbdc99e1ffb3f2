"""The figures in the model cards are those of the architectures, and the count of activations is one of real storages."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import memory
from isengard.settings import ROOT
from isengard.store.configs import Catalog

CARDS = {card.name: card for card in Catalog(ROOT / "configs").models()}


@pytest.mark.parametrize("name", memory.MODELS)
def test_the_cards_parameters_are_those_of_the_architecture(name):
    parts = CARDS[name].parts.model_dump()
    counted = memory.parameter_counts(memory.MODELS[name]())
    assert {key: parts[key] for key in counted} == counted


def test_the_demo_models_activations_are_those_of_its_card():
    architecture = memory.MODELS["demo"]()
    with memory.as_on_a_gpu():
        kept = memory.training_peak(architecture, 128, checkpointing=False)
    fixed, slope = CARDS["demo"].parts.training
    assert kept / memory.MIB == pytest.approx(fixed + slope * 128**2 / 2**20, rel=0.1)


def test_a_storage_counts_from_its_making_to_its_end():
    with FakeTensorMode(), memory.Peak() as peak:
        first = torch.ones(1024)
        view = first[:10]
        del first
        held = peak.live
        del view
        after = peak.live
    assert (held, after, peak.highest) == (4096, 0, 4096)
