"""The examination of a point: closed forms on quadratics, dense matrices, any number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem, dense, loss_along, mlp_problem, quadratic

from hessdist.config.job import Job
from hessdist.errors import NumericalError
from hessdist.landscape.diagnosis import Point, PointKind
from hessdist.objective import Workload
from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements
from hessdist.service.workload import computed_as
from hessdist.studies.context import Context
from hessdist.studies.debugging.diagnosis import diagnosis

VALUES = [0.1, 0.5, 1.0, 2.0, 4.0, 8.0]


def examined(
    problem: Problem, l2: float = 0.0, step: int | None = None, **changes: dict[str, Any]
) -> Measurements:
    sections: dict[str, dict[str, Any]] = {
        "model": {"factory": "mlp"},
        "data": {"dataset": "digits"},
        "loss": {"l2": l2},
        "training": {"optimizer": "sgd", "learning_rate": 0.05},
        "checkpoints": {"directory": "checkpoints"},
        "spectrum": {"largest": 2, "smallest": 2, "tolerance": 1e-9},
        "compute": {"dtype": "float64", "batch_size": 3, "workers": 0},
        "output": {"path": "run.h5"},
        "diagnosis": {"points": 20},
    }
    for name, values in changes.items():
        sections[name] = sections[name] | values
    job = Job.model_validate(sections)
    indices = np.arange(len(problem.dataset))
    workload = Workload(problem.model, problem.loss, problem.dataset, indices, **computed_as(job))
    at = Context(job, workload, workload.on(Ranks()), step=step)
    return diagnosis(at, job.diagnosis)


def at_rest(eigenvalues: list[float]) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A quadratic at its critical point, θ = 0 and without a slope; eigenvalues and vectors."""
    problem = quadratic(eigenvalues)
    problem.model.slope.zero_()
    with torch.no_grad():
        problem.model.theta.zero_()
    values, vectors = np.linalg.eigh(problem.model.hessian.numpy())
    return problem, values, vectors


@pytest.mark.parametrize(
    ("eigenvalues", "kind"),
    [
        (VALUES, PointKind.MINIMUM),
        ([0.0, *VALUES[1:]], PointKind.TO_TOLERANCE),
        ([-0.3, *VALUES[1:]], PointKind.SADDLE),
        ([-value for value in VALUES], PointKind.MAXIMUM),
    ],
)
def test_critical_points_without_a_gradient(eigenvalues: list[float], kind: PointKind) -> None:
    problem, values, _ = at_rest(eigenvalues)
    found = examined(problem, spectrum={"tolerance": 1e-6})
    assert str(found["kind"]) == kind
    assert found["gradient_norm"] == 0
    assert found["eigenvalues_largest"] == pytest.approx(values[::-1][:2], abs=1e-9)
    assert np.isnan(found["loss_along_gradient"]).all()
    for undefined in ("loss_change", "best_rate", "best_loss_change", "share_largest"):
        assert np.isnan(found[undefined])
    note = str(found["note"])
    assert "a gradient step does nothing" in note
    assert "nan" not in note


def test_a_strict_saddle_is_left_along_its_eigenvector() -> None:
    problem, values, vectors = at_rest([-0.3, *VALUES[1:]])
    found = examined(problem, diagnosis={"points": 20, "distance": 3.0})
    t = found["distance"]
    assert (t[0], t[-1]) == pytest.approx((-3, 3))
    assert found["loss_along_escape"] == pytest.approx(-0.15 * t**2)
    assert found["model_along_escape"] == pytest.approx(-0.15 * t**2)
    assert abs(found["escape_best_distance"]) == pytest.approx(3)
    assert found["escape_loss_change"] == pytest.approx(-0.15 * 9)
    assert found["escape_at_edge"]
    assert found["escape_share"] == pytest.approx([1.0])
    assert found["negative_directions"] == 1
    assert not found["more_negative"]
    assert np.isclose(values[0], -0.3)
    assert len(vectors) == 6


def test_a_minimum_has_no_way_out() -> None:
    found = examined(at_rest(VALUES)[0])
    for name in ("loss_along_escape", "model_along_escape", "escape_share"):
        assert np.isnan(found[name]).all()
    assert np.isnan(found["escape_loss_change"])
    assert "none: no computed eigenvalue is negative" in str(found["note"])


def test_a_gradient_step_on_a_quadratic() -> None:
    """The model is exact: predicted is measured, and a rate beyond 2 gᵀg / gᵀHg raises the loss."""
    problem = quadratic([-0.3, *VALUES])
    g, hessian = problem.model.gradient().numpy(), problem.model.hessian.numpy()
    values, vectors = np.linalg.eigh(hessian)
    square, curved = g @ g, g @ hessian @ g
    turning = 2 * square / curved
    for rate in (0.4 * turning, 1.1 * turning):
        found = examined(problem, training={"learning_rate": float(rate)})
        assert str(found["kind"]) == PointKind.FAR
        assert found["gradient_norm"] ** 2 == pytest.approx(square)
        assert found["gradient_curvature"] == pytest.approx(curved)
        predicted = -rate * square + rate**2 / 2 * curved
        assert found["predicted_loss_change"] == pytest.approx(predicted)
        assert found["loss_change"] == pytest.approx(predicted)
        assert (found["loss_change"] > 0) == (rate > turning)
        word = "raise" if rate > turning else "lower"
        assert f"is predicted to {word} the loss" in str(found["note"])
        assert f"measured to {word} the loss" in str(found["note"])
        assert found["best_rate"] == pytest.approx(square / curved)
        assert found["best_loss_change"] == pytest.approx(-(square**2) / (2 * curved))
        assert found["stable_rate"] == pytest.approx(2 / values[-1])
        along = found["loss_along_gradient"]
        assert along == pytest.approx(found["model_along_gradient"])
        assert found["rate"].min() < rate < found["rate"].max()
        shares = (vectors.T @ g) ** 2 / square
        assert found["share_largest"] == pytest.approx(shares[-2:].sum())
        assert found["share_negative"] == pytest.approx(shares[0])
    # Downhill first, and back again: no other direction has that slope.
    slope = -abs(vectors[:, 0] @ g)
    t = found["distance"]
    expected = found["loss"] + slope * t - 0.15 * t**2
    assert found["loss_along_escape"] == pytest.approx(expected, rel=1e-5)  # float32 vectors


def test_the_rate_is_that_of_the_schedule_at_the_checkpoint() -> None:
    """A job that trains along a cosine is at half its rate in the middle."""
    cosine = {"schedule": "cosine", "steps": 10, "learning_rate": 0.1}
    for step, rate in ((0, 0.1), (5, 0.05)):
        found = examined(quadratic(VALUES), step=step, training=cosine)
        assert found["learning_rate"] == pytest.approx(rate)


def test_curvature_that_is_negative_along_the_gradient() -> None:
    problem = quadratic([-5.0, -4.0, -3.0, -2.0, 0.01])
    found = examined(problem)
    assert found["gradient_curvature"] < 0
    assert np.isnan(found["best_rate"])
    assert np.isnan(found["best_loss_change"])
    assert found["loss_change"] < -0.05 * found["gradient_norm"] ** 2
    assert np.isfinite(found["rate"]).all()


@pytest.mark.parametrize(("largest", "smallest"), [(0, 2), (2, 0), (6, 6)])
def test_ends_that_are_empty_or_overlap(largest: int, smallest: int) -> None:
    problem = quadratic([-0.3, *VALUES[1:]])
    found = examined(problem, spectrum={"largest": largest, "smallest": smallest})
    assert found["eigenvalues_largest"].shape == (largest,)
    assert found["eigenvalues_smallest"].shape == (smallest,)
    if largest + smallest > 6:
        assert found["share_largest"] == pytest.approx(1)
        assert found["negative_directions"] == 1
        assert not found["more_negative"]
        assert found["condition_number"] == pytest.approx(8 / 0.3)
    note = str(found["note"])
    assert ("spectrum.largest" in note) == (largest == 0)
    assert ("spectrum.smallest" in note) == (smallest == 0)


def test_a_line_may_leave_what_is_finite() -> None:
    problem = quadratic([-0.3, *VALUES], edge=12.0)
    found = examined(problem, training={"learning_rate": 100.0})
    assert not np.isfinite(found["loss_change"])
    assert "measured, the loss is not finite there" in str(found["note"])
    assert np.isfinite(found["escape_loss_change"])


def test_a_loss_that_is_not_finite_ends_it() -> None:
    with pytest.raises(NumericalError, match="not finite"):
        examined(quadratic(VALUES, edge=0.0))


@pytest.mark.mpi(ranks=[1, 3], timeout=60, unit="s")
def test_against_the_dense_matrix() -> None:
    """Also with the penalty, and where ranks have no samples."""
    for count, l2 in ((20, 0.1), (2, 0.0)):
        problem = mlp_problem("tanh", "cross_entropy", count)
        check_against_the_dense_matrix(problem, l2)


def check_against_the_dense_matrix(problem: Problem, l2: float) -> None:
    count = len(problem.dataset)
    theta = torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()]).numpy()
    inputs, targets = problem.dataset.tensors
    loss = problem.loss(problem.model(inputs), targets)
    pieces = torch.autograd.grad(loss, list(problem.model.parameters()))
    g = torch.cat([piece.reshape(-1) for piece in pieces]).numpy() + l2 * theta
    hessian = dense(problem, "hessian").numpy() / count + l2 * np.eye(len(g))
    values, vectors = np.linalg.eigh(hessian)

    def loss_at(displacement: np.ndarray) -> float:
        away = theta + displacement
        return loss_along(problem, displacement) + l2 / 2 * away @ away

    start = loss_at(0 * g)
    found = examined(problem, l2)
    assert found["loss"] == pytest.approx(start, rel=1e-12)
    assert found["gradient_norm"] == pytest.approx(np.linalg.norm(g), rel=1e-10)
    assert found["gradient_curvature"] == pytest.approx(g @ hessian @ g, rel=1e-9)
    assert found["loss_change"] == pytest.approx(loss_at(-0.05 * g) - start, rel=1e-9)
    best = g @ g / (g @ hessian @ g)
    assert found["best_rate"] == pytest.approx(best, rel=1e-9)
    assert found["best_loss_change"] == pytest.approx(loss_at(-best * g) - start, rel=1e-9)
    assert found["eigenvalues_smallest"] == pytest.approx(values[:2], rel=1e-7)
    top = (vectors[:, -2:].T @ g) ** 2
    assert found["share_largest"] == pytest.approx(top.sum() / (g @ g), rel=1e-6)
    u = vectors[:, 0] * -np.sign(vectors[:, 0] @ g)
    for t, along in list(zip(found["distance"], found["loss_along_escape"], strict=True))[::5]:
        assert along == pytest.approx(loss_at(t * u), rel=1e-4)
    at = found["escape_best_distance"]
    assert start + found["escape_loss_change"] == pytest.approx(loss_at(at * u), rel=1e-4)
    assert start + found["escape_loss_change"] <= min(found["loss_along_escape"]) + 1e-12
    assert found["escape_share"] == pytest.approx([u[:35] @ u[:35], u[35:] @ u[35:]], rel=1e-4)
    assert Point.of(found).can_escape


def test_rises_of_the_loss_at_further_rates() -> None:
    """On a quadratic the model is exact, so that every rise is predicted, from 2 gᵀg / gᵀHg on."""
    problem = quadratic(VALUES)
    found = examined(problem, diagnosis={"rates": [0.01, 0.1, 1.0, 10.0]})
    assert found["checked_rate"].tolist() == [0.01, 0.1, 1.0, 10.0]
    assert found["checked_change"] == pytest.approx(found["checked_prediction"], rel=1e-8)
    rises = found["checked_rate"] > 2 * found["best_rate"]
    assert ((found["checked_change"] > 0) == rises).all()
    assert rises.any()
    assert not rises.all()
    assert examined(problem)["checked_rate"].size == 0
