"""Many networks at once: against one network at a time in plain PyTorch, and closed forms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from networks import known_loss
from torch import Tensor, nn
from torch.func import functional_call, hessian

from hessdist.curvature.parameters import Parameters
from hessdist.errors import DataError, InputError, NumericalError
from hessdist.optimizers.ensemble import Ensemble, on_sphere
from hessdist.optimizers.training import minibatches
from hessdist.workload.datasets import blobs
from hessdist.workload.losses import CriterionLoss, mse
from hessdist.workload.models import mlp

CROSS_ENTROPY = known_loss(nn.functional.cross_entropy)
SUMMED = known_loss(nn.CrossEntropyLoss(reduction="sum"))
MSE = CriterionLoss(mse, "mean")
PRECISION = {torch.float32: 2e-4, torch.float64: 1e-10}


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def one_layer_twice() -> nn.Module:
    twice = nn.Linear(9, 9)
    return nn.Sequential(nn.Flatten(), twice, nn.Tanh(), twice, nn.ReLU(), nn.Linear(9, 3))


def one_weight_in_two_layers() -> nn.Module:
    model = mlp([9, 9, 9, 3], "tanh")
    model.fc2.weight = model.fc1.weight
    return model


def frozen_first_layer() -> nn.Module:
    model = mlp([9, 4, 3], "tanh")
    model.fc1.requires_grad_(False)
    return model


# Chains of layers, and models that are none.
CASES: dict[str, tuple[Callable[[], nn.Module], CriterionLoss]] = {
    "relu": (lambda: mlp([9, 4, 4, 3]), CROSS_ENTROPY),
    "summed": (lambda: mlp([9, 4, 3], "gelu"), SUMMED),
    "mse": (lambda: mlp([9, 5, 3], "tanh"), MSE),
    "no bias": (lambda: mlp([9, 4, 3], "softplus", bias=False), CROSS_ENTROPY),
    "convolution": (convolution, CROSS_ENTROPY),
    "one layer twice": (one_layer_twice, MSE),
    "one weight in two layers": (one_weight_in_two_layers, CROSS_ENTROPY),
    "frozen": (frozen_first_layer, CROSS_ENTROPY),
}


def ensemble_of(case: str, dtype: torch.dtype = torch.float64, **options: Any) -> Ensemble:
    """On 20 random images of 1 x 3 x 3, three classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 1, 3, 3, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, 3, (20,), generator=generator)
    make, criterion = CASES[case]
    torch.manual_seed(1)
    return Ensemble(make().to(dtype).eval(), criterion, inputs, targets, **options)


def starts_of(ensemble: Ensemble, count: int, seed: int = 0, scale: float = 0.6) -> Tensor:
    d = ensemble.layout.size
    return on_sphere(range(count), d, scale * d**0.5, seed, ensemble.dtype)


def on_blobs(h: int = 3, spread: float = 0.35, samples: int = 40, **options: Any) -> Ensemble:
    inputs, targets = blobs(samples, spread).tensors
    return Ensemble(
        mlp([2, h, h, 2]).double().eval(), CROSS_ENTROPY, inputs.double(), targets, **options
    )


class One:
    """One network of an ensemble, trained in plain PyTorch."""

    def __init__(self, ensemble: Ensemble, row: Tensor) -> None:
        self.ensemble, (self.inputs, self.targets) = ensemble, ensemble._samples
        self.model = copy.deepcopy(ensemble._model)
        self.parameters = Parameters(self.model)
        self.parameters.assign(row)

    def loss(self, picked: Any = slice(None)) -> Tensor:
        targets = self.targets[picked]
        value = self.ensemble._criterion.criterion(self.model(self.inputs[picked]), targets)
        return value / len(targets) if self.ensemble._criterion.reduction == "sum" else value

    def gradient(self) -> Tensor:
        pieces = torch.autograd.grad(self.loss(), self.parameters.tensors)
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def descend(self, learning_rate: float, batches: Any) -> Tensor:
        optimizer = torch.optim.SGD(self.parameters.tensors, lr=learning_rate)
        for picked in batches:
            optimizer.zero_grad()
            self.loss(picked).backward()
            optimizer.step()
        return self.parameters.flat()


# -- evaluation ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_each_network(case: str, dtype: torch.dtype) -> None:
    ensemble = ensemble_of(case, dtype, chunk=3)
    theta = starts_of(ensemble, 7)
    before = Parameters(ensemble._model).flat()
    losses, gradients = ensemble.losses_and_gradients(theta)
    assert losses.dtype == gradients.dtype == dtype
    assert torch.equal(ensemble.losses(theta), losses)
    assert torch.equal(Parameters(ensemble._model).flat(), before)
    for row, loss, gradient in zip(theta, losses, gradients, strict=True):
        one = One(ensemble, row)
        assert float(loss) == pytest.approx(float(one.loss().detach()), rel=PRECISION[dtype])
        assert (gradient - one.gradient()).norm() <= PRECISION[dtype] * gradient.norm()


@pytest.mark.parametrize("case", CASES)
def test_hessians_are_those_of_each_network(case: str) -> None:
    ensemble = ensemble_of(case)
    theta = starts_of(ensemble, 5)
    hessians = ensemble.hessians(theta)
    assert torch.equal(hessians, hessians.mT)
    for row, found in zip(theta, hessians, strict=True):
        one = One(ensemble, row)

        def loss(flat: Tensor, one: One = one) -> Tensor:
            layout = one.parameters.layout
            pieces = dict(zip(layout.names, layout.split(flat), strict=True))
            outputs = functional_call(one.model, pieces, (one.inputs,))
            total = ensemble._criterion.total(outputs, one.targets)
            return total / len(one.targets)

        expected = hessian(loss)(row)
        assert (found - expected).norm() <= 1e-12 * expected.norm()
    # A budget for two networks at a time, and for a few columns of one.
    d = ensemble.layout.size
    for columns in (2 * d, 7):
        found = ensemble.hessians(theta, numbers=columns * 4 * ensemble._kept)
        assert torch.allclose(found, hessians, rtol=0, atol=1e-14)


def test_gradient_and_hessian_of_a_linear_softmax_in_closed_form() -> None:
    """p = softmax(W x): ∇L = mean (p − e_y) ⊗ x, H = mean (diag p − p pᵀ) ⊗ x xᵀ."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (30,), generator=generator)
    model = mlp([4, 3], bias=False).double().eval()
    ensemble = Ensemble(model, CROSS_ENTROPY, inputs, targets)
    theta = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    losses, gradients = ensemble.losses_and_gradients(theta)
    hessians = ensemble.hessians(theta)
    for k, row in enumerate(theta):
        p = torch.softmax(inputs @ row.view(3, 4).T, 1)
        error = p - nn.functional.one_hot(targets, 3)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        gradient = torch.einsum("nc,ni->ci", error, inputs).reshape(-1) / 30
        curvature = torch.einsum("ncd,ni,nj->cidj", inner, inputs, inputs).reshape(12, 12) / 30
        assert float(losses[k]) == pytest.approx(float(-p[range(30), targets].log().mean()))
        assert torch.allclose(gradients[k], gradient, rtol=0, atol=1e-14)
        assert torch.allclose(hessians[k], curvature, rtol=0, atol=1e-14)


# -- gradient descent ------------------------------------------------------------------------


def least_squares() -> tuple[Ensemble, Tensor, Tensor]:
    """A linear network on 12 samples, the Hessian of its loss, and its minimum."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    model = mlp([4, 1], bias=False).double().eval()
    ensemble = Ensemble(model, CriterionLoss(mse, "mean"), inputs, targets, chunk=2)
    matrix = 2 / 12 * inputs.T @ inputs
    return ensemble, matrix, torch.linalg.solve(matrix, 2 / 12 * inputs.T @ targets)[:, 0]


def test_descent_in_a_quadratic_ends_after_as_many_steps_as_the_closed_form_says() -> None:
    """θ_t − θ* = (1 − η H)^t (θ_0 − θ*), and the gradient is H times that."""
    ensemble, matrix, minimum = least_squares()
    rate = 0.5 / float(torch.linalg.eigvalsh(matrix)[-1])
    theta = on_sphere(range(5), 4, 3.0, 0)
    descent = ensemble.descend(theta, learning_rate=rate, tolerance=1e-3, max_steps=10_000)
    factor = torch.eye(4, dtype=torch.float64) - rate * matrix
    assert descent.reached.all()
    for k, start in enumerate(theta):
        away = start - minimum
        for step in range(int(descent.steps[k]) + 1):
            assert ((matrix @ away).norm() <= 1e-3) == (step == descent.steps[k])
            if step < descent.steps[k]:
                away = factor @ away
        assert torch.allclose(descent.parameters[k], minimum + away, rtol=0, atol=1e-10)
        assert float(descent.gradient_norm[k]) == pytest.approx(float((matrix @ away).norm()))
    assert len(set(descent.steps.tolist())) > 1
    assert torch.equal(descent.loss, ensemble.losses(descent.parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["relu", "mse", "convolution"])
def test_descent_is_that_of_sgd_on_each_network(case: str, dtype: torch.dtype) -> None:
    ensemble = ensemble_of(case, dtype, chunk=2)
    theta = starts_of(ensemble, 3)
    # Reached by some of them within the steps.
    tolerance = {"relu": 0.2, "mse": 0.11, "convolution": 0.15}[case]
    descent = ensemble.descend(theta, learning_rate=0.1, tolerance=tolerance, max_steps=60)
    assert descent.parameters.dtype == dtype
    assert 0 < int(descent.reached.sum()) < 3
    for k, row in enumerate(theta):
        steps = int(descent.steps[k])
        one = One(ensemble, row)
        expected = one.descend(0.1, [slice(None)] * steps)
        error = (descent.parameters[k] - expected).norm()
        assert error <= 10 * PRECISION[dtype] * expected.norm()
        norm = float(one.gradient().norm())
        assert float(descent.gradient_norm[k]) == pytest.approx(norm, rel=100 * PRECISION[dtype])
        assert bool(descent.reached[k]) == (norm <= tolerance)
        assert descent.reached[k] or steps == 60


def test_a_descent_does_not_depend_on_the_chunk_or_on_the_other_networks() -> None:
    arguments = {"learning_rate": 0.5, "tolerance": 2e-2, "max_steps": 300}
    whole = on_blobs()
    theta = starts_of(whole, 12)
    expected = whole.descend(theta, **arguments)
    assert expected.reached.sum() > 6
    assert len(set(expected.steps.tolist())) > 6

    def check(chunk: int | None, rows: list[int]) -> None:
        found = on_blobs(chunk=chunk).descend(theta[rows], **arguments)
        assert torch.equal(found.steps, expected.steps[rows])
        assert torch.equal(found.reached, expected.reached[rows])
        for name in ("parameters", "loss", "gradient_norm"):
            assert torch.allclose(
                getattr(found, name), getattr(expected, name)[rows], rtol=1e-6, atol=1e-9
            )

    for chunk in (1, 5, 100):
        check(chunk, list(range(12)))
    check(None, list(range(11, -1, -1)))  # in another order
    for rank in range(3):  # spread over ranks
        check(None, list(range(rank, 12, 3)))


@pytest.mark.parametrize("case", ["relu", "convolution"])
def test_no_more_networks_than_a_chunk_are_evaluated_at_once(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = ensemble_of(case, chunk=3)
    sizes: list[int] = []
    evaluate = ensemble._evaluate

    def counted(theta: Tensor, *samples: Tensor) -> Tensor:
        sizes.append(len(theta))
        return evaluate(theta, *samples)

    monkeypatch.setattr(ensemble, "_evaluate", counted)
    theta = starts_of(ensemble, 7)
    ensemble.losses(theta)
    ensemble.losses_and_gradients(theta)
    ensemble.hessians(theta)
    assert sizes == 3 * [3, 3, 1]
    sizes.clear()
    ensemble.descend(theta, learning_rate=0.1, tolerance=0.3, max_steps=9)
    assert set(sizes[:7]) == {3}
    assert max(sizes) == 3


def test_starts_that_are_arrived_stay_where_they_are() -> None:
    ensemble, _, minimum = least_squares()
    theta = torch.stack([minimum, minimum + 1, minimum])
    descent = ensemble.descend(theta, learning_rate=0.1, tolerance=1e-9, max_steps=0)
    assert descent.steps.tolist() == [0, 0, 0]
    assert descent.reached.tolist() == [True, False, True]
    assert torch.equal(descent.parameters, theta)


def test_networks_that_do_not_arrive_are_kept_and_marked() -> None:
    ensemble = on_blobs(chunk=2)
    theta = starts_of(ensemble, 5)
    descent = ensemble.descend(theta, learning_rate=0.2, tolerance=0.0, max_steps=30)
    # Nothing but a network whose units are all off has a gradient of zero.
    assert not descent.reached.any()
    assert descent.steps.tolist() == [30] * 5
    for row, found in zip(theta, descent.parameters, strict=True):
        expected = One(ensemble, row).descend(0.2, [slice(None)] * 30)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    losses, gradients = ensemble.losses_and_gradients(descent.parameters)
    assert torch.allclose(descent.loss, losses, rtol=1e-12)
    assert torch.allclose(descent.gradient_norm, gradients.norm(dim=1), rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_a_network_whose_loss_is_not_finite_stops_and_the_others_go_on(chunk: int | None) -> None:
    ensemble, matrix, minimum = least_squares()
    ensemble.chunk = chunk or ensemble.chunk
    theta = on_sphere(range(4), 4, 3.0, 0)
    theta[1, 2] = float("nan")
    theta[3] *= 1e200  # its square is infinite
    rate = 1 / float(torch.linalg.eigvalsh(matrix)[-1])
    descent = ensemble.descend(theta, learning_rate=rate, tolerance=1e-8, max_steps=2000)
    assert descent.reached.tolist() == [True, False, True, False]
    assert torch.isfinite(descent.loss).tolist() == [True, False, True, False]
    assert descent.steps[[1, 3]].tolist() == [0, 0]
    assert torch.allclose(descent.parameters[[0, 2]], minimum, rtol=0, atol=1e-6)


def test_a_step_that_is_too_long_ends_where_the_loss_is_not_finite() -> None:
    ensemble, matrix, _ = least_squares()
    rate = 4 / float(torch.linalg.eigvalsh(matrix)[-1])
    theta = on_sphere(range(3), 4, 3.0, 0)
    descent = ensemble.descend(theta, learning_rate=rate, tolerance=1e-8, max_steps=10_000)
    assert not descent.reached.any()
    assert not torch.isfinite(descent.loss).any()
    # |1 − η λ| = 3 for the largest eigenvalue: the square overflows after log 1e154 / log 3 steps.
    assert ((descent.steps > 300) & (descent.steps < 330)).all()


def test_every_step_is_reported_with_the_number_of_networks_that_have_ended() -> None:
    ensemble = on_blobs(chunk=4)
    theta = starts_of(ensemble, 9)
    reports: list[int] = []
    arguments = {"learning_rate": 0.5, "tolerance": 0.05, "max_steps": 400}
    descent = ensemble.descend(theta, **arguments, on_step=reports.append)
    assert reports[-1] == 9
    assert reports == sorted(reports)
    assert int(descent.steps.max()) < len(reports) <= int(descent.steps.sum()) + 9

    def stop(ended: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensemble.descend(theta, **arguments, on_step=stop)


def test_no_networks_at_all() -> None:
    ensemble = on_blobs()
    d = ensemble.layout.size
    none = on_sphere([], d, 1.0, 0)
    assert none.shape == (0, d)
    assert ensemble.losses(none).shape == (0,)
    assert ensemble.losses_and_gradients(none)[1].shape == (0, d)
    assert ensemble.hessians(none).shape == (0, d, d)
    descent = ensemble.descend(none, learning_rate=0.1, tolerance=1e-4, max_steps=10)
    assert descent.parameters.shape == (0, d)
    assert len(descent.reached) == 0


# -- stochastic gradient descent -------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, None])
@pytest.mark.parametrize("case", ["relu", "convolution"])
def test_a_path_is_that_of_torchs_sgd(case: str, batch_size: int | None) -> None:
    ensemble = ensemble_of(case)
    (theta,) = starts_of(ensemble, 1)
    path = ensemble.sgd_path(
        theta, batch_size=batch_size, learning_rate=0.05, steps=23, every=5, seed=6
    )
    assert path.shape == (5, ensemble.layout.size)
    assert torch.equal(path[0], theta)
    batches = [slice(None)] * 20
    if batch_size is not None:
        batches = list(islice(minibatches(20, batch_size, 6), 20))
    one = One(ensemble, theta)
    for number, point in enumerate(path[1:]):
        expected = one.descend(0.05, batches[5 * number : 5 * number + 5])
        assert torch.allclose(point, expected, rtol=0, atol=1e-12)


def test_paths_differ_by_the_seed_of_the_minibatches_alone() -> None:
    ensemble = ensemble_of("relu")
    (theta,) = starts_of(ensemble, 1)
    arguments = {"batch_size": 7, "learning_rate": 0.05, "steps": 6, "every": 2}
    path = ensemble.sgd_path(theta, seed=0, **arguments)
    assert torch.equal(ensemble.sgd_path(theta, seed=0, **arguments), path)
    assert not torch.allclose(ensemble.sgd_path(theta, seed=1, **arguments)[1], path[1])


def test_a_path_that_is_not_finite_is_refused() -> None:
    ensemble, _, _ = least_squares()
    (theta,) = on_sphere([0], 4, 3.0, 0)
    with pytest.raises(NumericalError, match="not finite at step 500; lower the learning rate"):
        ensemble.sgd_path(theta, batch_size=3, learning_rate=9, steps=2000, every=500, seed=0)


# -- starts ----------------------------------------------------------------------------------


def test_starts_lie_on_the_sphere_and_each_depends_on_its_own_index() -> None:
    points = on_sphere(range(50), 18, 2.5, 7)
    assert points.norm(dim=1).numpy() == pytest.approx(np.full(50, 2.5), rel=1e-14)
    assert torch.equal(on_sphere([41, 3, 41], 18, 2.5, 7), points[[41, 3, 41]])
    assert torch.allclose(on_sphere([9], 18, 5.0, 7), 2 * points[[9]])
    assert not torch.allclose(on_sphere([9], 18, 2.5, 8), points[[9]])
    single = on_sphere(range(50), 18, 2.5, 7, torch.float32)
    assert torch.equal(single, points.float())


def test_starts_are_uniform() -> None:
    """Mean 0, covariance r²/d, and in three dimensions each coordinate is uniform."""
    points = on_sphere(range(4000), 3, 2.0, 0).numpy()
    # Five standard errors.
    assert np.abs(points.mean(0)).max() < 5 * 2 / np.sqrt(3 * 4000)
    assert np.abs(points.T @ points / 4000 - 4 / 3 * np.eye(3)).max() < 5 * 1.4 / np.sqrt(4000)
    for coordinate in points.T:
        counts = np.histogram(coordinate, bins=10, range=(-2, 2))[0]
        assert np.abs(counts - 400).max() < 5 * np.sqrt(360)


# -- what is refused -------------------------------------------------------------------------


def test_wrong_input_is_refused_in_one_line() -> None:
    inputs, targets = blobs(10).tensors
    model = mlp([2, 2, 2, 2]).eval()
    with pytest.raises(DataError, match=r"labels are 0 ... 5"):
        Ensemble(model, CROSS_ENTROPY, inputs, 5 * targets)
    with pytest.raises(InputError, match="the ensemble's batch: the model and the loss cannot"):
        Ensemble(model, CROSS_ENTROPY, inputs.double(), targets)
    with pytest.raises(InputError, match="chunks of 0 networks"):
        Ensemble(model, CROSS_ENTROPY, inputs, targets, chunk=0)
    ensemble = Ensemble(model, CROSS_ENTROPY, inputs, targets)
    for wrong in (torch.zeros(3, 17), torch.zeros(18), torch.zeros(3, 18, dtype=torch.float64)):
        with pytest.raises(InputError, match="model has 18 parameters of torch") as e:
            ensemble.losses(wrong)
        assert "\n" not in str(e.value)
