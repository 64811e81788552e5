"""The shell matrix: what a product is, and what it costs in messages."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from oracles import PrescribedSpectrum

import hessdist
from hessdist.errors import SymmetryError, WorkloadError
from hessdist.parallel.ranks import Ranks, shard_bounds
from hessdist.spectrum.dense import exact_spectrum, plan
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.trace import estimate_trace

if TYPE_CHECKING:
    from mpi4py import MPI


def whole(shell: ShellMatrix, coefficients: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    parts = list(shell.products_of(coefficients, vectors))
    return np.concatenate([images for _, images in parts], axis=1)


def test_scale_and_shift() -> None:
    operator = PrescribedSpectrum(np.arange(30.0))
    shell = ShellMatrix(operator, Ranks(), scale=0.5, shift=2.0)
    x = np.random.default_rng(0).standard_normal(30)
    expected = 0.5 * operator(torch.from_numpy(x)).numpy() + 2 * x
    assert shell.apply(x) == pytest.approx(expected, rel=1e-12)


def test_products_of_combinations_are_combinations_of_products() -> None:
    shell = ShellMatrix(PrescribedSpectrum(np.arange(30.0)), Ranks(), scale=0.5, shift=2.0)
    rng = np.random.default_rng(0)
    made, coefficients = rng.standard_normal((4, 30)), rng.standard_normal((4, 2))
    shell.record()
    for x in made:
        shell.apply(x)
    vectors = coefficients.T @ made
    combined = whole(shell, coefficients, vectors)
    shell.forget()
    assert combined == pytest.approx(np.stack([shell.apply(v) for v in vectors]), rel=1e-10)
    assert shell.recorded == 0


def test_recombining_keeps_the_products() -> None:
    shell = ShellMatrix(PrescribedSpectrum(np.arange(30.0)), Ranks())
    rng = np.random.default_rng(0)
    made, coefficients = rng.standard_normal((5, 30)), rng.standard_normal((5, 3))
    shell.record()
    for x in made:
        shell.apply(x)
    shell.recombine(coefficients)
    assert shell.recorded == 3
    vectors = coefficients.T @ made
    combined = whole(shell, np.eye(3), vectors)
    assert combined == pytest.approx(np.stack([shell.apply(v) for v in vectors]), rel=1e-10)


@pytest.mark.parametrize(("total", "parts"), [(10, 3), (2, 5), (0, 2), (7, 7), (100, 1)])
def test_shards_are_contiguous_and_balanced(total: int, parts: int) -> None:
    bounds = [shard_bounds(total, parts, part) for part in range(parts)]
    sizes = [end - begin for begin, end in bounds]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(one[1] == other[0] for one, other in pairwise(bounds))
    assert max(sizes) - min(sizes) <= 1


class Skew(PrescribedSpectrum):
    """With an antisymmetric part of a given size."""

    skew = 0.0

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        turned = v.double().roll(1) - v.double().roll(-1)
        return super().__call__(v) + self._share * self.skew * turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_operator_that_is_not_symmetric_is_refused(dtype: torch.dtype) -> None:
    values = np.linspace(-1.0, 1.0, 6)
    operator = Skew(values, dtype=dtype)
    operator.skew = 0.3
    with pytest.raises(SymmetryError, match=r"beyond rounding: xᵀAy = .* and yᵀAx = "):
        extreme_eigenpairs(ShellMatrix(operator, Ranks()), 2, 1)
    with pytest.raises(SymmetryError, match="not symmetric"):
        estimate_trace(ShellMatrix(operator, Ranks()), products=4)
    dense_shell = ShellMatrix(operator, Ranks())
    with pytest.raises(SymmetryError, match=r"‖Ax − Aᵀx‖ / ‖Ax‖ = "):
        exact_spectrum(dense_shell, plan(dense_shell))
    operator.skew = 1e-6 if dtype == torch.float32 else 1e-12  # as rounding may be
    found = extreme_eigenpairs(ShellMatrix(operator, Ranks()), 2, 1, tolerance=1e-3)
    assert found.largest.values == pytest.approx([1.0, 0.6], rel=1e-4)


@pytest.mark.mpi(ranks=[3], timeout=60, unit="s")
def test_it_is_refused_on_all_ranks(mpi_ranks: int, comm: MPI.Comm) -> None:
    operator = Skew(np.linspace(-1.0, 1.0, 6), share=1 / mpi_ranks)
    operator.skew = 0.3
    with pytest.raises(SymmetryError, match="not symmetric"):
        extreme_eigenpairs(ShellMatrix(operator, Ranks(comm)), 2, 1)


class _WrongTwice(torch.autograd.Function):
    """Σ tanh(x) with a gradient that is right, and a derivative of it that is not symmetric."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x)
        return torch.tanh(x).sum(dim=1)

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = context.saved_tensors
        known = 1 - torch.tanh(x) ** 2
        return grad[:, None] * (known + (x - x.detach()).roll(1, dims=1))


def test_a_derivative_of_ones_own_that_is_wrong_is_refused() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return _WrongTwice.apply(self.inner(x))

    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.randn(20))
    with pytest.raises(WorkloadError, match=r"second derivative.*is wrong by.*_WrongTwice"):
        hessdist.extreme_eigenpairs(
            Network(), torch.nn.functional.mse_loss, data, largest=2, smallest=1
        )
