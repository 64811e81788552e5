"""Paths between two points, on losses whose paths are known, and between copies of a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import known_loss
from torch import Tensor, nn

from hessdist.errors import NumericalError
from hessdist.landscape.bezier import bernstein, bezier, train_curve
from hessdist.landscape.elastic_band import forces, relax_band, tangents
from hessdist.landscape.null_walk import walk
from hessdist.landscape.paths import Moves, along, barrier, length, straight
from hessdist.optimizers.ensemble import Ensemble, on_sphere
from hessdist.workload.datasets import blobs
from hessdist.workload.models import mlp


def double(values: list[list[float]] | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_wells(points: Tensor) -> tuple[Tensor, Tensor]:
    """Minima at (±1, 0); the valley between them is y = 1 − x², and its pass (0, 1) has loss 1."""
    points = points.detach().requires_grad_()
    x, y = points.T
    losses = (x**2 - 1) ** 2 + 2 * (y - 1 + x**2) ** 2
    (slopes,) = torch.autograd.grad(losses.sum(), points)
    return losses.detach(), slopes


WELLS = double([-1, 0]), double([1, 0])


# -- geometry --------------------------------------------------------------------------------


def test_points_on_a_path_of_straight_pieces() -> None:
    corners = double([[0, 0], [3, 0], [3, 0], [3, 1]])
    found = along(corners, double([0, 0.25, 0.75, 0.875, 1]))
    assert torch.equal(found, double([[0, 0], [1, 0], [3, 0], [3, 0.5], [3, 1]]))
    assert length(corners) == 4
    assert torch.equal(along(corners[:1].expand(3, 2), double([0, 0.5, 1])), corners[[0, 0, 0]])


def test_the_ends_of_a_line_are_the_points_themselves() -> None:
    first, second = torch.randn(2, 50, dtype=torch.float64)
    found = straight(first, second, torch.linspace(0, 1, 7, dtype=torch.float64))
    assert torch.equal(found[[0, -1]], torch.stack([first, second]))
    assert found[2].numpy() == pytest.approx((2 * first / 3 + second / 3).numpy())


def test_a_barrier_is_above_the_line_of_the_ends() -> None:
    fractions = np.linspace(0, 1, 5)
    assert barrier(np.array([1, 2, 3, 4, 5.0]), fractions) == 0
    losses = np.array([[1, 4, 3, 4, 5.0], [0, -1, -1, -1, 0], [0, 1, np.nan, 1, 0]])
    assert barrier(losses, fractions) == pytest.approx([2, 0, np.nan], nan_ok=True)


# -- curves ----------------------------------------------------------------------------------


def test_a_curve_has_the_weights_of_bernstein() -> None:
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    assert bernstein(3, t).sum(1).numpy() == pytest.approx(np.ones(9))
    a, c, b = torch.randn(3, 4, dtype=torch.float64)
    found = bezier(torch.stack([a, c, b]), t)
    s = t[:, None]
    assert found.numpy() == pytest.approx(
        ((1 - s) ** 2 * a + 2 * s * (1 - s) * c + s**2 * b).numpy()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_best_curve_on_a_quadratic_is_known(dtype: torch.dtype) -> None:
    """The mean of φᵀAφ / 2 over t is least for the control point −3 (θ₁ + θ₂) / 4."""
    curvature = torch.tensor([3.0, 1.0, 0.3], dtype=dtype)
    first, second = torch.tensor([[1, 2, 3], [2, -1, 0.5]], dtype=dtype)

    def gradients(points: Tensor) -> tuple[Tensor, Tensor]:
        return (curvature * points**2).sum(1) / 2, curvature * points

    kept: list[int] = []
    moves = Moves(300, 0.5)
    found = train_curve(first, second, gradients, moves, samples=16, on_step=kept.append)
    assert torch.equal(found[[0, 2]], torch.stack([first, second]))
    assert found[1].numpy() == pytest.approx((-0.75 * (first + second)).numpy(), abs=0.02)
    assert kept == list(range(1, 301))
    moves = Moves(5, 0.5)
    found, again = (train_curve(first, second, gradients, moves) for _ in range(2))
    other = train_curve(first, second, gradients, moves, seed=1)
    assert torch.equal(again, found)
    assert not torch.equal(other, found)


def test_a_curve_goes_through_the_valley() -> None:
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    controls = train_curve(*WELLS, two_wells, Moves(300, 0.02))
    on_curve, on_line = (
        two_wells(p)[0].numpy() for p in (bezier(controls, t), straight(*WELLS, t))
    )
    assert barrier(on_line, t.numpy()) == pytest.approx(3)  # 1 + 2 (1 − 0)² in the middle
    assert barrier(on_curve, t.numpy()) == pytest.approx(1, abs=0.01)  # the pass
    two = train_curve(*WELLS, two_wells, Moves(300, 0.02), bends=2)
    assert two.shape == (4, 2)
    means = [float(two_wells(bezier(one, t))[0].mean()) for one in (controls, two)]
    assert means[1] < means[0] - 0.01  # which is what is trained


def test_a_step_that_is_too_large_is_refused() -> None:
    with pytest.raises(NumericalError, match="control point of the curve is not finite"):
        train_curve(*WELLS, two_wells, Moves(200, 9.0))
    with pytest.raises(NumericalError, match="pivot of the elastic band is not finite"):
        relax_band(*WELLS, two_wells, Moves(200, 9.0))


# -- bands -----------------------------------------------------------------------------------


def test_a_band_finds_the_pass() -> None:
    """Its middle pivot comes to the pass, where the loss is 1, and no force is left across it."""
    kept: list[int] = []
    band = relax_band(*WELLS, two_wells, Moves(200, 0.02), pivots=9, on_step=kept.append)
    assert torch.equal(band[[0, -1]], torch.stack(WELLS))
    losses, slopes = two_wells(band)
    assert float(losses.max()) == pytest.approx(1, abs=1e-6)
    assert band[5].numpy() == pytest.approx([0, 1], abs=1e-3)
    assert float(forces(band, losses, slopes[1:-1]).norm(dim=1).max()) < 0.05
    sizes = (band[1:] - band[:-1]).norm(dim=1)
    assert float(sizes.max() / sizes.min()) == pytest.approx(1)
    assert kept == list(range(1, 201))


def test_directions_point_to_the_higher_neighbour() -> None:
    band = double([[0, 0], [1, 0], [1, 1], [2, 1], [2, 3]])
    rising = tangents(band, double([0, 1, 2, 3, 4]))
    assert torch.equal(rising, double([[0, 1], [1, 0], [0, 1]]))
    falling = tangents(band, double([4, 3, 2, 1, 0]))
    assert torch.equal(falling, double([[1, 0], [0, 1], [1, 0]]))
    # A minimum with rises of 1 before and 3 after it: weights 1 and 3; a maximum with 3 and 1.
    low = tangents(band[:3], double([1, 0, 3]))[0]
    high = tangents(band[:3], double([0, 3, 2]))[0]
    assert low.numpy() == pytest.approx(np.array([1, 3]) / 10**0.5)
    assert high.numpy() == pytest.approx(np.array([1, 3]) / 10**0.5)
    level = tangents(band[:3], double([1, 1, 1]))[0]
    assert level.numpy() == pytest.approx(np.array([1, 1]) / 2**0.5)
    assert torch.equal(tangents(band[[0, 0, 0]], double([0, 1, 2])), double([[0, 0]]))


def test_forces_are_across_the_band() -> None:
    band = double([[0, 0], [1, 0], [4, 0]])
    force = forces(band, double([0, 1, 2]), double([[5, 7]]))
    assert torch.equal(force, double([[0, -7]]))


# -- walks -----------------------------------------------------------------------------------


def test_a_walk_covers_what_lies_in_the_null_space() -> None:
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    curvature = double([2, -1, 1e-9, 0, 0])
    matrix = basis @ torch.diag(curvature) @ basis.T
    first, second = torch.randn(2, 5, dtype=torch.float64)
    found = walk(first, second, lambda point: matrix, steps=4, threshold=1e-3)
    null = basis[:, 2:]
    inside = null @ null.T @ (second - first)
    assert found.points[0] is not first
    assert torch.equal(found.points[0], first)
    assert found.points[-1].numpy() == pytest.approx((first + inside).numpy())
    assert found.points[2].numpy() == pytest.approx((first + inside / 2).numpy())
    assert found.null_count.tolist() == [3] * 4
    share = (inside.norm() / (second - first).norm()) ** 2
    assert float(found.share[0]) == pytest.approx(float(share))
    losses = (found.points @ matrix * found.points).sum(1)
    assert losses.numpy() == pytest.approx(losses[:1].expand(5).numpy(), abs=1e-7)


def test_a_walk_without_curved_directions_is_the_line() -> None:
    first, second = torch.randn(2, 4, dtype=torch.float64)
    found = walk(first, second, lambda point: torch.eye(4).double(), steps=4, threshold=1.0)
    even = torch.linspace(0, 1, 5, dtype=torch.float64)
    assert found.points.numpy() == pytest.approx(straight(first, second, even).numpy())
    with pytest.raises(NumericalError, match="the Hessian is not finite at step 0"):
        walk(first, second, lambda point: torch.full((4, 4), torch.nan), steps=1, threshold=0.1)


# -- a network and its permuted copy ---------------------------------------------------------


def test_a_curve_joins_a_network_with_its_permuted_copy() -> None:
    """Both are the same function, and the line between them is not."""
    dataset = blobs(samples=60, spread=0.3, seed=0)
    inputs, labels = (torch.stack(part) for part in zip(*dataset, strict=True))
    model = mlp([2, 6, 2], "tanh").double()
    loss = known_loss(nn.functional.cross_entropy)
    ensemble = Ensemble(model, loss, inputs.double(), labels)
    start = on_sphere([0], ensemble.layout.size, 0.5 * ensemble.layout.size**0.5, 0)
    end = ensemble.descend(start, learning_rate=0.5, tolerance=1e-3, max_steps=500)
    first = end.parameters[0]
    order = torch.tensor([5, 0, 1, 2, 3, 4])
    weight, bias, top, rest = torch.split(first, [12, 6, 12, 2])
    moved = weight.view(6, 2)[order], bias[order], top.view(2, 6)[:, order], rest
    second = torch.cat([part.reshape(-1) for part in moved])
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    controls = train_curve(first, second, ensemble.losses_and_gradients, Moves(100, 0.5))
    line, curve = (
        ensemble.losses(points).numpy()
        for points in (straight(first, second, t), bezier(controls, t))
    )
    assert line[0] == pytest.approx(line[-1], rel=1e-12)
    assert line[0] < 0.01
    assert barrier(line, t.numpy()) > 10 * line[0]
    assert barrier(curve, t.numpy()) < barrier(line, t.numpy()) / 10
