"""The loss over the whole training set as a problem for the full-batch minimiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from hessdist.curvature.products import DifferencedProduct, LocalProduct
from hessdist.landscape.displaced import plain_summed, summed
from hessdist.objective import Objective
from hessdist.optimizers.directions import Vector
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import LocalOperator, ShellMatrix
from hessdist.workload.user_code import evaluating


class TrainingProblem:
    """The loss L(θ) with its gradient and Hessian, over the samples of all ranks.

    Each point gathers θ, and a gradient needs one reduce-scatter, in float64. Losses are summed in
    float64 in the order of the ranks, so that all ranks take the same decisions. The model keeps
    the last point, in its own dtype.

    Args:
        objective: The training loss.
        weight: The sum of weights Σ w, from `Objective.evaluate`.
        product: "exact", or "finite_difference" of two gradients.
        on_work: Called before every evaluation, and with every product; it may raise `Stopped` on
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
        self._product_cost = 1.0 if self._differences else 2.0

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
        """The cost of a product with the last Hessian, in gradients.

        It is 2 with kept graphs, 1 by differences, and 3 for the share of batches whose graph does
        not fit into the budget of its rank.
        """
        return self._product_cost

    def start(self) -> Vector:
        """Return this rank's entries of the model's θ, in float64. Not collective."""
        theta = self._objective.local.parameters.flat()[self._begin : self._end]
        entries: Vector = theta.double().cpu().numpy()
        return entries

    def place(self, x: Vector) -> None:
        """Put a point, this rank's entries of it, into the model of every rank. Collective."""
        whole = np.empty(self.size)
        self.ranks.gather_vector(np.ascontiguousarray(x, np.float64), whole)
        local = self._objective.local
        local.parameters.assign(torch.from_numpy(whole).to(local.device, local.dtype))

    def loss(self, x: Vector) -> float:
        """Compute L(x) with the l2 term, NaN and infinity included, on every rank. Collective."""
        self._on_work()
        self.place(x)
        with self.ranks.agreeing():
            mine = self._sums(with_gradient=False)[0]
        return self._mean(mine)

    def loss_and_gradient(self, x: Vector) -> tuple[float, Vector]:
        """Compute L(x), infinite if the gradient is not finite, and ∇L(x). Collective."""
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
        """Return the Hessian at x, with the graphs of as many batches as fit. Collective.

        It is valid until anything else is computed. A product that is not finite is a
        NumericalError on every rank.

        Returns:
            The matrix.
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
            asymmetry=math.inf,  # near a minimum the Hessian may be only rounding
        )

    def _cost_of(self, product: LocalProduct) -> float:
        """Compute the cost of a product, over the batches of all ranks. Collective."""
        batches = len(self._objective.local.shard)
        kept, everywhere = self.ranks.sum(np.array([product.kept_batches, batches], np.float64))
        return float(3.0 - kept / everywhere)

    def _sums(self, *, with_gradient: bool) -> tuple[float, torch.Tensor]:
        """Sum the loss over this rank's samples, and the gradient if it is wanted."""
        local = self._objective.local
        gradient = local.zeros() if with_gradient else torch.empty(0)
        loss = 0.0
        for number, batch in local.shard.batches():
            with evaluating(f"rank {local.rank}: batch {number}"):
                if with_gradient:
                    with local.derivatives():
                        value = summed(local, batch)
                    local.parameters.layout.add_to(gradient, local.gradient_of(value))
                else:
                    value = plain_summed(local, batch)
            loss += float(value.detach())
        if not bool(torch.isfinite(gradient).all()):
            loss = math.inf
        return loss, gradient

    def _mean(self, mine: float) -> float:
        """Compute L from this rank's sum, the same bits on every rank. Collective."""
        penalty = self._objective.l2 / 2 * float(self._objective.square_norm())
        everyone = self.ranks.collect((mine, penalty))
        loss = sum(one for one, _ in everyone) / self._weight
        return float(loss + everyone[0][1])


class _Deferred:
    """A local operator whose errors are kept until the ranks can agree on them after a sum."""

    def __init__(self, local: LocalOperator) -> None:
        self._local = local
        self._failure: BaseException | None = None

    @property
    def size(self) -> int:
        """The dimension d."""
        return self._local.size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the product."""
        return self._local.dtype

    @property
    def device(self) -> torch.device:
        """The device of the vectors."""
        return self._local.device

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        """Multiply a vector, (d,), with a result in float64 that is NaN after an error."""
        try:
            return self._local(v)
        except BaseException as error:
            self._failure = error
            return torch.full((self.size,), math.nan, dtype=torch.float64, device=self.device)

    def check(self) -> None:
        """Raise the error of the last product, if there is one. Not collective."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
