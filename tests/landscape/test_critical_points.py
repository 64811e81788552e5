"""Searches for critical points against closed forms, and the fit of the 3/2 law."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, hessian

from hessdist.errors import Stopped, WorkloadError
from hessdist.landscape.critical_points import counts, find
from hessdist.landscape.index_energy import (
    fit_three_halves,
    law_against_points,
    least_squares_energy,
    linear_critical_points,
    linear_energy,
    mean_energies,
    minima,
    tanh_energy,
)
from hessdist.workload.models import mlp
from hessdist.workload.two_layer import TwoLayerNetworks

EXACT = {"tolerance": 1e-10, "relative_tolerance": 1e-4}


def networks(
    activation: str, count: int = 3, n: int = 3, hidden: int = 4, outputs: int = 2, samples: int = 7
) -> tuple[TwoLayerNetworks, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    made = TwoLayerNetworks(draw(samples, n), draw(samples, outputs), hidden, activation)  # type: ignore[arg-type]
    return made, 0.7 * draw(made.size)


# -- two-layer networks ----------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_losses_gradients_and_hessians_against_autograd(activation: str) -> None:
    many, theta = networks(activation)
    model = mlp([3, 4, 2], activation, bias=False).double()

    def loss(row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        pieces = {"fc1.weight": row[:12].view(4, 3), "fc2.weight": row[12:].view(2, 4)}
        outputs = functional_call(model, pieces, (inputs,))
        return (outputs - targets).square().sum() / (2 * len(inputs))

    losses, gradients = many.losses_and_gradients(theta)
    matrices = many.hessians(theta)
    for k in range(3):
        data = many.inputs[k], many.targets[k]
        row = theta[k].clone().requires_grad_()
        value = loss(row, *data)
        (slope,) = torch.autograd.grad(value, row)
        assert losses[k] == pytest.approx(float(value.detach()), rel=1e-12)
        torch.testing.assert_close(gradients[k], slope, rtol=1e-11, atol=1e-13)
        expected = hessian(loss)(theta[k], *data)
        torch.testing.assert_close(matrices[k], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_the_mean_eigenvalue_of_gauss_newton(activation: str) -> None:
    """tr(J Jᵀ) / (m d), with J row by row by autograd."""
    many, theta = networks(activation)
    model = mlp([3, 4, 2], activation, bias=False).double()

    def outputs(row: Tensor, inputs: Tensor) -> Tensor:
        pieces = {"fc1.weight": row[:12].view(4, 3), "fc2.weight": row[12:].view(2, 4)}
        return functional_call(model, pieces, (inputs,)).flatten()

    means = many.gauss_newton_means(theta)
    for k in range(3):
        row = theta[k].clone().requires_grad_()
        found = outputs(row, many.inputs[k])
        rows = [torch.autograd.grad(one, row, retain_graph=True)[0] for one in found]
        expected = float(torch.stack(rows).square().sum()) / (7 * 20)
        assert float(means[k]) == pytest.approx(expected, rel=1e-12)


def test_some_of_the_networks_are_as_before() -> None:
    many, theta = networks("tanh")
    some = torch.tensor([2, 0])
    torch.testing.assert_close(many.of(some).hessians(theta[some]), many.hessians(theta)[some])


def test_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(WorkloadError, match="do not fit together"):
        TwoLayerNetworks(torch.zeros(2, 5, 3), torch.zeros(2, 4, 3), 3, "tanh")


# -- the search ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wells:
    """Σ x⁴/4 − x²/2: critical where each x is −1, 0 or 1, with one negative eigenvalue a 0."""

    def losses_and_gradients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return (theta**4 / 4 - theta**2 / 2).sum(1), theta**3 - theta

    def hessians(self, theta: Tensor) -> Tensor:
        return torch.diag_embed(3 * theta**2 - 1)

    def of(self, rows: Tensor) -> Wells:
        return self


@dataclass(frozen=True)
class Flat(Wells):
    """Σ x³/3 + x, without a critical point: the gradient is least at 0, and flat there."""

    def losses_and_gradients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return (theta**3 / 3 + theta).sum(1), theta**2 + 1

    def hessians(self, theta: Tensor) -> Tensor:
        return torch.diag_embed(2 * theta)


@pytest.mark.parametrize("follow_steps", [0, 100])
def test_searches_beyond_a_bound_are_given_up(follow_steps: int) -> None:
    """Without a bound all are found; with one, those whose |θ| passes it are not."""
    generator = torch.Generator().manual_seed(0)
    start = 0.4 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    free = find(Wells(), start, follow_steps=follow_steps, **EXACT)
    bound = find(Wells(), start, follow_steps=follow_steps, largest=0.9, **EXACT)
    assert (free.theta[free.found].abs().amax(1) > 0.9).any()
    assert bound.found.any()
    assert (bound.theta[bound.found].abs().amax(1) <= 0.9).all()
    assert not bound.found[bound.theta.abs().amax(1) > 0.9].any()
    assert int(bound.steps.sum()) < int(free.steps.sum())


@pytest.mark.parametrize("follow_steps", [0, 100])
def test_saddles_of_every_index(follow_steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start = 1.5 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    points = find(Wells(), start, follow_steps=follow_steps, **EXACT)
    assert points.found.float().mean() > 0.9
    theta = points.theta[points.found]
    rounded = theta.round().clamp(-1, 1)
    torch.testing.assert_close(theta, rounded, rtol=0, atol=1e-9)
    negative, zero = counts(torch.linalg.eigvalsh(Wells().hessians(theta)), 1e-6)
    assert torch.equal(negative, (rounded == 0).sum(1))
    assert set(negative.tolist()) == {0, 1, 2, 3}
    assert not zero.any()
    value = (rounded == 0).sum(1) / 4 - 0.75
    torch.testing.assert_close(points.value[points.found], value.double())


def test_a_start_is_led_to_its_own_index() -> None:
    """The first stage climbs along as many directions as are negative at the start."""
    start = torch.tensor([[0.4, 0.3, 2.0], [0.1, 0.9, 0.8]], dtype=torch.float64)
    points = find(Wells(), start, steps=0, follow_steps=60, **EXACT)
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(points.theta, expected, rtol=0, atol=1e-5)


def test_where_the_gradient_is_merely_least_is_no_critical_point() -> None:
    start = torch.tensor([[0.5, -0.3], [1.0, 2.0]], dtype=torch.float64)
    points = find(Flat(), start, **EXACT)
    assert not points.found.any()
    assert (points.gradient_norm > 1).all()


def test_both_tolerances_hold() -> None:
    start = torch.tensor([[1.001, 0.999, 1.002]], dtype=torch.float64)
    loose = find(Wells(), start, tolerance=1.0, relative_tolerance=1.0)
    assert loose.steps.item() == 0
    for given in ((1e-4, 1.0), (1.0, 1e-2)):
        points = find(Wells(), start, tolerance=given[0], relative_tolerance=given[1])
        assert points.found.all()
        assert points.gradient_norm <= min(given[0], given[1] * points.start_norm)
        assert points.steps.item() > 0


def test_a_signal_ends_the_search() -> None:
    def stop() -> None:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        find(Wells(), torch.full((1, 2), 0.3, dtype=torch.float64), on_step=stop, **EXACT)


def test_numbers_of_eigenvalues() -> None:
    values = torch.tensor([[-2.0, -1e-7, 0.0, 1e-5, 4.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    negative, zero = counts(values, 1e-6)
    assert negative.tolist() == [1, 0]
    assert zero.tolist() == [2, 5]


# -- linear networks -------------------------------------------------------------------------


def test_closed_form_indices_against_dense_hessians() -> None:
    """Points made of singular vectors: critical, and with as many negative eigenvalues."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((12, 4))
    hidden = 2
    root, orthonormal = np.linalg.cholesky(x.T @ x / 12), np.linalg.qr(x)[0]
    u, s, vt = np.linalg.svd((y.T @ x / 12) @ np.linalg.inv(root).T, full_matrices=False)
    assert s == pytest.approx(np.linalg.svd(y.T @ orthonormal, compute_uv=False) / 12**0.5)
    one = TwoLayerNetworks(torch.from_numpy(x)[None], torch.from_numpy(y)[None], hidden, "identity")
    found = []
    for fitted in range(hidden + 1):
        for chosen in combinations(range(3), fitted):
            first, second = np.zeros((hidden, 3)), np.zeros((4, hidden))
            rows = list(chosen)
            second[:, :fitted] = u[:, rows]
            first[:fitted] = (np.diag(s[rows]) @ vt[rows]) @ np.linalg.inv(root)
            theta = torch.from_numpy(np.concatenate([first.ravel(), second.ravel()]))[None]
            loss, gradient = one.losses_and_gradients(theta)
            assert gradient.norm() < 1e-12
            negative, _ = counts(torch.linalg.eigvalsh(one.hessians(theta)), 1e-9)
            found.append((float(loss) / 4, int(negative), fitted))
    expected = linear_critical_points(x, y, hidden)
    found.sort()
    assert [energy for energy, *_ in found] == pytest.approx(list(expected.energy), rel=1e-12)
    assert [negative for _, negative, _ in found] == expected.negative.tolist()
    assert [fitted for *_, fitted in found] == expected.fitted.tolist()


@pytest.mark.parametrize("hidden", [3, 2])
def test_searches_of_linear_networks_find_no_other_energy(hidden: int) -> None:
    many, theta = networks("identity", count=30, n=3, hidden=hidden, outputs=3, samples=9)
    points = find(many, theta, **EXACT)
    assert points.found.float().mean() > 0.8
    negative, _ = counts(torch.linalg.eigvalsh(many.hessians(points.theta)), 1e-7)
    right = 0
    for k in torch.nonzero(points.found)[:, 0].tolist():
        known = linear_critical_points(many.inputs[k].numpy(), many.targets[k].numpy(), hidden)
        distances = np.abs(known.energy - float(points.value[k]) / 3)
        assert distances.min() < 1e-9
        right += int(negative[k]) == known.negative[distances.argmin()]
    assert right >= 0.9 * int(points.found.sum())  # a null space of large weights may hide some
    assert negative[points.found].max() > 0


def test_the_global_minimum_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 3))
    residual = np.linalg.lstsq(x, y, rcond=None)[1].sum()
    known = linear_critical_points(x, y, 3)
    assert known.energy[0] == pytest.approx(residual / (2 * 20 * 3), rel=1e-12)
    assert known.negative[0] == 0
    assert known.energy[-1] == pytest.approx((y**2).sum() / (2 * 20 * 3), rel=1e-12)
    assert known.negative[-1] == 9


def test_least_squares_energy_on_average() -> None:
    """m = 2h/φ = 12 samples of n = 3 inputs leave 3/4 of the variance, in the mean over data."""
    rng = np.random.default_rng(0)
    left = []
    for _ in range(300):
        x, y = rng.standard_normal((12, 3)), rng.standard_normal((12, 3))
        left.append(linear_critical_points(x, y, 4).energy[0])
    expected = least_squares_energy(np.array([8 / 12]), 3, 4)[0]
    assert expected == pytest.approx(0.375)
    assert np.mean(left) == pytest.approx(expected, abs=5 * np.std(left) / 300**0.5)


# -- the fit ---------------------------------------------------------------------------------


def test_mean_energies_by_index() -> None:
    index = np.array([0.1, 0.0, 0.1, 0.2, 0.0])
    means = mean_energies(index, np.array([3.0, 1.0, 5.0, 6.0, 2.0]))
    assert means.index.tolist() == [0.0, 0.1, 0.2]
    assert means.energy.tolist() == [1.5, 4.0, 6.0]
    assert means.points.tolist() == [2, 2, 1]
    spread = ((0.5**2 * 2 + 2) / 2) ** 0.5  # two degrees of freedom are left of five points
    assert means.error == pytest.approx([spread / 2**0.5, spread / 2**0.5, spread])
    assert np.isnan(mean_energies(np.array([0.0, 0.1]), np.ones(2)).error).all()


def test_the_law_is_found_again() -> None:
    rng = np.random.default_rng(0)
    index = np.repeat(np.arange(8) / 80, 40)
    critical, coefficient = 0.3, 0.4
    energy = critical * (1 + (index / coefficient) ** (2 / 3)) + 0.01 * rng.standard_normal(320)
    fit = fit_three_halves(index, energy, 0.1)
    assert fit.critical_energy == pytest.approx(critical, abs=4 * fit.critical_energy_error)
    assert fit.coefficient == pytest.approx(coefficient, abs=4 * fit.coefficient_error)
    assert fit.exponent == pytest.approx(1.5, abs=4 * fit.exponent_error)
    assert 0.1 < fit.misfit < 3
    assert 0 < fit.critical_energy_error < 0.003
    assert 0 < fit.coefficient_error < 0.1
    assert (fit.indices, fit.points) == (8, 320)
    assert fit_three_halves(index, energy, 0.05).indices == 5


def test_errors_are_no_smaller_than_the_misfit() -> None:
    """Where the 3/2 law does not hold, its errors grow with χ²: from the scatter of the means."""
    index = np.repeat(np.arange(8) / 80, 40)
    noise = np.tile([-0.001, 0.001], 160)
    bent = fit_three_halves(index, 0.3 + index**2 + noise, 0.1)
    held = fit_three_halves(index, 0.3 + index ** (2 / 3) + noise, 0.1)
    assert held.misfit < 1 < 10 < bent.misfit
    ratio = bent.critical_energy_error / held.critical_energy_error
    assert ratio == pytest.approx(bent.misfit**0.5, rel=1e-6)


def test_too_few_points_make_no_fit() -> None:
    index = np.repeat([0.0, 0.1, 0.2], 10)
    fit = fit_three_halves(index, np.linspace(0, 1, 30), 0.5)
    assert np.isnan([fit.critical_energy, fit.coefficient, fit.exponent, fit.misfit]).all()
    assert (fit.indices, fit.points) == (3, 30)
    few = fit_three_halves(np.arange(11) / 20, np.linspace(0, 1, 11), 1.0)
    assert np.isnan(few.critical_energy)
    assert few.points == 11


def test_a_falling_energy_has_no_coefficient() -> None:
    index = np.repeat(np.arange(5) / 50, 10)
    noise = np.tile([-0.01, 0.01], 25)
    fit = fit_three_halves(index, 0.5 - index + noise, 0.5)
    assert np.isfinite(fit.critical_energy)
    assert np.isnan(fit.coefficient)


def test_closed_forms_of_figure_6() -> None:
    ratio = np.array([0.0, 0.5, 1.0, 2.0])
    assert tanh_energy(ratio).tolist() == [0.5, 0.125, 0.0, 0.0]
    assert linear_energy(ratio).tolist() == [0.5, 0.25, 0.0, 0.0]
    assert least_squares_energy(ratio, 3, 3).tolist() == [0.5, 0.375, 0.25, 0.0]


def test_minima_are_averaged_by_themselves() -> None:
    index = np.array([0.0, 0.0, 0.0, 0.5])
    found = minima(index, np.array([1.0, 2.0, 3.0, 9.0]))
    assert (found.points, found.energy) == (3, 2.0)
    assert found.error == pytest.approx(1 / 3**0.5)
    assert np.isnan(minima(index[3:], np.array([9.0])).energy)
    assert np.isnan(minima(index[:1], np.array([9.0])).error)


def test_a_law_against_points_in_their_own_units() -> None:
    """ε_c = 0.1: in units of σ² = 4 the second point is below it, and in units of 1 above."""
    index, energy = np.array([0.0, 0.0, 0.2, 0.3]), np.array([0.5, 0.3, 0.2, 0.8])
    scale = np.array([2.0, 2.0, 2.0, 1.0])
    found = law_against_points(index, energy, scale, 0.1, np.array([0.1, 0.0, 0.0, np.nan]))
    assert (found.minima, found.minima_above) == (2, 1)
    assert (found.saddles, found.saddles_below) == (2, 1)
    assert found.energy == pytest.approx(np.median([0.125, 0.075, 0.05, 0.8]))
    assert found.index == pytest.approx(0.2 / 3)
    assert found.predicted == pytest.approx(0.1 / 3)
