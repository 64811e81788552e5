"""Cross entropy through the output matrix in chunks, against PyTorch's own on whole logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hessdist.workload.token_losses import (
    OutputLayer,
    chunk_of,
    fisher_of_tokens,
    gauss_newton_of_logits,
    token_losses,
)


def layer(bias: bool, count: int = 7) -> OutputLayer:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return OutputLayer(draw(count, 3), draw(5, 3), draw(5) if bias else None)


def labels(count: int = 7) -> Tensor:
    return torch.arange(count) * 3 % 5


def whole(at: OutputLayer) -> Tensor:
    return nn.functional.cross_entropy(at.logits(), labels(len(at.hidden)), reduction="none")


def derivatives(losses: Tensor, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of Σ a_t ℓ_t², and products of its Hessian, where the losses' slopes matter too."""
    factors = torch.linspace(0.5, 2, len(losses), dtype=torch.float64)
    first = torch.autograd.grad((factors * losses**2).sum(), inputs, create_graph=True)
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in inputs]
    slope = sum((g * v).sum() for g, v in zip(first, along, strict=True))
    return list(first), list(torch.autograd.grad(slope, inputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_values_and_two_derivatives(bias: bool, chunk: int) -> None:
    at = layer(bias)
    losses, expected = token_losses(at, labels(), chunk), whole(at)
    assert torch.allclose(losses, expected, rtol=1e-14)
    pairs = zip(derivatives(losses, at.tensors()), derivatives(expected, at.tensors()), strict=True)
    for found, right in pairs:
        for one, other in zip(found, right, strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 2], [1, 2]])
def test_some_inputs_may_be_constants(chosen: list[int]) -> None:
    at = layer(bias=True)
    for number, tensor in enumerate(at.tensors()):
        tensor.requires_grad_(number in chosen)
    inputs = [at.tensors()[number] for number in chosen]
    found = derivatives(token_losses(at, labels(), 3), inputs)
    for pieces, right in zip(found, derivatives(whole(at), inputs), strict=True):
        for one, other in zip(pieces, right, strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [2, 100])
def test_the_gauss_newton_matrix_of_the_logits(bias: bool, chunk: int) -> None:
    at = layer(bias)
    inputs = [tensor.detach() for tensor in at.tensors()]
    factors = torch.linspace(0.5, 2, 7, dtype=torch.float64)

    def logits(*tensors: Tensor) -> Tensor:
        return OutputLayer(*tensors).logits()

    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in inputs]
    z, q = torch.func.jvp(logits, tuple(inputs), tuple(along))
    p = z.softmax(1)
    curved = factors[:, None] * (p * q - p * (p * q).sum(1, keepdim=True))
    expected = torch.func.vjp(logits, *inputs)[1](curved)
    product = gauss_newton_of_logits(OutputLayer(*inputs), labels(), factors, chunk)
    for one, other in zip(product(along), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)
    same = product([along[0], torch.zeros_like(along[1]), *along[2:]])
    frozen_weight = product([along[0], None, *along[2:]])
    assert frozen_weight.pop(1) is None
    for one, other in zip(frozen_weight, [same[0], *same[2:]], strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [2, 100])
def test_the_fisher_matrix_of_combined_tokens(bias: bool, chunk: int) -> None:
    at = layer(bias)
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    along = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in at.tensors()]
    rows = [torch.autograd.grad(one, at.tensors(), retain_graph=True) for one in whole(at)]
    jacobian = torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])
    slopes = jacobian @ torch.cat([v.reshape(-1) for v in along])
    product = fisher_of_tokens(at, labels(), lambda s: matrix @ s, chunk)
    found = torch.cat([piece.reshape(-1) for piece in product(along) if piece is not None])
    assert torch.allclose(found, jacobian.T @ (matrix @ slopes), rtol=1e-12, atol=1e-13)
    assert product([None, *along[1:]])[0] is None


def matrix_products(work: Callable[[], object]) -> int:
    """The number of matrix products."""
    from torch.utils._python_dispatch import TorchDispatchMode

    count = 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal count
            count += func.overloadpacket in {
                torch.ops.aten.mm,
                torch.ops.aten.addmm,
                torch.ops.aten.addmm_,
            }
            return func(*args, **(kwargs or {}))

    with Watched():
        work()
    return count


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ([0, 1], 7),  # z, c_h Wᵀ, h c_Wᵀ, u W, uᵀ h, r c_W, rᵀ c_h
        ([0], 3),  # z, c_h Wᵀ, u W
        ([1], 3),  # z, h c_Wᵀ, uᵀ h
    ],
)
@pytest.mark.parametrize(("chunk", "count"), [(3, 3), (100, 1)])  # of 7 tokens
def test_pieces_of_frozen_tensors_are_not_computed(
    trained: list[int], expected: int, chunk: int, count: int
) -> None:
    at = layer(bias=False)
    for number, tensor in enumerate(at.tensors()):
        tensor.requires_grad_(number in trained)
    inputs = [at.tensors()[number] for number in trained]
    losses = token_losses(at, labels(), chunk).sum()
    first = torch.autograd.grad(losses, inputs, create_graph=True)
    found = matrix_products(lambda: torch.autograd.grad(first, inputs, first))
    assert found == count * (expected - (count == 1))  # z of one chunk is kept as p


def test_the_matrix_products_of_g_and_f() -> None:
    at = layer(bias=False)
    frozen = [at.hidden.detach(), None]
    every = [tensor.detach() for tensor in at.tensors()]
    ones = torch.ones(7, dtype=torch.float64)
    gauss_newton = gauss_newton_of_logits(at, labels(), ones, 3)
    fisher = fisher_of_tokens(at, labels(), lambda slopes: slopes, 3)
    assert matrix_products(lambda: gauss_newton(every)) == 3 * 5
    assert matrix_products(lambda: gauss_newton(frozen)) == 3 * 3
    assert matrix_products(lambda: fisher(every)) == 3 * 6  # z twice
    assert matrix_products(lambda: fisher(frozen)) == 3 * 4


def test_no_tokens() -> None:
    at = layer(bias=True, count=0)
    losses = token_losses(at, labels(0), 4)
    assert losses.shape == (0,)
    for piece in torch.autograd.grad(losses.sum(), at.tensors()):
        assert not piece.any()


def test_third_derivatives_are_refused_and_not_zero() -> None:
    at = layer(bias=False)
    first = torch.autograd.grad(token_losses(at, labels(), 4).sum(), at.hidden, create_graph=True)
    (second,) = torch.autograd.grad(first[0].square().sum(), at.hidden, create_graph=True)
    for inputs in (at.hidden, at.weight):
        with pytest.raises(RuntimeError, match=r"no third derivative.*chunk_tokens = 0"):
            torch.autograd.grad(second.sum(), inputs, allow_unused=True, retain_graph=True)


def test_a_chunk_fits_its_budget() -> None:
    assert chunk_of(50_257, 4) * 50_257 * 4 <= 64 * 2**20
    assert chunk_of(10**9, 8) == 16


def largest_tensor(work: Callable[[], object]) -> int:
    """The elements of the largest tensor that any operation gives."""
    from torch.utils._python_dispatch import TorchDispatchMode

    most = 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal most
            given = func(*args, **(kwargs or {}))
            for one in given if isinstance(given, (tuple, list)) else [given]:
                if isinstance(one, Tensor):
                    most = max(most, one.numel())
            return given

    with Watched():
        work()
    return most


def test_logits_are_never_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 4, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(40, 4, generator=generator, dtype=torch.float64).requires_grad_()
    at, targets = OutputLayer(hidden, weight), torch.arange(50) % 40

    def work() -> None:
        first = torch.autograd.grad(
            token_losses(at, targets, 5).sum(), at.tensors(), create_graph=True
        )
        torch.autograd.grad(sum(piece.sum() for piece in first), at.tensors())
        ones = torch.ones(50, dtype=torch.float64)
        gauss_newton_of_logits(at, targets, ones, 5)([hidden.detach(), weight.detach()])

    assert largest_tensor(work) == 50 * 4  # of 50 * 40 whole
