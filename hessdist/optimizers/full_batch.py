"""Full-batch minimisation with PETSc's TAO: gradient descent, L-BFGS and Newton-CG.

TAO provides the iteration, the line search, the tests for the end and its own options. The
directions are those of `directions.py`, as TAO's type `python`. TAO's own types for these methods
differ from the published ones: `bncg` and `lmvm` scale and restart by rules of their own, and `nls`
shifts an indefinite Hessian. They are available by `-tao_type`.

The line search is TAO's `armijo`: backtracking from α = 1 (Nocedal and Wright 2006, algorithm 3.1),
monotone. A trial at which the objective is not finite halves the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hessdist.errors import InputError, NumericalError, Stopped
from hessdist.optimizers.directions import (
    LBFGS,
    Direction,
    NewtonCG,
    Rule,
    Vector,
    steepest_descent,
)
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import petsc
from hessdist.spectrum.petsc_interfaces import raising_petsc_errors, set_entries, tao_reasons
from hessdist.spectrum.shell import ShellMatrix

METHODS = ("gradient_descent", "lbfgs", "newton_cg")


class Problem(Protocol):
    """An objective with its derivatives. Vectors are spread over ranks as in `Ranks.shard`.

    Values that are not finite are returned as they are. They are the same on every rank.
    """

    @property
    def ranks(self) -> Ranks:
        """The ranks."""

    @property
    def size(self) -> int:
        """The dimension d."""

    @property
    def product_cost(self) -> float:
        """The cost of a product with the last Hessian, in gradients."""

    def loss(self, x: Vector) -> float:
        """Compute the objective at x. Collective."""

    def loss_and_gradient(self, x: Vector) -> tuple[float, Vector]:
        """Compute the objective and its gradient at x. Collective."""

    def hessian(self, x: Vector) -> ShellMatrix:
        """Return the Hessian at x, which is valid until anything else is computed. Collective.

        Products raise an exception on all ranks or on none.
        """


@dataclass(frozen=True)
class Settings:
    """The settings of a minimisation."""

    method: str = "newton_cg"  # one of `METHODS`
    iterations: int = 100
    tolerance: float = 1e-6  # norm of the gradient at the end
    sufficient_decrease: float = 1e-4  # c of the Armijo condition
    backtracking: float = 0.5  # ρ, the factor of α after a trial that fails the condition
    history: int = 10  # pairs of L-BFGS
    cg_iterations: int = 100  # the maximum of an inner solve
    budget: float = math.inf  # work at which a minimisation ends, in gradients


def tao_options(options: Sequence[str]) -> list[str]:
    """Select the options of TAO that change a minimisation, with their values.

    Args:
        options: The words of the command line.

    Returns:
        The selected words.
    """
    kept, keeps = [], False
    for word in options:
        if petsc.is_option(word):
            shows = any(part in word for part in ("monitor", "view", "log_"))
            keeps = word.startswith("-tao_") and not shows
        if keeps:
            kept.append(word)
    return kept


@dataclass(frozen=True)
class Iterate:
    """An accepted point and its computation. Counts are of all the work since the start."""

    number: int
    x: Vector  # this rank's entries, float64
    loss: float
    gradient_norm: float
    step: float  # α; NaN at the start
    trials: int  # evaluations of the line search
    cg_iterations: int
    negative_curvature: bool  # met in the computation of the direction
    losses: int
    gradients: int  # including one for every Hessian, whose graphs or first gradient are computed
    products: int
    cost: float  # of losses, gradients and products, in gradients
    seconds: float


@dataclass(frozen=True)
class Ended:
    """The reason why a minimisation ended."""

    converged: bool
    reason: str  # in words
    limited: bool = False  # it could continue with more iterations or a larger budget


def minimize(
    problem: Problem,
    start: Vector,
    settings: Settings,
    on_iterate: Callable[[Iterate], None] = lambda iterate: None,
) -> Ended:
    """Minimise an objective; TAO's options on the command line override the settings. Collective.

    Args:
        problem: The problem.
        start: This rank's entries of the first point, (d_local,).
        settings: Method, line search and ends.
        on_iterate: Called on all ranks with the start and every accepted point. It raises on all
            ranks or on none.

    Returns:
        The reason of the end. The last point that `on_iterate` was given is the result.

    Raises:
        NumericalError: A product, or the objective or its gradient at an accepted point, is not
            finite; on all ranks.
        Stopped: The problem raises it, on all ranks.
        InputError: TAO's options choose no minimisation that it can do.
    """
    petsc.initialise()
    return _Minimisation(problem, settings, on_iterate).run(start)


class _Minimisation:
    """One solve of TAO: its callbacks, and the counts of their work.

    PETSc does not survive an exception in a callback. The exception is kept in `failure`, all
    further trials are rejected, and the solve ends at once.
    """

    def __init__(
        self, problem: Problem, settings: Settings, on_iterate: Callable[[Iterate], None]
    ) -> None:
        self._problem, self._settings, self._on_iterate = problem, settings, on_iterate
        self._rule = self._rule_of(settings)
        self._direction: Direction | None = None
        self._losses = self._gradients = self._products = self._trials = 0
        self._last_trial = self._cost = 0.0
        self._product_cost = 0.0  # of `_products`, in gradients
        self._accepted = -1  # number of the last iterate
        self._x: Vector = np.empty(0)  # entries of the last iterate
        self._last_values = (math.inf, math.inf)  # its loss and norm of the gradient
        self._stuck = False
        self._is_python = True  # TAO's type is python
        self._counted = 0  # products of the present matrix that are counted
        self._shift = 0.0  # number that TAO adds to the diagonal of the Hessian
        self._matrix: ShellMatrix | None = None
        self._hessian_at: Vector | None = None  # point of the Hessian of TAO's own types
        self._begin = time.perf_counter()
        self.failure: BaseException | None = None

    def _rule_of(self, settings: Settings) -> Rule:
        ranks = self._problem.ranks
        if settings.method == "newton_cg":
            return NewtonCG(ranks, self._products_at, settings.cg_iterations)
        if settings.method == "lbfgs":
            return LBFGS(ranks, settings.history)
        return steepest_descent

    # -- the solve -----------------------------------------------------------------------------

    def run(self, start: Vector) -> Ended:
        """Solve with TAO. Collective."""
        from petsc4py import PETSc

        sizes = (len(start), self._problem.size)
        # Types that need only an objective with gradient and Hessian; without ntl, which ends in a
        # segmentation fault with an armijo search in PETSc 3.18.
        types = ("lmvm", "blmvm", "cg", "bncg", "nls", "ntr", "bnls", "bntr", "bntl", "bqnls")
        x = PETSc.Vec().createMPI(sizes, comm=self._problem.ranks.comm)
        set_entries(x, start)
        gradient = x.duplicate()
        tao = PETSc.TAO().create(comm=self._problem.ranks.comm)
        hessian: Any = None
        try:
            tao.setType(PETSc.TAO.Type.PYTHON)
            tao.setPythonContext(self)
            tao.setMaximumIterations(self._settings.iterations)
            tao.setTolerances(gatol=self._settings.tolerance, grtol=0.0, gttol=0.0)
            with _default_options(self._options()):
                tao.setFromOptions()
            self._is_python = is_python = tao.getType() == PETSc.TAO.Type.PYTHON
            if not is_python and tao.getType() not in types:
                raise InputError(
                    f"-tao_type {tao.getType()} is none for the minimisation of a loss",
                    f"leave it out, or use one of {', '.join(types)}",
                )
            if is_python and self._tries_losses():
                tao.setObjective(self._objective)
                tao.setGradient(self._gradient, gradient)
            tao.setObjectiveGradient(self._objective_and_gradient, gradient)
            if not is_python:
                hessian = PETSc.Mat().createPython((sizes, sizes), self, comm=tao.getComm())
                hessian.setOption(PETSc.Mat.Option.SYMMETRIC, True)
                hessian.setUp()
                tao.setHessian(self._set_hessian_point, hessian)
            tao.setMonitor(self._monitor)
            tao.setConvergenceTest(self._go_on)
            try:
                with raising_petsc_errors():
                    tao.solve(x)
            except PETSc.Error as error:
                if self.failure is None and is_python and not math.isfinite(self._last_trial):
                    return self._no_decrease()  # an error in PETSc 3.18
                if self.failure is None:
                    raise InputError(
                        f"PETSc's TAO ended with an error ({str(error).splitlines()[-1].strip()})",
                        "leave the options -tao_* that choose another solver",
                    ) from error
            if self.failure is not None:
                raise self.failure
            return self._ended(tao)
        finally:
            for one in (tao, hessian, gradient, x):
                if one is not None:
                    one.destroy()

    def _options(self) -> dict[str, Any]:
        """Return TAO's options: Armijo backtracking, and no factorisation of the Hessian."""
        c, rho = self._settings.sufficient_decrease, self._settings.backtracking
        smallest = 1e-10  # step length at which backtracking ends
        return {
            "tao_ls_type": "armijo",
            "tao_ls_armijo_sigma": c,
            "tao_ls_armijo_beta": rho,
            "tao_ls_max_funcs": math.ceil(math.log(smallest) / math.log(rho)),
            "tao_nls_pc_type": "none",
            "tao_ntr_pc_type": "none",
        }

    def _tries_losses(self) -> bool:
        """Return whether trials compute only the loss, because most first trials fail."""
        return self._settings.method == "gradient_descent"

    def _ended(self, tao: Any) -> Ended:
        why, reason = tao_reasons(), tao.getConvergedReason()
        if reason == why.CONVERGED_GATOL:
            return Ended(True, f"the norm of the gradient is within {tao.getTolerances()[0]:g}")
        if reason in (why.CONVERGED_GRTOL, why.CONVERGED_GTTOL):
            return Ended(True, "the gradient is within the relative tolerance of TAO's options")
        if reason == why.DIVERGED_MAXITS:
            most = tao.getMaximumIterations()
            if most == self._settings.iterations:
                return Ended(False, f"all {most} iterations are done", limited=True)
            return Ended(False, f"the {most} iterations of -tao_max_it are done", limited=True)
        if reason == why.DIVERGED_LS_FAILURE:
            return self._no_decrease()
        if reason == why.DIVERGED_MAXFCN and self._cost >= self._settings.budget:
            spent = f"the budget of {self._settings.budget:g} gradients is spent"
            return Ended(False, spent, limited=True)
        return Ended(False, f"TAO ended before the gradient was small (reason {reason})")

    def _no_decrease(self) -> Ended:
        if math.isfinite(self._last_trial):
            return Ended(False, f"the line search found no decrease in {self._trials} trials")
        return Ended(False, f"the loss is not finite at the last of {self._trials} trial steps")

    # -- TAO's callbacks -----------------------------------------------------------------------

    @contextmanager
    def _keeping_failure(self) -> Iterator[None]:
        """Keep an exception that all ranks raise; any other one aborts the ranks, which would wait.

        Yields:
            Nothing.
        """
        try:
            yield
        except BaseException as error:
            agreed = isinstance(error, Stopped) or getattr(error, "agreed", False)
            if not agreed and self._problem.ranks.size > 1:
                self._problem.ranks.abort(error)
            self.failure = error

    def _rejecting_value(self) -> float:
        """Return the value that makes TAO reject a point after a failure, or end at the start."""
        return 0.0 if self._accepted < 0 else math.inf

    def _record_trial(self, loss: float) -> float:
        self._trials += 1
        self._last_trial = loss
        return loss

    def _objective(self, tao: Any, x: Any) -> float:
        """Compute the loss of a trial for TAO."""
        if self.failure is None:
            with self._keeping_failure():
                self._losses += 1
                self._release_hessian()
                return self._record_trial(self._problem.loss(_entries(x)))
        return self._rejecting_value()

    def _objective_and_gradient(self, tao: Any, x: Any, gradient: Any) -> float:
        """Compute loss and gradient for TAO, at the start and for a trial."""
        if self.failure is None:
            with self._keeping_failure():
                self._gradients += 1
                self._release_hessian()
                loss, found = self._problem.loss_and_gradient(_entries(x))
                if self._accepted < 0 and not math.isfinite(loss):
                    raise _not_finite("the start")
                set_entries(gradient, found)
                return self._record_trial(loss)
        gradient.set(0.0)
        return self._rejecting_value()

    def _gradient(self, tao: Any, x: Any, gradient: Any) -> None:
        """Compute the gradient for TAO at an accepted point, whose loss is known."""
        if self.failure is None:
            with self._keeping_failure():
                self._gradients += 1
                self._release_hessian()
                loss, found = self._problem.loss_and_gradient(_entries(x))
                if not math.isfinite(loss):
                    raise _not_finite("an accepted point")
                set_entries(gradient, found)
                return
        gradient.set(0.0)

    def step(self, tao: Any, x: Any, gradient: Any, direction: Any) -> None:
        """Compute the direction for TAO's type python."""
        if self.failure is None:
            with self._keeping_failure():
                self._direction = self._rule(_entries(x), _entries(gradient))
                self._release_hessian()  # its graphs take memory, and θ will change
                set_entries(direction, self._direction.vector)
                return
        gradient.copy(direction)
        direction.scale(-1.0)

    def _monitor(self, tao: Any) -> None:
        """Report the start and every accepted point; called by TAO."""
        number, loss, norm, _, step, _ = tao.getSolutionStatus()
        if self.failure is not None or number <= self._accepted:
            return
        if not self._has_moved(tao, loss, norm):
            return
        direction = self._direction or Direction(np.empty(0))
        self._count_products()
        # A loss, which has no backward pass, costs a third of a gradient.
        self._cost = self._gradients + 1 / 3 * self._losses + self._product_cost
        iterate = Iterate(
            number=number,
            x=self._x,
            loss=loss,
            gradient_norm=norm,
            step=step if number else math.nan,
            trials=self._trials if number else 0,
            cg_iterations=direction.cg_iterations,
            negative_curvature=direction.negative_curvature,
            losses=self._losses,
            gradients=self._gradients,
            products=self._products,
            cost=self._cost,
            seconds=time.perf_counter() - self._begin,
        )
        self._accepted, self._trials, self._direction = number, 0, None
        with self._keeping_failure():
            self._on_iterate(iterate)

    def _has_moved(self, tao: Any, loss: float, norm: float) -> bool:
        """Return whether the line search has found another point. Collective.

        PETSc 3.18 continues if it has found none. If θ is rounded to float32, the Armijo condition
        also holds, with equality, for steps that are too small to change anything.
        """
        x = _entries(tao.getSolution())
        before, self._x = self._x, x
        then, self._last_values = self._last_values, (loss, norm)
        if self._accepted >= 0 and self._is_python:  # types with a trust region need not move
            moved = self._problem.ranks.any(bool((x != before).any()))
            self._stuck = not moved or (loss, norm) == then
        return not self._stuck

    def _go_on(self, tao: Any) -> Any:
        """Test for the end, after TAO's own test."""
        reasons = tao_reasons()
        if self.failure is not None:
            return reasons.DIVERGED_USER
        if self._stuck:
            return reasons.DIVERGED_LS_FAILURE
        spent = self._cost >= self._settings.budget and tao.getConvergedReason() <= 0
        return reasons.DIVERGED_MAXFCN if spent else None

    # -- the Hessian ---------------------------------------------------------------------------

    def _products_at(self, x: Vector) -> Callable[[Vector], Vector]:
        """Return products with the Hessian at x, valid until the next call. Collective."""
        self._release_hessian()
        self._gradients += 1
        self._matrix, self._counted = self._problem.hessian(x), 0
        return self._matrix.apply

    def _release_hessian(self) -> None:
        """Release the Hessian: its graphs belong to the present parameters, which will change."""
        self._count_products()
        self._matrix = None

    def _count_products(self) -> None:
        """Add the matrix's products since the last call to the counts."""
        if self._matrix is not None:
            new, self._counted = self._matrix.products - self._counted, self._matrix.products
            self._products += new
            self._product_cost += self._problem.product_cost * new

    def _set_hessian_point(self, tao: Any, x: Any, hessian: Any, preconditioner: Any) -> None:
        """Set the point of the Hessian for TAO's own types."""
        if self.failure is None:
            with self._keeping_failure():
                self._hessian_at, self._shift = _entries(x), 0.0
                self._products_at(self._hessian_at)

    def mult(self, matrix: Any, x: Any, y: Any) -> None:
        """Compute y = Hx for TAO's own types; the identity after a failure.

        After a trial that they reject, these types continue with the previous Hessian.
        """
        if self.failure is None and self._hessian_at is not None:
            with self._keeping_failure():
                if self._matrix is None:
                    self._products_at(self._hessian_at)
                assert self._matrix is not None
                entries = _entries(x)
                set_entries(y, self._matrix.apply(entries) + self._shift * entries)
                return
        x.copy(y)

    def shift(self, matrix: Any, by: float) -> None:
        """Add a multiple of the identity to the Hessian, until the next iterate."""
        self._shift += by


def _entries(vector: Any) -> Vector:
    """Copy this rank's entries of a PETSc vector to float64, whatever scalars PETSc has."""
    return np.array(vector.getArray(readonly=True), np.float64)


def _not_finite(where: str) -> NumericalError:
    return NumericalError(
        f"loss or gradient is not finite at {where}",
        "check the start and the data, or use compute.dtype = 'float64'",
    ).on_all_ranks()


@contextmanager
def _default_options(options: Mapping[str, Any]) -> Iterator[None]:
    """Set PETSc's options, except those that the command line sets, in this context.

    Yields:
        Nothing.
    """
    from petsc4py import PETSc

    known = PETSc.Options()
    added = {name: value for name, value in options.items() if not known.hasName(name)}
    for name, value in added.items():
        known.setValue(name, value)
    try:
        yield
    finally:
        for name in added:
            known.delValue(name)
