"""Full-batch minimisation: closed answers, dense formulas, scipy, the same iterates on ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem as Workload
from networks import mlp_problem
from numpy.typing import NDArray
from precision import petsc_epsilon, within
from scipy import optimize
from torch import Tensor

from hessdist.errors import InputError, NumericalError, Stopped
from hessdist.objective import Compute, Objective
from hessdist.optimizers.directions import LBFGS, NewtonCG
from hessdist.optimizers.full_batch import METHODS, Ended, Iterate, Settings, minimize
from hessdist.optimizers.training_problem import TrainingProblem
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import ShellMatrix
from hessdist.workload.models import mlp

Array = NDArray[np.float64]


class Dense:
    """This rank's share of a dense matrix."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, matrix: Array, share: float) -> None:
        self.matrix, self.size = torch.from_numpy(share * matrix), len(matrix)

    def __call__(self, v: Tensor) -> Tensor:
        return self.matrix @ v


class Function:
    """A function of a whole vector, with its derivatives, as a problem on vectors that are spread.

    Args:
        value: f.
        gradient: ∇f.
        hessian: ∇²f.
    """

    product_cost = 2.0

    def __init__(
        self,
        size: int,
        value: Callable[[Array], float],
        gradient: Callable[[Array], Array],
        hessian: Callable[[Array], Array],
        ranks: Ranks | None = None,
    ) -> None:
        self.size, self.ranks = size, ranks or Ranks()
        self._value, self._gradient, self._hessian = value, gradient, hessian
        self.mine = slice(*self.ranks.shard(size))

    def whole(self, x: Array) -> Array:
        gathered = np.empty(self.size)
        self.ranks.gather_vector(np.ascontiguousarray(x), gathered)
        return gathered

    def loss(self, x: Array) -> float:
        return self._value(self.whole(x))

    def loss_and_gradient(self, x: Array) -> tuple[float, Array]:
        whole = self.whole(x)
        return self._value(whole), self._gradient(whole)[self.mine]

    def hessian(self, x: Array) -> ShellMatrix:
        return ShellMatrix(Dense(self._hessian(self.whole(x)), 1 / self.ranks.size), self.ranks)


def rosenbrock(size: int, ranks: Ranks | None = None) -> Function:
    return Function(size, optimize.rosen, optimize.rosen_der, optimize.rosen_hess, ranks)


def quadratic(matrix: Array, slope: Array) -> Function:
    return Function(
        len(matrix),
        lambda x: float(x @ matrix @ x / 2 - slope @ x),
        lambda x: matrix @ x - slope,
        lambda x: matrix,
    )


def spd(size: int, largest: float = 10.0) -> tuple[Array, Array]:
    """A positive definite matrix and a slope."""
    rng = np.random.default_rng(size)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return basis @ np.diag(np.geomspace(0.1, largest, size)) @ basis.T, rng.standard_normal(size)


def solved(problem: Any, start: Any, **settings: Any) -> tuple[Ended, list[Iterate]]:
    trace: list[Iterate] = []
    first = np.asarray(start, dtype=float)
    mine = first[slice(*problem.ranks.shard(len(first)))]
    return minimize(problem, mine, Settings(**settings), trace.append), trace


def single() -> bool:
    """Say whether PETSc, and so TAO's points, losses and gradients, is in single precision."""
    return petsc_epsilon() > 1e-8


@contextmanager
def options(given: Mapping[str, Any]) -> Iterator[None]:
    """As on the command line."""
    from hessdist.spectrum import petsc

    known = petsc.initialise()[0].Options()
    for name, value in given.items():
        known.setValue(name, value)
    try:
        yield
    finally:
        for name in given:
            known.delValue(name)


# -- closed answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 10])
@pytest.mark.parametrize("method", ["lbfgs", "newton_cg"])
def test_rosenbrocks_minimum(method: str, size: int) -> None:
    ended, trace = solved(rosenbrock(size), [-1.2, 1.0] * (size // 2) + [1.0] * (size % 2),
                          method=method, iterations=200, tolerance=within(1e-8, 250))  # fmt: skip
    assert ended.converged
    assert trace[-1].x == pytest.approx(np.ones(size), abs=10 * within(1e-8, 250))
    assert trace[-1].gradient_norm <= within(1e-8, 250)
    losses = np.array([one.loss for one in trace])
    assert (np.diff(losses) < 0).all()
    assert [one.number for one in trace] == list(range(len(trace)))


def test_every_step_is_the_first_power_of_the_factor_that_decreases_enough() -> None:
    problem, c, rho = rosenbrock(4), 0.1, 0.3
    _, trace = solved(problem, [-1.2, 1.0, 0.3, 2.0], method="gradient_descent", iterations=30,
                      sufficient_decrease=c, backtracking=rho)  # fmt: skip
    for here, there in pairwise(trace):
        g = optimize.rosen_der(here.x)

        def enough(alpha: float) -> bool:
            return problem.loss(here.x - alpha * g) <= here.loss - c * alpha * (g @ g)  # noqa: B023

        assert there.step == pytest.approx(rho ** (there.trials - 1))
        assert there.x == pytest.approx(here.x - there.step * g, rel=within(1e-14))
        assert enough(there.step)
        assert not any(enough(rho**j) for j in range(there.trials - 1))


def test_gradient_descent_on_an_isotropic_quadratic_has_the_closed_rate() -> None:
    # α = 1/8 is the first power of ½ below 2 (1 − c) / λ, and x shrinks by 1 − αλ = −1/4.
    ended, trace = solved(quadratic(10 * np.eye(3), np.zeros(3)), [1.0, -2.0, 3.0],
                          method="gradient_descent", tolerance=1e-9)  # fmt: skip
    assert ended.converged
    for k, one in enumerate(trace):
        assert one.x == pytest.approx((-0.25) ** k * np.array([1.0, -2.0, 3.0]), rel=1e-12)
    assert {one.step for one in trace[1:]} == {0.125}
    assert {one.trials for one in trace[1:]} == {4}
    last = trace[-1]
    assert (last.losses, last.gradients, last.products) == (4 * last.number, last.number + 1, 0)
    assert last.cost == pytest.approx(last.number + 1 + 4 * last.number / 3)


def test_newton_cg_takes_one_step_where_one_product_solves() -> None:
    slope = np.array([1.0, 2.0, -1.0])
    ended, trace = solved(quadratic(3 * np.eye(3), slope), np.zeros(3), tolerance=within(1e-12))
    assert ended.converged
    assert len(trace) == 2
    assert trace[1].x == pytest.approx(slope / 3, rel=within(1e-14))
    assert (trace[1].step, trace[1].cg_iterations, trace[1].products) == (1.0, 1, 1)


def test_newton_cg_keeps_the_forcing_term_and_is_superlinear() -> None:
    # On a quadratic the gradient after a full step is CG's residual.
    ended, trace = solved(quadratic(*spd(30)), np.zeros(30), tolerance=within(1e-9))
    assert ended.converged
    norms = [one.gradient_norm for one in trace]
    for before, after, one in zip(norms, norms[1:], trace[1:], strict=False):
        assert one.step == 1
        assert after <= 1.001 * min(0.5, np.sqrt(before)) * before + within(1e-14)
    assert norms[-1] / norms[-2] < (2e-2 if single() else 1e-3)
    assert trace[-1].products == sum(one.cg_iterations for one in trace)


@pytest.mark.parametrize("method", METHODS)
def test_a_start_at_the_minimum_is_the_end(method: str) -> None:
    ended, trace = solved(rosenbrock(4), np.ones(4), method=method)
    assert ended.converged
    assert len(trace) == 1
    assert np.isnan(trace[0].step)


# -- directions -------------------------------------------------------------------------------


def test_lbfgs_is_the_inverse_that_the_dense_updates_make() -> None:
    matrix, slope = spd(8)
    rng, rule, m = np.random.default_rng(0), LBFGS(Ranks(), 3), 3
    points = rng.standard_normal((6, 8))
    for k, x in enumerate(points):
        direction = rule(x, matrix @ x - slope)
        s = np.diff(points[: k + 1], axis=0)[-m:]
        y = s @ matrix
        inverse = np.eye(8)
        if len(s):
            inverse *= (s[-1] @ y[-1]) / (y[-1] @ y[-1])
        for one, two in zip(s, y, strict=True):
            rho = 1 / (one @ two)
            v = np.eye(8) - rho * np.outer(two, one)
            inverse = v.T @ inverse @ v + rho * np.outer(one, one)
        assert direction.vector == pytest.approx(-inverse @ (matrix @ x - slope), rel=1e-10)
        assert not direction.negative_curvature


def test_lbfgs_leaves_out_pairs_of_negative_curvature() -> None:
    matrix, x = np.diag([1.0, -1.0]), np.array([0.0, 1.0])
    rule = LBFGS(Ranks(), 3)
    rule(x, matrix @ x)
    direction = rule(2 * x, matrix @ (2 * x))
    assert direction.negative_curvature
    assert direction.vector == pytest.approx(-matrix @ (2 * x))


@pytest.mark.parametrize(("gradient", "first"), [([1.0, 0.5], False), ([0.0, 1.0], True)])
def test_cg_ends_at_the_first_direction_of_negative_curvature(
    gradient: list[float], first: bool
) -> None:
    matrix, g = np.diag([2.0, -1.0]), np.array(gradient)
    direction = NewtonCG(Ranks(), lambda x: matrix.__matmul__, 10)(np.zeros(2), g)
    assert direction.negative_curvature
    if first:  # steepest descent
        assert direction.cg_iterations == 1
        assert direction.vector == pytest.approx(-g)
    else:  # what there is after one step of CG
        assert direction.cg_iterations == 2
        assert direction.vector == pytest.approx(-(g @ g) / (g @ matrix @ g) * g)
    assert direction.vector @ g < 0


def double_well(size: int) -> Function:
    """Σ (x⁴/4 − x²/2) over half of the entries and Σ x² over the others: a saddle at zero."""
    half = size // 2

    def value(x: Array) -> float:
        return float((x[:half] ** 4 / 4 - x[:half] ** 2 / 2).sum() + (x[half:] ** 2).sum())

    def gradient(x: Array) -> Array:
        return np.concatenate([x[:half] ** 3 - x[:half], 2 * x[half:]])

    def hessian(x: Array) -> Array:
        return np.diag(np.concatenate([3 * x[:half] ** 2 - 1, np.full(size - half, 2.0)]))

    return Function(size, value, gradient, hessian)


@pytest.mark.parametrize("method", ["lbfgs", "newton_cg"])
def test_negative_curvature_is_seen_and_left_behind(method: str) -> None:
    start = np.concatenate([[0.01, -0.02, 0.03], [0.5, 0.4, -0.3]])
    ended, trace = solved(double_well(6), start, method=method, tolerance=1e-9)
    assert ended.converged
    assert np.abs(trace[-1].x) == pytest.approx([1, 1, 1, 0, 0, 0], abs=1e-9)
    assert sum(one.negative_curvature for one in trace) >= 1
    assert not trace[-1].negative_curvature


# -- training losses --------------------------------------------------------------------------


def training(
    workload: Workload, ranks: Ranks | None = None, l2: float = 0.0, **settings: Any
) -> TrainingProblem:
    objective = Objective(
        ranks or Ranks(),
        workload.model,
        workload.loss,
        workload.dataset,
        np.arange(len(workload.dataset)),
        compute=Compute(batch_size=8, **{"dtype": "float64", **settings.pop("compute", {})}),
        l2=l2,
        layers=settings.pop("layers", ()),
    )
    return TrainingProblem(objective, len(workload.dataset), **settings)


def logistic_regression() -> Workload:
    """Convex: one minimum, with a penalty."""
    workload = mlp_problem("tanh", "cross_entropy")
    torch.manual_seed(1)
    return Workload(mlp([6, 3], "tanh").double(), workload.loss, workload.dataset)


@pytest.mark.parametrize(("method", "theirs"), [
    ("gradient_descent", "L-BFGS-B"), ("lbfgs", "L-BFGS-B"), ("newton_cg", "Newton-CG")
])  # fmt: skip
def test_the_minimum_that_scipy_finds(method: str, theirs: str) -> None:
    problem = training(logistic_regression(), l2=0.1)
    start = problem.start()
    ours, trace = solved(problem, start, method=method, iterations=500, tolerance=1e-6)
    assert ours.converged
    products = {"hessp": lambda x, v: problem.hessian(x).apply(v)}
    found = optimize.minimize(
        problem.loss_and_gradient,
        start,
        jac=True,
        method=theirs,
        tol=1e-12,
        **(products if theirs == "Newton-CG" else {}),
    )
    assert trace[-1].loss == pytest.approx(found.fun, abs=within(1e-10))
    assert trace[-1].x == pytest.approx(found.x, abs=1e-4)


def test_loss_gradient_and_hessian_are_those_of_the_training_loss() -> None:
    problem = training(mlp_problem("tanh", "cross_entropy"), l2=0.1)
    x = problem.start()
    loss, gradient = problem.loss_and_gradient(x)
    there = problem._objective.evaluate()
    assert loss == pytest.approx(there.loss, rel=1e-14)
    assert problem.loss(x) == loss
    assert gradient == pytest.approx(there.gradient, abs=1e-15)
    v = np.random.default_rng(0).standard_normal(len(x))
    product = problem.hessian(x).apply(v)
    h = 1e-5
    behind, ahead = (problem.loss_and_gradient(x + sign * h * v)[1] for sign in (-1, 1))
    assert product == pytest.approx((ahead - behind) / (2 * h), abs=1e-8)


def test_products_by_differences_of_gradients() -> None:
    workload = mlp_problem("tanh", "cross_entropy")
    problem, exact = (
        training(workload, l2=0.1, product="finite_difference"),
        training(workload, l2=0.1),
    )
    x = problem.start()
    v = np.random.default_rng(0).standard_normal(len(x))
    near = problem.hessian(x).apply(v)
    assert near == pytest.approx(exact.hessian(x).apply(v), abs=1e-6 * np.abs(near).max())
    assert (near != exact.hessian(x).apply(v)).any()
    one, mine = solved(problem, x, tolerance=1e-7)
    two, theirs = solved(exact, x, tolerance=1e-7)
    assert one.converged
    assert two.converged
    assert len(mine) == len(theirs)
    assert mine[-1].loss == pytest.approx(theirs[-1].loss, abs=1e-11)
    # A product costs one gradient in place of two, or of three where no graph is kept.
    last = mine[-1]
    assert last.cost == pytest.approx(last.gradients + last.products)
    without_graphs = training(workload, l2=0.1, compute={"cache_gib": 0})
    (*_, last) = solved(without_graphs, x, iterations=2)[1]
    assert last.cost == pytest.approx(last.gradients + 3 * last.products)
    assert last.products == theirs[2].products


def test_points_of_a_petsc_in_single_precision() -> None:
    problem = training(mlp_problem("tanh", "cross_entropy"))
    x = problem.start().astype(np.float32)
    assert problem.loss(x) == problem.loss(x.astype(float))
    assert problem.start() == pytest.approx(x, rel=0, abs=0)


def test_one_layer_moves_and_the_others_stay() -> None:
    workload = mlp_problem("tanh", "cross_entropy")
    before = [p.detach().clone() for p in workload.model.parameters()]
    problem = training(workload, layers=["fc2"])
    assert problem.size == 18
    _, trace = solved(problem, problem.start(), iterations=5)
    assert trace[-1].loss < trace[0].loss
    moved = [
        not torch.equal(p, q) for p, q in zip(before, workload.model.parameters(), strict=True)
    ]
    assert moved == [False, False, True, True]


def test_float32_ends_where_rounding_hides_the_decrease() -> None:
    workload = mlp_problem("tanh", "cross_entropy", dtype=torch.float32)
    problem = training(workload, l2=0.1, compute={"dtype": "float32"})
    ended, trace = solved(problem, problem.start(), method="lbfgs", tolerance=1e-12)
    assert not ended.converged
    # With equal losses of seven digits, steps along the bottom go on.
    assert ended.reason.startswith("the line search found no decrease") or (
        single() and ended.limited
    )
    points = [(one.loss, one.gradient_norm) for one in trace]
    assert len(set(points)) == len(points)  # none is a step that changes nothing


# -- what goes wrong --------------------------------------------------------------------------


def barrier(edge: float) -> Function:
    """x − log x, which is NaN at 0 and below, and infinite from the edge on."""

    def value(x: Array) -> float:
        with np.errstate(invalid="ignore"):
            return float("inf") if x[0] >= edge else float((x - np.log(x)).sum())

    return Function(1, value, lambda x: 1 - 1 / x, lambda x: np.diag(1 / x**2))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_to_where_the_loss_is_not_finite_is_halved(method: str) -> None:
    # From 0.1 steepest descent goes to 9.1, beyond the edge; from 3 Newton's step goes to -3.
    ended, trace = solved(barrier(5.0), [3.0 if method == "newton_cg" else 0.1], method=method,
                          tolerance=1e-8, iterations=200)  # fmt: skip
    assert trace[1].trials > 1
    assert ended.converged
    assert trace[-1].x == pytest.approx([1.0], abs=1e-7)


def test_no_finite_trial_is_a_clear_end() -> None:
    def value(x: Array) -> float:
        return 1.0 if x[0] == 0 else float("nan")

    problem = Function(1, value, lambda x: np.ones(1), lambda x: np.eye(1))
    ended, trace = solved(problem, [0.0], method="gradient_descent")
    assert not ended.converged
    assert ended.reason == "the loss is not finite at the last of 34 trial steps"
    assert len(trace) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_line_search_that_finds_no_decrease_is_a_clear_end(method: str) -> None:
    matrix, slope = spd(4)
    wrong = quadratic(matrix, slope)
    wrong._gradient = lambda x: slope - matrix @ x  # points uphill
    ended, trace = solved(wrong, np.ones(4), method=method)
    assert not ended.converged
    said, trials = ended.reason.removesuffix(" trials").rsplit(" ", 1)
    assert said == "the line search found no decrease in"
    # In single precision a trial may end at the same point before.
    assert (20 if single() else 34) <= int(trials) <= 34
    assert trace[-1].x == pytest.approx(np.ones(4))


def test_a_start_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(NumericalError, match="not finite at the start"):
        solved(barrier(5.0), [-1.0])


def test_an_error_or_a_stop_in_the_middle_comes_out_as_it_is() -> None:
    stop = Stopped("stopped on a signal", "again")
    for failure in (stop, ValueError("of the user's")):
        problem, calls = rosenbrock(2), []

        def fails(x: Array, failure: Exception = failure, calls: list[int] = calls) -> Array:
            calls.append(1)
            if len(calls) == 4:
                raise failure
            return optimize.rosen_der(x)

        problem._gradient = fails
        for method in METHODS:
            calls.clear()
            trace: list[Iterate] = []
            with pytest.raises(type(failure), match=str(failure.args[0])):
                minimize(problem, np.array([-1.2, 1.0]), Settings(method=method), trace.append)
            assert len(calls) == 4
            assert trace


# -- TAO's options ----------------------------------------------------------------------------


def test_another_line_search_by_taos_options() -> None:
    start = [-1.2, 1.0]
    with options({"tao_ls_type": "more-thuente", "tao_ls_gtol": 0.1}):
        ended, trace = solved(rosenbrock(2), start, method="lbfgs", tolerance=1e-8)
    assert ended.converged
    for here, there in pairwise(trace):  # the strong Wolfe condition
        p = (there.x - here.x) / there.step
        slopes = [abs(optimize.rosen_der(x) @ p) for x in (here.x, there.x)]
        assert slopes[1] <= 0.1 * slopes[0] * (1 + 1e-6)
    assert not any(one.negative_curvature for one in trace)


@pytest.mark.parametrize("kind", ["lmvm", "nls", "ntr"])
def test_taos_own_types_by_its_options(kind: str) -> None:
    with options({"tao_type": kind}):
        ended, trace = solved(rosenbrock(2), [-1.2, 1.0], tolerance=1e-7)
    assert ended.converged
    assert trace[-1].x == pytest.approx(np.ones(2), abs=1e-5)
    assert (trace[-1].products > 0) == (kind != "lmvm")


@pytest.mark.parametrize("kind", ["nls", "ntr", "bntr"])
def test_products_after_a_rejected_trial_are_at_the_point_of_the_hessian(kind: str) -> None:
    asked: list[Array] = []

    class Watched(TrainingProblem):
        def hessian(self, x: Array) -> ShellMatrix:
            matrix = super().hessian(x)
            multiply, point = matrix.apply, x.copy()

            def apply(v: Array) -> Array:
                assert (self.start() == point).all()  # what graphs hold of θ is the model's
                return multiply(v)

            matrix.apply = apply  # type: ignore[method-assign]
            asked.append(point)
            return matrix

    plain = training(mlp_problem("tanh", "cross_entropy"))
    problem = Watched(plain._objective, plain._weight)
    with options({"tao_type": kind}):
        _, trace = solved(problem, problem.start(), iterations=10)
    assert trace[-1].loss < trace[0].loss
    assert len({one.tobytes() for one in asked}) < len(asked)  # some after a trial
    assert trace[-1].gradients >= len(asked)


def test_iterations_by_taos_option() -> None:
    with options({"tao_max_it": 2}):
        ended, trace = solved(rosenbrock(2), [-1.2, 1.0], iterations=5)
    assert ended == Ended(False, "the 2 iterations of -tao_max_it are done", limited=True)
    assert len(trace) == 3


@pytest.mark.parametrize("kind", ["pounders", "ntl"])
def test_a_type_that_is_no_minimisation_of_a_loss_is_refused(kind: str) -> None:
    with (
        options({"tao_type": kind}),
        pytest.raises(InputError, match=f"-tao_type {kind} is none for"),
    ):
        solved(rosenbrock(2), [-1.2, 1.0])


# -- on ranks ---------------------------------------------------------------------------------


@pytest.mark.mpi(ranks=[3], timeout=60, unit="s")
def test_the_same_iterates_on_ranks(mpi_ranks: int, comm: Any) -> None:
    ranks = Ranks(comm)
    for method in METHODS:
        # Two entries on three ranks: one has none.
        _, trace = solved(rosenbrock(2, ranks), [-1.2, 1.0], method=method, iterations=20)
        workload = mlp_problem("tanh", "cross_entropy", count=2)
        problem = training(workload, ranks, l2=0.01)  # and one has no sample
        start = np.concatenate(ranks.collect(problem.start()))
        _, of_mlp = solved(problem, start, method=method, iterations=5)
        if method == "newton_cg":
            _, by_differences = solved(
                training(workload, ranks, l2=0.01, product="finite_difference"), start, iterations=3
            )
            assert by_differences[-1].loss == pytest.approx(of_mlp[3].loss, rel=1e-5)
        for found, expected in zip((trace, of_mlp), solved_alone(method), strict=True):
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                assert one.loss == pytest.approx(other.loss, rel=1e-10)
                assert (one.trials, one.cg_iterations) == (other.trials, other.cg_iterations)
                whole = np.concatenate(ranks.collect(one.x))
                assert whole == pytest.approx(other.x, rel=1e-8, abs=1e-10)

    not_finite_on_one(ranks)


def solved_alone(method: str) -> tuple[list[Iterate], list[Iterate]]:
    """The same on this process by itself."""
    from mpi4py import MPI

    alone = Ranks(MPI.COMM_SELF)
    _, trace = solved(rosenbrock(2, alone), [-1.2, 1.0], method=method, iterations=20)
    problem = training(mlp_problem("tanh", "cross_entropy", count=2), alone, l2=0.01)
    return trace, solved(problem, problem.start(), method=method, iterations=5)[1]


def not_finite_on_one(ranks: Ranks) -> None:
    """A loss that is not finite on one rank is so on all."""
    workload = mlp_problem("tanh", "cross_entropy", count=9)
    plain = workload.loss

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        far = outputs.detach().norm() > 1e3 and ranks.rank == 1
        return plain(outputs, targets) * (float("nan") if far else 1.0)

    problem = training(Workload(workload.model, loss, workload.dataset), ranks)
    start = problem.start()
    assert len(set(ranks.collect(problem.loss(start)))) == 1
    assert not np.isfinite(problem.loss(1e4 * start))
    assert not np.isfinite(problem.loss_and_gradient(1e4 * start)[0])

    def kinked(outputs: Tensor, targets: Tensor) -> Tensor:
        """|z|^1.5 at zero: its second derivative is infinite, loss and gradient are finite."""
        z = outputs - outputs.detach()
        kink = z.abs().pow(1.5).sum() if ranks.rank == 1 else 0.0
        return plain(outputs, targets) + kink

    problem = training(Workload(workload.model, kinked, workload.dataset), ranks)
    with pytest.raises(NumericalError, match="rank 1: the product over batch 0 is not finite"):
        solved(problem, np.concatenate(ranks.collect(start)))
