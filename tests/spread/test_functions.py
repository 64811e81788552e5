"""The functions of spread layers are exact to any order: derivatives against differences."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from hessdist.parallel.lockstep import Lockstep
from hessdist.spread.linear import LinearLayer, _Outer, _Transposed, linear
from hessdist.spread.unit import Unit, _Reduce, gathered

Function = Callable[..., Any]
INPUTS, OUTPUTS = 3, 2


@pytest.fixture(scope="module")
def lockstep() -> Lockstep:
    from mpi4py import MPI

    return Lockstep(MPI.COMM_SELF)


def layer_of(lockstep: Lockstep, bias: bool, transposed: bool) -> LinearLayer:
    shape = (INPUTS, OUTPUTS) if transposed else (OUTPUTS, INPUTS)
    weight = Unit(lockstep, 1, (shape,))
    full = Unit(lockstep, 2, (shape, (OUTPUTS,))) if bias else weight
    return LinearLayer(weight, full, is_transposed=transposed)


def draw(*shape: int, requires_grad: bool = True) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)


def require_exact(function: Function, *tensors: Tensor) -> None:
    """The function has the derivatives of its values, once and twice."""
    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize(("bias", "transposed"), [*product([False, True], repeat=2)])
def test_linear_layers_and_their_derivatives(
    lockstep: Lockstep, bias: bool, transposed: bool
) -> None:
    torch.manual_seed(0)
    layer = layer_of(lockstep, bias, transposed)
    x, g, s = draw(2, 2, INPUTS), draw(2, 2, OUTPUTS), draw(INPUTS * OUTPUTS)
    pieces = (s, draw(OUTPUTS)) if bias else (s,)

    weight = s.view(INPUTS, OUTPUTS).T if transposed else s.view(OUTPUTS, INPUTS)
    torch.testing.assert_close(
        linear(layer, x, *pieces),
        torch.nn.functional.linear(x, weight, pieces[1] if bias else None),
    )
    require_exact(lambda *given: linear(layer, *given), x, *pieces)
    require_exact(lambda *given: _Transposed.apply(layer, *given), g, s)
    require_exact(lambda *given: _Outer.apply(layer, *given), g, x)


@pytest.mark.parametrize("frozen", ["inputs", "weight", "bias", "inputs and weight"])
def test_linear_layers_of_which_a_part_is_constant(lockstep: Lockstep, frozen: str) -> None:
    torch.manual_seed(0)
    layer = layer_of(lockstep, bias=True, transposed=False)
    x = draw(4, INPUTS, requires_grad="inputs" not in frozen)
    weight = draw(INPUTS * OUTPUTS, requires_grad="weight" not in frozen)
    bias = draw(OUTPUTS, requires_grad="bias" not in frozen)
    # Squared, so that second derivatives are not zero.
    require_exact(lambda *given: linear(layer, *given).square(), x, weight, bias)


def test_gathering_is_the_transpose_of_reducing(lockstep: Lockstep) -> None:
    torch.manual_seed(0)
    unit = Unit(lockstep, 1, ((2, 3), (), (0, 4), (5,)))
    pieces = [draw(6), draw(1), draw(0), draw(5)]
    whole = [draw(2, 3), draw(), draw(0, 4), draw(5)]
    require_exact(lambda *given: [one.square() for one in gathered(unit, given)], *pieces)
    require_exact(lambda *given: [one.square() for one in _Reduce.apply(unit, *given)], *whole)


def test_an_absent_rank_goes_through_the_functions_and_adds_nothing(lockstep: Lockstep) -> None:
    torch.manual_seed(0)
    layer = layer_of(lockstep, bias=True, transposed=False)
    other = Unit(lockstep, 3, ((OUTPUTS,),))
    pieces = [draw(INPUTS * OUTPUTS), draw(OUTPUTS), draw(OUTPUTS)]

    def gradients(create_graph: bool) -> tuple[Tensor, ...]:
        z = linear(layer, draw(4, INPUTS), *pieces[:2]) * gathered(other, pieces[2:])[0]
        return torch.autograd.grad(z.square().sum(), pieces, create_graph=create_graph)

    with lockstep.absent():
        first = gradients(create_graph=True)
        second = torch.autograd.grad(sum(one.sum() for one in first), pieces)
    assert not any(one.any() for one in (*first, *second))
    assert all(one.any() for one in gradients(create_graph=False))
