"""The neighbour weights of EGL++: perplexity, offsets, the published code's quirks, exact bisection."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from misfire_train.scores import ScoreError
from misfire_train.scores.neighbours import Neighbours, bandwidth, squared_distances


def gaussian(count: int, dims: int, *, offset: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dims, generator=generator, dtype=torch.float64) + offset


def perplexity_of(weights: Tensor) -> Tensor:
    return torch.exp(-(weights * torch.log(weights.clamp_min(1e-300))).sum(1))


def published_weights(distances: Tensor, sigma: Tensor) -> Tensor:
    """What the published code computes: no row minimum, every weight clamped at 1e-20."""
    raw = torch.exp(-distances / (2 * sigma.square())).clamp(1e-20, 1)
    return raw / raw.sum(1, keepdim=True)


@pytest.mark.parametrize("offset", [0.0, 5.0, 10.0, 20.0])
def test_pitfall_14_perplexity_is_met_for_every_offset(offset: float) -> None:
    bank, query = gaussian(500, 256, offset=offset), gaussian(50, 256, seed=1)
    gaps = squared_distances(query, bank)
    gaps = gaps - gaps.amin(1, keepdim=True)
    log_variance = bandwidth(gaps, entropy_nats=math.log(20))
    q = torch.softmax(-gaps * torch.exp(-log_variance) / 2, 1)
    torch.testing.assert_close(
        perplexity_of(q), torch.full((50,), 20.0, dtype=torch.float64), rtol=5e-4, atol=0
    )


def test_pitfall_14_without_the_row_minimum_weights_clamp_to_uniform() -> None:
    bank, query = gaussian(500, 256), gaussian(50, 256, offset=5.0, seed=1)
    distances = squared_distances(query, bank)
    gaps = distances - distances.amin(1, keepdim=True)
    sigma = torch.exp(bandwidth(gaps, entropy_nats=math.log(20)) / 2)
    uniform = published_weights(distances, sigma)
    torch.testing.assert_close(uniform, torch.full_like(uniform, 1 / 500))
    ours = torch.softmax(-gaps / (2 * sigma.square()), 1)
    torch.testing.assert_close(
        perplexity_of(ours), torch.full((50,), 20.0, dtype=torch.float64), rtol=5e-4, atol=0
    )


def test_pitfall_14_the_published_perplexity_of_20_means_75() -> None:
    bank = Neighbours(gaussian(500, 16), perplexity=20, reference_compat=True)
    gaps = squared_distances(gaussian(50, 16, seed=1), bank.bank)
    gaps = gaps - gaps.amin(1, keepdim=True)
    q = torch.softmax(-gaps * torch.exp(-bandwidth(gaps, entropy_nats=bank.entropy_nats)) / 2, 1)
    effective = perplexity_of(q)
    torch.testing.assert_close(
        effective, torch.full_like(effective, 20 ** (1 / math.log(2))), rtol=1e-3, atol=0
    )
    assert float(effective.mean()) == pytest.approx(75.33, abs=0.1)


def test_pitfall_14_top_30_loses_mass_only_in_reference_compat() -> None:
    query = gaussian(50, 16, seed=1)
    _, ours, _ = Neighbours(gaussian(500, 16), perplexity=20)(query)
    _, reference, _ = Neighbours(gaussian(500, 16), perplexity=20, reference_compat=True)(query)
    torch.testing.assert_close(ours.sum(1), torch.ones(50, dtype=torch.float64))
    assert reference.shape == (50, 30)
    assert float(reference.sum(1).max()) < 0.9
    everything = Neighbours(gaussian(500, 16), perplexity=20, reference_compat=True)
    everything.kept = 500
    torch.testing.assert_close(everything(query)[1].sum(1), torch.ones(50, dtype=torch.float64))


def test_candidates_are_three_times_the_perplexity_and_meet_it() -> None:
    places, weights, nearest = Neighbours(gaussian(500, 16), perplexity=10)(gaussian(50, 16, seed=1))
    assert places.shape == weights.shape == (50, 30)
    torch.testing.assert_close(
        perplexity_of(weights), torch.full((50,), 10.0, dtype=torch.float64), rtol=5e-4, atol=0
    )
    assert bool((weights[:, :-1] >= weights[:, 1:]).all()), "nearest first"
    exact = torch.cdist(gaussian(50, 16, seed=1), gaussian(500, 16)).square().amin(1)
    torch.testing.assert_close(nearest, exact)


def test_fixed_sigma_is_the_median_of_the_searched_ones() -> None:
    data = gaussian(400, 8)
    fixed = Neighbours(data, perplexity=10, sigma="auto")
    assert fixed.sigma is not None
    assert float(fixed.sigma) == pytest.approx(fixed.median_sigma(), rel=1e-9)
    _, weights, _ = fixed(gaussian(200, 8, seed=1))
    assert 7 < float(perplexity_of(weights).median()) < 14


def test_equal_distances_give_equal_weights_and_no_nan() -> None:
    bank = torch.zeros(9, 4, dtype=torch.float64)
    _, weights, nearest = Neighbours(bank, perplexity=2)(torch.ones(2, 4, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))
    assert torch.isfinite(nearest).all()


def test_a_member_of_the_bank_is_its_own_nearest() -> None:
    data = gaussian(60, 8)
    places, _, nearest = Neighbours(data, perplexity=5)(data[:7])
    assert places[:, 0].tolist() == list(range(7))
    assert float(nearest.max()) < 1e-12


def test_weights_are_blind_to_distance_and_the_nearest_distance_is_not() -> None:
    bank = Neighbours(gaussian(300, 8), perplexity=5)
    direction = gaussian(1, 8, seed=2)
    _, near, close = bank(direction)
    _, far, away = bank(direction * 30)
    assert float(away) > 100 * float(close)
    assert abs(float(perplexity_of(near)) - float(perplexity_of(far))) < 0.1


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (2, {}, "at least 3 rows"),
        (10, {"perplexity": 20}, "bank of at least 21 samples, got 10"),
        (50, {"perplexity": 20, "reference_compat": True}, "at least 76 samples, got 50"),
        (50, {"perplexity": 1.0}, "perplexity 1.0"),
        (50, {"sigma": -1.0}, "sigma is -1.0"),
    ],
)
def test_unusable_banks_and_options_say_why(rows: int, options: dict[str, float], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        Neighbours(gaussian(rows, 4), **options)  # type: ignore[arg-type]
