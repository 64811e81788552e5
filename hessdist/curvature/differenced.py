"""Products by central differences of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.products import LocalProduct, OnSamples


class CentralProduct(OnSamples):
    """The map of v to Hv by central differences of the gradient, over this rank's samples.

    (∇L(θ + hv) − ∇L(θ − hv)) / 2h with h ‖v‖ = s ∛ε max(1, ‖θ‖), where ε is the rounding of the
    dtype. With s = 1 rounding and truncation balance for functions of scale 1 (Nocedal and Wright
    2006, section 8.1). A product has the memory of one gradient, and takes the time of two. It is
    linear and symmetric only up to its error. Making it and multiplying are collective over the
    ranks that share the parameters.

    Args:
        local: The loss, at the θ of the solve; its parameters are moved and put back.
        factor: The factor s.
    """

    def __init__(self, local: LocalLoss, factor: float = 1.0) -> None:
        self.local = local
        self._theta = local.parameters.flat()
        length = local.norm(float(self._theta.double().norm()))
        self._length = factor * torch.finfo(local.dtype).eps ** (1 / 3) * max(1.0, length)

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply.

        Args:
            v: The vector, (d,), in the product's dtype and on its device.

        Returns:
            The sum over this rank's samples, (d,) float64.

        Raises:
            NumericalError: A gradient at θ ± hv is not finite; the message names rank and batch.
        """
        parameters = self.local.parameters
        norm = self.local.norm(float(v.double().norm()))
        if norm == 0:
            return self.local.zeros()
        h = self._length / norm
        try:
            parameters.assign(torch.add(self._theta, v, alpha=h))
            total = self.local.loss_and_gradient().gradient
            parameters.assign(torch.add(self._theta, v, alpha=-h))
            total.sub_(self.local.loss_and_gradient().gradient)
        finally:
            parameters.assign(self._theta)
        return total.div_(2 * h)


def best_factor(local: LocalLoss, seed: int = 0) -> float:
    """Choose the factor s of `CentralProduct`, by exact products on a few samples.

    Two vectors are multiplied: a random one, in whose product rounding has the largest share, and
    its product, in which the largest eigenvalues prevail, and truncation with them. Collective over
    the ranks that share the parameters.

    Args:
        local: The loss on a few samples.
        seed: The seed of the random vector, the same for ranks that have whole parameters.

    Returns:
        The factor with the smallest error.
    """
    exact = LocalProduct(local, "hessian", 0)
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(exact.size, generator=generator, dtype=local.dtype).to(local.device)
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for _ in range(2):
        product = exact(v)
        norm = local.norm(float(product.norm()))
        if norm == 0:
            break
        pairs.append((v, product, norm))
        v = (product / norm).to(local.dtype)

    def error(factor: float) -> float:
        differenced = CentralProduct(local, factor)
        errors = [local.norm(float((differenced(v) - exact).norm())) / n for v, exact, n in pairs]
        return max(errors, default=0.0)

    return min((1.0, 0.1, 0.01, 0.001), key=error)
