"""SWAG: its moments against those of what was collected, its samples against its Gaussian."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hessdist.optimizers.swag import SWAG

SHAPES = (2, 2), (1,)


def collected(rank: int = 4, count: int = 9, offset: float = 0.0) -> tuple[SWAG, np.ndarray]:
    """Random weights, (count, 5), and what SWAG makes of them."""
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    weights = torch.randn(count, 5, generator=torch.Generator().manual_seed(0)).double() + offset
    swag = SWAG(parameters, rank)
    for row in weights:
        parameters[0].data, parameters[1].data = row[:4].view(2, 2).clone(), row[4:].clone()
        swag.collect()
    return swag, weights.numpy()


def flat(tensors: list[Tensor]) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


def covariance(weights: np.ndarray, rank: int) -> np.ndarray:
    """½ (Σ_diag + Σ_low-rank) by the formulas of section 3.2 and 3.3 of the paper."""
    means = np.cumsum(weights, 0) / np.arange(1, len(weights) + 1)[:, None]
    diagonal = np.diag((weights**2).mean(0) - means[-1] ** 2)
    deviations = (weights - means)[-rank:].T
    return (diagonal + deviations @ deviations.T / (deviations.shape[1] - 1)) / 2


def test_moments_against_their_formulas() -> None:
    swag, weights = collected()
    assert swag.count == 9
    assert flat(swag.mean) == pytest.approx(weights.mean(0), rel=1e-12)
    assert flat(swag.variances) == pytest.approx(weights.var(0), rel=1e-12)
    means = np.cumsum(weights, 0) / np.arange(1, 10)[:, None]
    found = np.array([flat(column) for column in swag.deviations])
    assert found == pytest.approx((weights - means)[-4:], abs=1e-14)


def test_variances_do_not_cancel() -> None:
    swag, weights = collected(offset=1e8)
    assert flat(swag.variances) == pytest.approx(weights.var(0), rel=1e-6)


def test_the_mean_is_that_of_weight_averaging() -> None:
    model = nn.Linear(3, 2).double()
    swa, swag = AveragedModel(model), SWAG(model.parameters(), 3)
    for _ in range(5):
        for p in model.parameters():
            p.data.normal_()
        swa.update_parameters(model)
        swag.collect()
    assert flat(swag.mean) == pytest.approx(flat(list(swa.module.parameters())), rel=1e-12)


@pytest.mark.parametrize("rank", [2, 20])
def test_samples_have_its_mean_and_covariance(rank: int) -> None:
    swag, weights = collected(rank)
    generator, count = torch.Generator().manual_seed(1), 4_000
    drawn = np.array([flat(swag.sample(generator)) for _ in range(count)])
    expected = covariance(weights, rank)
    scale = np.sqrt(np.diag(expected))
    assert np.abs((drawn.mean(0) - weights.mean(0)) / scale).max() < 5 / np.sqrt(count)
    # The standard error of a covariance of Gaussians, in units of the standard deviations.
    found = np.cov(drawn.T)
    assert (np.abs(found - expected) / np.outer(scale, scale)).max() < 5 * np.sqrt(2 / count)


def test_the_state_gives_the_same_samples() -> None:
    swag, _ = collected()
    file = io.BytesIO()
    torch.save(swag.state_dict(), file)
    file.seek(0)
    other = SWAG([torch.ones(shape, dtype=torch.float64) for shape in SHAPES], 4)
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (swag, other):
        one.collect()
    assert other.count == 10
    draws = [flat(one.sample(torch.Generator().manual_seed(2))) for one in (swag, swag)]
    assert np.array_equal(*draws)
    deviations = [flat(one.deviations[0]) for one in (swag, other)]
    assert np.array_equal(*deviations)


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="two deviations"):
        SWAG([torch.zeros(1)], 1)
    swag, _ = collected(count=1)
    with pytest.raises(ValueError, match="two collected weights"):
        swag.sample(torch.Generator())
    with pytest.raises(ValueError, match="other shapes"):
        SWAG([torch.zeros(3)], 4).load_state_dict(swag.state_dict())
