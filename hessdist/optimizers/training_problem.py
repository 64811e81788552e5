"""The loss over the whole training set as a problem for the full-batch minimiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from hessdist.curvature.differentiation import exact_derivatives
from hessdist.curvature.products import DifferencedProduct, LocalProduct
from hessdist.landscape.displaced import plain_summed, summed
from hessdist.objective import Objective
from hessdist.optimizers.directions import Vector
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import LocalOperator, ShellMatrix
from hessdist.workload.user_code import evaluating

# Gradients that a product counts as, through kept graphs, with graphs that are built anew, and by
# differences.
_KEPT, _ANEW, _DIFFERENCES = 2.0, 3.0, 1.0


class TrainingProblem:
    """L(θ) with its gradient and Hessian, each over the shards of all ranks.

    A point gathers θ; a gradient is one reduce-scatter, in float64. Losses are summed in float64 in
    the order of the ranks, so that all of them decide alike. The model's parameters, in their own
    dtype, are left where they were last asked for.

    Args:
        total: The training loss.
        weight: Σ w, from `Objective.evaluate`.
        product: "exact", or "finite_difference" of two gradients.
        on_work: Called before every evaluation, and with every product; it may raise `Stopped`, on
            all ranks at once.
    """

    def __init__(
        self,
        objective: Objective,
        weight: float,
        product: str = "exact",
        on_work: Callable[[], None] = lambda: None,
    ) -> None:
        self._objective, self._weight = objective, weight
        self._differences = product == "finite_difference"
        self._on_work = on_work
        self._begin, self._end = objective.ranks.shard(objective.layout.size)
        self._product_cost = _DIFFERENCES if self._differences else _KEPT

    @property
    def ranks(self) -> Ranks:
        """The ranks."""
        return self._objective.ranks

    @property
    def size(self) -> int:
        """The dimension d."""
        return self._objective.layout.size

    @property
    def product_cost(self) -> float:
        """Of a product with the last Hessian, in gradients.

        2 through kept graphs, 1 by differences; 3 for the share of batches whose graph does not fit
        the budget of its rank.
        """
        return self._product_cost

    def start(self) -> Vector:
        """This rank's entries of θ as it is in the model, float64. Not collective."""
        theta = self._objective.local.parameters.flat()[self._begin : self._end]
        entries: Vector = theta.double().cpu().numpy()
        return entries

    def place(self, x: Vector) -> None:
        """Put a point into the model of every rank. Collective.

        Args:
            x: This rank's entries of it, (d_local,).
        """
        whole = np.empty(self.size)
        self.ranks.gather_vector(np.ascontiguousarray(x, np.float64), whole)
        local = self._objective.local
        local.parameters.assign(torch.from_numpy(whole).to(local.device, local.dtype))

    def loss(self, x: Vector) -> float:
        """L(x), the l2 term included; NaN and infinity are left as they are. Collective.

        Args:
            x: This rank's entries, (d_local,).

        Returns:
            The loss, the same bits on every rank.

        Raises:
            WorkloadError: The model cannot be evaluated there; on every rank.
        """
        self._on_work()
        self.place(x)
        with self.ranks.agreeing():
            mine = self._sums(with_gradient=False)[0]
        return self._mean(mine)

    def loss_and_gradient(self, x: Vector) -> tuple[float, Vector]:
        """L(x) and ∇L(x). Collective.

        Args:
            x: This rank's entries, (d_local,).

        Returns:
            The loss, infinite where an entry of the gradient is not finite, and this rank's entries
            of the gradient, (d_local,).

        Raises:
            WorkloadError: As `loss`.
        """
        self._on_work()
        self.place(x)
        with self.ranks.agreeing():
            mine, whole = self._sums(with_gradient=True)
        gradient = np.empty(self._end - self._begin)
        self.ranks.reduce_scatter(whole.cpu().numpy(), gradient)
        gradient /= self._weight
        theta = self._objective.local.parameters.flat()[self._begin : self._end]
        gradient += self._objective.l2 * theta.double().cpu().numpy()
        return self._mean(mine), gradient

    def hessian(self, x: Vector) -> ShellMatrix:
        """The Hessian at x: the graphs of as many batches as fit are built. Collective.

        Args:
            x: This rank's entries, (d_local,).

        Returns:
            The matrix, for as long as nothing else is asked for. A product that is not finite is a
            NumericalError on every rank.

        Raises:
            WorkloadError: As `loss`.
        """
        self._on_work()
        self.place(x)
        objective = self._objective
        with self.ranks.agreeing():
            if self._differences:
                local: LocalOperator = DifferencedProduct(objective.local)
            else:
                local = LocalProduct(
                    objective.local, "hessian", objective.compute.cache_gib * 2**30
                )
        if isinstance(local, LocalProduct):
            self._product_cost = self._cost_of(local)
        deferred = _Deferred(local)

        def on_product(products: int) -> None:
            with self.ranks.agreeing():
                deferred.check()
            self._on_work()

        return ShellMatrix(
            deferred,
            self.ranks,
            scale=1 / self._weight,
            shift=objective.l2,
            on_product=on_product,
            asymmetry=math.inf,  # near a minimum rounding may be all that there is
        )

    def _cost_of(self, product: LocalProduct) -> float:
        """Of a product, over the batches of all ranks. Collective."""
        batches = len(self._objective.local.shard)
        kept, everywhere = self.ranks.sum(np.array([product.kept_batches, batches], np.float64))
        return float(_ANEW + (_KEPT - _ANEW) * kept / everywhere)

    def _sums(self, *, with_gradient: bool) -> tuple[float, torch.Tensor]:
        """Over this rank's samples: the loss, and the gradient where it is asked for."""
        local = self._objective.local
        gradient = local.zeros() if with_gradient else torch.empty(0)
        loss = 0.0
        for number, batch in local.shard.batches():
            with evaluating(f"rank {local.rank}: batch {number}"):
                if with_gradient:
                    with exact_derivatives():
                        value = summed(local, batch)
                    local.parameters.layout.add_to(gradient, local.gradient_of(value))
                else:
                    value = plain_summed(local, batch)
            loss += float(value.detach())
        if not bool(torch.isfinite(gradient).all()):
            loss = math.inf
        return loss, gradient

    def _mean(self, mine: float) -> float:
        """L from this rank's sum, the same bits on every rank. Collective."""
        penalty = self._objective.l2 / 2 * float(self._objective.square_norm())
        everyone = self.ranks.collect((mine, penalty))
        loss = sum(one for one, _ in everyone) / self._weight
        return float(loss + everyone[0][1])


class _Deferred:
    """A local operator whose errors wait until the ranks, who are inside a sum, can agree on them.

    Args:
        local: The operator.
    """

    def __init__(self, local: LocalOperator) -> None:
        self._local = local
        self._failure: BaseException | None = None

    @property
    def size(self) -> int:
        """The dimension d."""
        return self._local.size

    @property
    def dtype(self) -> torch.dtype:
        """Of the product."""
        return self._local.dtype

    @property
    def device(self) -> torch.device:
        """Where the product takes its vector."""
        return self._local.device

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """Multiply: (d,) to (d,) float64, NaN where that fails."""
        try:
            return self._local(v)
        except BaseException as error:
            self._failure = error
            return torch.full((self.size,), math.nan, dtype=torch.float64, device=self.device)

    def check(self) -> None:
        """Raise what the last product has failed with. Not collective."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
