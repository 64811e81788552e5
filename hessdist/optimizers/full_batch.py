"""Full-batch minimisation on PETSc's TAO: gradient descent, L-BFGS and Newton-CG.

TAO has the iteration, the line search, the tests for the end and all options of its own; the
directions are those of `directions.py`, handed to it by its type `python`. Its own types for these
methods differ from the published ones: `bncg` and `lmvm` scale and restart as they see fit, and
`nls` shifts the Hessian where it is indefinite. They are there all the same, by `-tao_type`.

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
from hessdist.spectrum.shell import ShellMatrix

METHODS = ("gradient_descent", "lbfgs", "newton_cg")
# TAO's own types that take an objective with gradient and Hessian and nothing else; without ntl,
# which ends in a segmentation fault with an armijo search in PETSc 3.18.
_TYPES = ("lmvm", "blmvm", "cg", "bncg", "nls", "ntr", "bnls", "bntr", "bntl", "bqnls")
# Those of them that would factorise the Hessian to precondition CG.
_PRECONDITIONED = ("nls", "ntr")
_QUIET = ("monitor", "view", "log_")  # options that only show something
_LEAST_STEP = 1e-10  # α at which backtracking gives up
_LOSS = 1 / 3  # of a gradient: a pass forward without the one back


class Problem(Protocol):
    """What is minimised: all that the minimiser asks of it. Vectors are spread by `Ranks.shard`.

    Values that are not finite are returned as they are; the same values on every rank.
    """

    @property
    def ranks(self) -> Ranks:
        """The ranks."""

    @property
    def size(self) -> int:
        """The dimension d."""

    @property
    def product_cost(self) -> float:
        """Of a product with the Hessian that was made last, in gradients."""

    def loss(self, x: Vector) -> float:
        """The objective at x. Collective."""

    def loss_and_gradient(self, x: Vector) -> tuple[float, Vector]:
        """The objective and its gradient at x. Collective."""

    def hessian(self, x: Vector) -> ShellMatrix:
        """The Hessian at x, used up before anything else is asked of the problem. Collective.

        Products raise on all ranks or on none.
        """


@dataclass(frozen=True)
class Settings:
    """Of a minimisation."""

    method: str = "newton_cg"  # one of `METHODS`
    iterations: int = 100
    tolerance: float = 1e-6  # norm of the gradient at the end
    sufficient_decrease: float = 1e-4  # c of the Armijo condition
    backtracking: float = 0.5  # ρ, the factor of α at a trial that fails it
    history: int = 10  # pairs of L-BFGS
    cg_iterations: int = 100  # the most of an inner solve
    budget: float = math.inf  # work at which it ends, in gradients


def tao_options(options: Sequence[str]) -> list[str]:
    """Those options of TAO's that change what a minimisation does, with their values.

    Args:
        options: Words of the command line.

    Returns:
        Words among them.
    """
    kept, keeps = [], False
    for word in options:
        if petsc.is_option(word):
            keeps = word.startswith("-tao_") and not any(quiet in word for quiet in _QUIET)
        if keeps:
            kept.append(word)
    return kept


@dataclass(frozen=True)
class Iterate:
    """An accepted point, and how it was reached. Counts are of all the work since the start."""

    number: int
    x: Vector  # this rank's entries, float64
    loss: float
    gradient_norm: float
    step: float  # α; NaN at the start
    trials: int  # evaluations of the line search
    cg_iterations: int
    negative_curvature: bool  # seen on the way to the direction
    losses: int
    gradients: int  # with one for every Hessian, whose graphs or first gradient are built anew
    products: int
    cost: float  # of all these, in gradients
    seconds: float


@dataclass(frozen=True)
class Ended:
    """Why a minimisation ended."""

    converged: bool
    reason: str  # in words
    limited: bool = False  # whether it would go on with more iterations, or a larger budget


def minimize(
    problem: Problem,
    start: Vector,
    settings: Settings,
    on_iterate: Callable[[Iterate], None] = lambda iterate: None,
) -> Ended:
    """Minimise. Collective. TAO's options on the command line have the last word.

    Args:
        problem: The problem.
        start: This rank's entries of the first point, (d_local,).
        settings: Method, line search and ends.
        on_iterate: Given the start and every accepted point; on all ranks, and what it raises it
            raises on all.

    Returns:
        Why it ended; the last point that `on_iterate` was given is the result.

    Raises:
        NumericalError: Objective or gradient are not finite at a point that has to be taken, or a
            product is not; on all ranks.
        Stopped: As the problem raises it, on all ranks.
        InputError: TAO's options are no minimisation that it can do.
    """
    petsc.initialise()
    return _Minimisation(problem, settings, on_iterate).run(start)


class _Minimisation:
    """One solve of TAO's: its callbacks, and the counts of what they do.

    PETSc does not survive an exception in a callback: it is kept in `failure`, from then on no
    trial is good, and the solve ends at once.
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
        self._accepted = -1  # the number of the last iterate
        self._x: Vector = np.empty(0)  # its entries
        self._there = (math.inf, math.inf)  # loss and norm of the gradient there
        self._stuck = False
        self._ours = True  # whether TAO's type is python
        self._counted = 0  # of the present matrix's products
        self._shift = 0.0  # that TAO adds to the diagonal of the Hessian
        self._matrix: ShellMatrix | None = None
        self._hessian_at: Vector | None = None  # where TAO's own types have it
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
        """Let TAO solve it. Collective."""
        from petsc4py import PETSc

        sizes = (len(start), self._problem.size)
        x = PETSc.Vec().createMPI(sizes, comm=self._problem.ranks.comm)
        x.setArray(start)
        gradient = x.duplicate()
        tao = PETSc.TAO().create(comm=self._problem.ranks.comm)
        hessian: Any = None
        try:
            tao.setType(PETSc.TAO.Type.PYTHON)
            tao.setPythonContext(self)
            tao.setMaximumIterations(self._settings.iterations)
            tao.setTolerances(gatol=self._settings.tolerance, grtol=0.0, gttol=0.0)
            with _unless_given(self._line_search() | self._preconditioners()):
                tao.setFromOptions()
            self._ours = ours = tao.getType() == PETSc.TAO.Type.PYTHON
            if not ours and tao.getType() not in _TYPES:
                raise InputError(
                    f"-tao_type {tao.getType()} is none for the minimisation of a loss",
                    f"leave it out, or use one of {', '.join(_TYPES)}",
                )
            if ours and self._tries_losses():
                tao.setObjective(self._objective)
                tao.setGradient(self._gradient, gradient)
            tao.setObjectiveGradient(self._objective_and_gradient, gradient)
            if not ours:
                hessian = PETSc.Mat().createPython((sizes, sizes), self, comm=tao.getComm())
                hessian.setOption(PETSc.Mat.Option.SYMMETRIC, True)
                hessian.setUp()
                tao.setHessian(self._place_hessian, hessian)
            tao.setMonitor(self._monitor)
            tao.setConvergenceTest(self._go_on)
            try:
                tao.solve(x)
            except PETSc.Error as error:
                if self.failure is None and ours and not math.isfinite(self._last_trial):
                    return self._no_decrease()  # PETSc 3.18 takes that for an error
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

    def _line_search(self) -> dict[str, Any]:
        """Armijo backtracking, in TAO's options."""
        c, rho = self._settings.sufficient_decrease, self._settings.backtracking
        return {
            "tao_ls_type": "armijo",
            "tao_ls_armijo_sigma": c,
            "tao_ls_armijo_beta": rho,
            "tao_ls_max_funcs": math.ceil(math.log(_LEAST_STEP) / math.log(rho)),
        }

    def _preconditioners(self) -> dict[str, Any]:
        """None, in TAO's options, for the types that would factorise a matrix that is not there."""
        return {f"tao_{kind}_pc_type": "none" for kind in _PRECONDITIONED}

    def _tries_losses(self) -> bool:
        """Whether trials evaluate the loss alone, as pays where the first one mostly fails."""
        return self._settings.method == "gradient_descent"

    def _ended(self, tao: Any) -> Ended:
        from petsc4py import PETSc

        why, reason = PETSc.TAO.Reason, tao.getConvergedReason()
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
        """Keep what is raised, which all ranks raise; one that others wait for ends them all.

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

    def _no_good(self) -> float:
        """What TAO is told after a failure: to reject a point, or to end if it is the first."""
        return 0.0 if self._accepted < 0 else math.inf

    def _tried(self, loss: float) -> float:
        self._trials += 1
        self._last_trial = loss
        return loss

    def _objective(self, tao: Any, x: Any) -> float:
        """TAO's callback of a trial."""
        if self.failure is None:
            with self._keeping_failure():
                self._losses += 1
                self._forget_hessian()
                return self._tried(self._problem.loss(_entries(x)))
        return self._no_good()

    def _objective_and_gradient(self, tao: Any, x: Any, gradient: Any) -> float:
        """TAO's callback at the start, and of a trial."""
        if self.failure is None:
            with self._keeping_failure():
                self._gradients += 1
                self._forget_hessian()
                loss, found = self._problem.loss_and_gradient(_entries(x))
                if self._accepted < 0 and not math.isfinite(loss):
                    raise _not_finite("the start")
                gradient.setArray(found)
                return self._tried(loss)
        gradient.set(0.0)
        return self._no_good()

    def _gradient(self, tao: Any, x: Any, gradient: Any) -> None:
        """TAO's callback at an accepted point, whose loss is known."""
        if self.failure is None:
            with self._keeping_failure():
                self._gradients += 1
                self._forget_hessian()
                loss, found = self._problem.loss_and_gradient(_entries(x))
                if not math.isfinite(loss):
                    raise _not_finite("an accepted point")
                gradient.setArray(found)
                return
        gradient.set(0.0)

    def step(self, tao: Any, x: Any, gradient: Any, direction: Any) -> None:
        """TAO's callback of its type python: the direction."""
        if self.failure is None:
            with self._keeping_failure():
                self._direction = self._rule(_entries(x), _entries(gradient))
                self._forget_hessian()  # its graphs take memory, and θ is about to move
                direction.setArray(self._direction.vector)
                return
        gradient.copy(direction)
        direction.scale(-1.0)

    def _monitor(self, tao: Any) -> None:
        """TAO's callback at the start and at every accepted point."""
        number, loss, norm, _, step, _ = tao.getSolutionStatus()
        if self.failure is not None or number <= self._accepted:
            return
        if not self._got_on(tao, loss, norm):
            return
        direction = self._direction or Direction(np.empty(0))
        self._count_products()
        self._cost = self._gradients + _LOSS * self._losses + self._product_cost
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

    def _got_on(self, tao: Any, loss: float, norm: float) -> bool:
        """Whether the line search has found another point. Collective.

        PETSc 3.18 goes on where it has found none. And where θ is rounded to float32, the Armijo
        condition holds, with equality, at steps that are too small to change anything.

        Returns:
            Whether it is to be told of.
        """
        x = _entries(tao.getSolution())
        before, self._x = self._x, x
        then, self._there = self._there, (loss, norm)
        if self._accepted >= 0 and self._ours:  # types with a trust region may stay where they are
            moved = self._problem.ranks.any(bool((x != before).any()))
            self._stuck = not moved or (loss, norm) == then
        return not self._stuck

    def _go_on(self, tao: Any) -> Any:
        """TAO's callback after its own test for the end."""
        from petsc4py import PETSc

        if self.failure is not None:
            return PETSc.TAO.Reason.DIVERGED_USER
        if self._stuck:
            return PETSc.TAO.Reason.DIVERGED_LS_FAILURE
        spent = self._cost >= self._settings.budget and tao.getConvergedReason() <= 0
        return PETSc.TAO.Reason.DIVERGED_MAXFCN if spent else None

    # -- the Hessian ---------------------------------------------------------------------------

    def _products_at(self, x: Vector) -> Callable[[Vector], Vector]:
        """Products with the Hessian at x, until the next one is asked for. Collective."""
        self._forget_hessian()
        self._gradients += 1
        self._matrix, self._counted = self._problem.hessian(x), 0
        return self._matrix.apply

    def _forget_hessian(self) -> None:
        """Let it go: what its graphs hold is where the model is, which is about to move."""
        self._count_products()
        self._matrix = None

    def _count_products(self) -> None:
        """Add to the counts what the matrix has done since the last call."""
        if self._matrix is not None:
            new, self._counted = self._matrix.products - self._counted, self._matrix.products
            self._products += new
            self._product_cost += self._problem.product_cost * new

    def _place_hessian(self, tao: Any, x: Any, hessian: Any, preconditioner: Any) -> None:
        """TAO's callback for types of its own that use the Hessian."""
        if self.failure is None:
            with self._keeping_failure():
                self._hessian_at, self._shift = _entries(x), 0.0
                self._products_at(self._hessian_at)

    def mult(self, matrix: Any, x: Any, y: Any) -> None:
        """PETSc's callback: y = Hx, for those types; the identity after a failure.

        After a trial that they reject they go on with the Hessian of before.
        """
        if self.failure is None and self._hessian_at is not None:
            with self._keeping_failure():
                if self._matrix is None:
                    self._products_at(self._hessian_at)
                assert self._matrix is not None
                entries = _entries(x)
                y.setArray(self._matrix.apply(entries) + self._shift * entries)
                return
        x.copy(y)

    def shift(self, matrix: Any, by: float) -> None:
        """PETSc's callback: H ← H + by I, until the next iterate."""
        self._shift += by


def _entries(vector: Any) -> Vector:
    """A copy of this rank's entries of a PETSc vector, in float64 whatever PETSc is built for."""
    return np.array(vector.getArray(readonly=True), np.float64)


def _not_finite(where: str) -> NumericalError:
    return NumericalError(
        f"loss or gradient is not finite at {where}",
        "check the start and the data, or use compute.dtype = 'float64'",
    ).on_all_ranks()


@contextmanager
def _unless_given(options: Mapping[str, Any]) -> Iterator[None]:
    """Have PETSc's options beside those of the command line, for a while.

    Args:
        options: By name.

    Yields:
        Nothing.
    """
    from petsc4py import PETSc

    known = PETSc.Options()
    ours = {name: value for name, value in options.items() if not known.hasName(name)}
    for name, value in ours.items():
        known.setValue(name, value)
    try:
        yield
    finally:
        for name in ours:
            known.delValue(name)
