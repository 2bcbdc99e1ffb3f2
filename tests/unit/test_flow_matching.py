import math

import pytest
import torch

from isengard.domain.training import LossWeighting, TimestepSampling
from isengard.engines.native.flow_matching import (
    add_noise,
    draw_sigmas,
    loss_weights,
    resolution_shift,
    velocity,
)


def test_noise_level_zero_is_clean_and_one_is_noise():
    clean, noise = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    noisy = add_noise(clean, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(noisy[0], clean[0])
    assert torch.equal(noisy[1], noise[1])


def test_the_velocity_is_the_derivative_of_the_noisy_latents():
    clean, noise = torch.randn(1, 4, 8).double(), torch.randn(1, 4, 8).double()
    here, there = (
        add_noise(clean, noise, torch.tensor([sigma], dtype=torch.float64)) for sigma in (0.3, 0.301)
    )
    torch.testing.assert_close((there - here) / 0.001, velocity(clean, noise))


@pytest.mark.parametrize("sampling", TimestepSampling)
def test_noise_levels_lie_between_the_ends_and_repeat_with_the_seed(sampling):
    draws = [
        draw_sigmas(4096, sampling=sampling, tokens=1024, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    ]
    assert torch.equal(*draws)
    assert 0 < draws[0].min() < draws[0].max() < 1


def test_each_sampling_has_its_own_distribution():
    means = {
        sampling: draw_sigmas(
            40_000, sampling=sampling, tokens=4096, generator=torch.Generator().manual_seed(0)
        )
        for sampling in TimestepSampling
    }
    assert means[TimestepSampling.UNIFORM].std().item() == pytest.approx(12**-0.5, abs=0.01)
    assert means[TimestepSampling.SIGMOID].std().item() == pytest.approx(0.208, abs=0.01)
    assert means[TimestepSampling.SIGMOID].median().item() == pytest.approx(0.5, abs=0.01)
    shift = math.exp(1.15)  # moves the median from 1/2 to shift / (1 + shift)
    assert means[TimestepSampling.SHIFTED].median().item() == pytest.approx(shift / (1 + shift), abs=0.01)


def test_the_shift_is_that_of_flux_at_256_and_1024_pixels():
    assert resolution_shift(256) == pytest.approx(math.exp(0.5))
    assert resolution_shift(4096) == pytest.approx(math.exp(1.15))


def test_weights_are_those_of_the_paper():
    sigma = torch.tensor([0.5, 1.0])
    assert loss_weights(sigma, weighting=LossWeighting.NONE).tolist() == [1, 1]
    assert loss_weights(sigma, weighting=LossWeighting.SIGMA_SQRT).tolist() == [4, 1]
    assert loss_weights(sigma, weighting=LossWeighting.COSMAP).tolist() == pytest.approx(
        [4 / math.pi, 2 / math.pi]
    )


def test_no_weight_is_infinite():
    for weighting in LossWeighting:
        assert loss_weights(torch.tensor([0.0, 1.0]), weighting=weighting).isfinite().all()
