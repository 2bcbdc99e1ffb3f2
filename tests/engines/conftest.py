import gc

import pytest
import torch

from isengard.engines.pipelines.generator import PipelineGenerator


@pytest.fixture(scope="module")
def generator():
    """One for the tests of a module, which keeps its pipeline warm between them."""
    made = PipelineGenerator(device=torch.device("cpu"))
    yield made
    made.unload()
    gc.collect()
