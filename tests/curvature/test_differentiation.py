"""Casts to float32 inside models of float64, which are left out where derivatives are taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import hessdist
from hessdist.curvature.differentiation import exact_derivatives

CASTS: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float().softmax(1),
    "to": lambda x: x.to(torch.float32).softmax(1),
    "to a device": lambda x: x.to("cpu", torch.float32).softmax(1),
    "to dtype": lambda x: x.to(dtype=torch.float32).softmax(1),
    "type": lambda x: x.type(torch.float32).softmax(1),
    "softmax": lambda x: F.softmax(x, dim=1, dtype=torch.float32),
    "method": lambda x: x.softmax(1, dtype=torch.float32),
}


class Net(nn.Module):
    """Probabilities of a hidden layer, as attention and routers have them."""

    def __init__(self, probabilities: Callable[[Tensor], Tensor], checkpoints: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.probabilities, self.checkpoints = probabilities, checkpoints

    def inner(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.probabilities(h).type_as(h) * h

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpoints:
            return self.last(checkpoint(self.inner, x, use_reentrant=False))
        return self.last(self.inner(x))


def eigenvalues(model: nn.Module) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(20, 4, generator=generator), torch.arange(20) % 3)
    found = hessdist.extreme_eigenpairs(
        model.double(), nn.functional.cross_entropy, data, largest=3, smallest=2, tolerance=1e-9
    )
    assert found.converged
    return np.concatenate([found.eigenvalues_largest, found.eigenvalues_smallest])


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("name", ["float", "softmax"])
def test_a_cast_in_a_model_of_float64_is_left_out(name: str, checkpoints: bool) -> None:
    right = eigenvalues(Net(lambda x: x.softmax(1)))
    assert eigenvalues(Net(CASTS[name], checkpoints)) == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("name", CASTS)
def test_what_is_cast(name: str) -> None:
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    with exact_derivatives(torch.float64):
        assert CASTS[name](x).dtype == torch.float64
        assert CASTS[name](x.detach()).dtype == torch.float32  # a constant
        assert x.half().dtype == torch.float16
    with exact_derivatives(torch.float32):  # the model computes this part in float64
        assert CASTS[name](x).dtype == torch.float32
