"""Products of H, G, F and S against dense matrices, and what must not change them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Problem, conv_problem, dense, mlp_problem
from torch import nn
from torch.utils.data import TensorDataset

from hessdist.curvature import blocks
from hessdist.curvature.differenced import CentralProduct
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.errors import NumericalError, WorkloadError
from hessdist.objective import Compute, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.shard import Shard

OPERATORS = ["hessian", "gauss_newton", "empirical_fisher", "residual"]
PROBLEMS = [
    lambda: mlp_problem("tanh", "cross_entropy"),
    lambda: mlp_problem("tanh", "mse"),
    lambda: mlp_problem("relu", "cross_entropy"),
    conv_problem,
]


def local_loss(problem: Problem, batch_size: int = 8, layers: tuple[str, ...] = ()) -> LocalLoss:
    shard = Shard(
        problem.dataset,
        np.arange(len(problem.dataset)),
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=next(problem.model.parameters()).dtype,
    )
    problem.model.eval()
    loss = as_summed_loss(problem.loss, problem.model, shard.head(3))
    return LocalLoss(problem.model, loss, shard, Parameters(problem.model, layers))


def matrix(local: LocalLoss, operator: str, cache: float = 1e9) -> torch.Tensor:
    product = LocalProduct(local, operator, cache)
    eye = torch.eye(product.size, dtype=local.dtype)
    return torch.stack([product(v) for v in eye])


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("make", PROBLEMS)
def test_products_are_those_of_the_dense_matrix(make: Callable[[], Problem], operator: str) -> None:
    problem = make()
    expected = dense(problem, operator)
    found = matrix(local_loss(problem), operator)
    assert torch.allclose(found, expected, atol=1e-11 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("make", PROBLEMS)
def test_blocks_have_the_same_bits_whenever_they_are_multiplied(
    make: Callable[[], Problem], operator: str
) -> None:
    problem = make()
    local = local_loss(problem)
    product = LocalProduct(local, operator, 1e9)
    generator = torch.Generator().manual_seed(3)
    block = torch.randn(5, product.size, generator=generator, dtype=local.dtype)
    first = product.of_block(block)
    for again in (product, LocalProduct(local, operator, 1e9)):
        for _ in range(3):
            assert torch.equal(again.of_block(block), first)
    each = torch.stack([product(v) for v in block])
    assert torch.allclose(first, each, rtol=0, atol=1e-13 * float(each.abs().max()))
    if any(isinstance(module, nn.Conv2d) for module in problem.model.modules()):
        assert torch.equal(first, each)  # one by one


@pytest.mark.parametrize("make", [PROBLEMS[0], conv_problem])
def test_a_block_linearises_a_batch_that_is_not_kept_once(
    make: Callable[[], Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = local_loss(make(), batch_size=4)
    whole = LocalProduct(local, "hessian", 1e9)
    made, linearized = [], LocalProduct._linearized

    def counting(self: LocalProduct, number: int, *rest: object) -> object:
        made.append(number)
        return linearized(self, number, *rest)

    product = LocalProduct(local, "hessian", 0.5 * whole.kept_bytes)
    rebuilt = len(local.shard) - product.kept_batches
    assert 0 < rebuilt < len(local.shard)
    generator = torch.Generator().manual_seed(3)
    block = torch.randn(3, product.size, generator=generator, dtype=local.dtype)
    each = torch.stack([product(v) for v in block])
    monkeypatch.setattr(LocalProduct, "_linearized", counting)
    assert torch.allclose(product.of_block(block), each, rtol=1e-12, atol=1e-12)
    assert len(made) == rebuilt


@pytest.mark.parametrize(
    ("size", "rebuilt", "small", "memory", "expected"),
    [
        (1000, False, False, 1e9, 1),  # nothing to save
        (1000, True, False, 1e9, 8),
        (1000, False, True, 1e9, 16),
        (10**8, True, False, 3e9, 2),
        (10**9, True, True, 1e9, 1),
        (1000, True, True, 0, 1),
    ],
)
def test_the_width_of_a_block(
    size: int, rebuilt: bool, small: bool, memory: float, expected: int
) -> None:
    assert blocks.width(size, rebuilt=rebuilt, small=small, memory=memory) == expected


def test_vectors_are_multiplied_side_by_side_where_tensors_are_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, vmap = [], torch.func.vmap

    def counting(function: Callable[..., object]) -> Callable[..., object]:
        calls.append(function)
        return vmap(function)

    monkeypatch.setattr(torch.func, "vmap", counting)
    small = LocalProduct(local_loss(PROBLEMS[0]()), "hessian", 1e9)
    small.of_block(torch.ones(2, small.size, dtype=torch.float64))
    assert small.block_width == 16
    assert len(calls) == 3  # batches
    monkeypatch.setattr(blocks, "is_small", lambda *of: False)
    large = LocalProduct(local_loss(PROBLEMS[0]()), "hessian", 1e9)
    large.of_block(torch.ones(2, large.size, dtype=torch.float64))
    assert large.block_width == 1
    assert len(calls) == 3


def test_a_device_without_memory_is_an_error_and_no_other_method(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    product = LocalProduct(local_loss(PROBLEMS[0]()), "hessian", 1e9)

    def out_of_memory(function: Callable[..., object]) -> Callable[..., object]:
        raise torch.OutOfMemoryError("tried to allocate 1 GiB")

    monkeypatch.setattr(torch.func, "vmap", out_of_memory)
    with pytest.raises(WorkloadError, match=r"out of memory.*compute\.batch_size"):
        product.of_block(torch.ones(2, product.size, dtype=torch.float64))


def test_loss_and_gradient_are_those_of_the_whole_set() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    sums = local_loss(problem, batch_size=7).loss_and_gradient()
    inputs, targets = problem.dataset.tensors
    loss = nn.functional.cross_entropy(problem.model(inputs), targets, reduction="sum")
    gradient = torch.autograd.grad(loss, list(problem.model.parameters()))
    assert sums.weight == len(targets)
    assert sums.loss == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(sums.gradient, torch.cat([g.reshape(-1) for g in gradient]), atol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("batch_size", [1, 7, 8, 20, 1000])
def test_the_batch_size_does_not_matter(operator: str, batch_size: int) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    v = torch.randn(Parameters(problem.model).layout.size, dtype=torch.float64)
    expected = LocalProduct(local_loss(problem, batch_size=5), operator, 1e9)(v)
    found = LocalProduct(local_loss(problem, batch_size), operator, 1e9)(v)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_cache_does_not_matter_and_respects_its_budget(operator: str) -> None:
    local = local_loss(conv_problem(), batch_size=4)
    whole = LocalProduct(local, operator, 1e9)
    batches = len(local.shard)
    assert whole.kept_batches == batches
    v = torch.randn(whole.size, dtype=torch.float64)
    expected = whole(v)
    for share in (0.0, 0.3, 0.7, 0.999):
        budget = share * whole.kept_bytes
        partial = LocalProduct(local, operator, budget)
        assert partial.kept_bytes <= budget
        assert partial.kept_batches == int(share * batches)
        assert torch.equal(partial(v), expected)


def test_kept_bytes_are_what_the_graph_holds() -> None:
    # One linear layer and a square: what is kept is known by hand to within a factor.
    problem = conv_problem()
    local = local_loss(problem, batch_size=4)
    one = LocalProduct(local, "hessian", 1e9)
    activations = 4 * 8 * (6 * 6 + 3 * 3) * 4 * 5  # float64, channels, pixels, batch, batches
    assert one.kept_bytes > activations / 4
    assert one.kept_bytes < 100 * activations


def test_two_products_of_one_vector_are_the_same_bits() -> None:
    product = LocalProduct(local_loss(conv_problem()), "hessian", 1e9)
    v = torch.randn(product.size, dtype=torch.float64)
    assert torch.equal(product(v), product(v))


def test_the_order_of_samples_does_not_matter() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    v = torch.randn(Parameters(problem.model).layout.size, dtype=torch.float64)
    expected = LocalProduct(local_loss(problem), "hessian", 1e9)(v)
    order = torch.randperm(len(problem.dataset))
    shuffled = Problem(problem.model, problem.loss, problem.dataset.reordered(order))
    found = LocalProduct(local_loss(shuffled), "hessian", 1e9)(v)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_float32_agrees_with_float64() -> None:
    exact = mlp_problem("tanh", "cross_entropy")
    v = torch.randn(Parameters(exact.model).layout.size, dtype=torch.float64)
    expected = LocalProduct(local_loss(exact), "hessian", 1e9)(v)
    single = mlp_problem("tanh", "cross_entropy", dtype=torch.float32)
    found = LocalProduct(local_loss(single), "hessian", 1e9)(v.float())
    assert found.dtype == torch.float64
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_finite_differences_agree() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    local = local_loss(problem)
    before = local.parameters.flat()
    v = torch.randn(before.numel(), dtype=torch.float64)
    exact = LocalProduct(local, "hessian", 1e9)(v)
    difference = CentralProduct(local)(v)
    assert float((difference - exact).norm() / exact.norm()) < 1e-7
    assert torch.equal(local.parameters.flat(), before)


def test_frozen_parameters_are_left_out() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    whole = dense(problem, "hessian")
    names = [name for name, _ in problem.model.named_parameters()]
    offsets = Parameters(problem.model).layout.offsets
    problem.model.fc1.requires_grad_(requires_grad=False)
    local = local_loss(problem)
    begin = offsets[names.index("fc2.weight")]
    assert local.parameters.layout.names == tuple(names[2:])
    assert torch.allclose(matrix(local, "hessian"), whole[begin:, begin:], atol=1e-11)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_block_of_layers_is_the_block_of_the_matrix(operator: str) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    whole = dense(problem, operator)
    layout = Parameters(problem.model).layout
    chosen = [i for i, name in enumerate(layout.names) if name in ("fc1.bias", "fc2.weight")]
    rows = torch.cat([torch.arange(layout.offsets[i], layout.offsets[i + 1]) for i in chosen])
    found = matrix(local_loss(problem, layers=("fc2.weight", "fc1.bias")), operator)
    assert torch.allclose(found, whole[rows][:, rows], atol=1e-11)
    assert local_loss(problem, layers=("fc1",)).parameters.layout.names == (
        "fc1.weight",
        "fc1.bias",
    )


def test_an_unknown_layer_names_the_nearest() -> None:
    with pytest.raises(WorkloadError, match=r"did you mean 'fc1\.weight'"):
        local_loss(mlp_problem("tanh", "mse"), layers=("fc1.wieght",))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_parameter_that_the_loss_does_not_reach_has_zero_curvature(operator: str) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    reached = matrix(local_loss(problem), operator)
    problem.model.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    local = local_loss(problem)
    position = local.parameters.layout.names.index("idle")
    begin = local.parameters.layout.offsets[position]
    found = matrix(local, operator)
    others = [i for i in range(len(found)) if not begin <= i < begin + 3]
    assert not found[begin : begin + 3].any()
    assert torch.allclose(found[others][:, others], reached, atol=1e-12)
    sums = local.loss_and_gradient()
    assert not sums.gradient[begin : begin + 3].any()


def test_a_linear_model_with_a_linear_loss_has_no_curvature() -> None:
    problem = mlp_problem("identity", "mse")
    problem.loss = lambda outputs, targets: outputs.sum(1).mean()
    local = local_loss(Problem(nn.Linear(6, 3).double(), problem.loss, problem.dataset))
    assert not matrix(local, "hessian").any()
    assert not matrix(local, "gauss_newton").any()


def test_h_is_g_plus_s() -> None:
    local = local_loss(conv_problem())
    products = {name: LocalProduct(local, name, 1e9) for name in OPERATORS}
    v = torch.randn(products["hessian"].size, dtype=torch.float64)
    h, g, s = (products[name](v) for name in ("hessian", "gauss_newton", "residual"))
    assert float((h - g - s).norm() / h.norm()) < 1e-13


def test_a_model_and_batch_loss_has_a_hessian_and_no_gauss_newton() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    expected = dense(problem, "hessian")

    def summed(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple:
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs), targets, reduction="sum"), len(targets)

    local = local_loss(Problem(problem.model, summed, problem.dataset))
    assert torch.allclose(matrix(local, "hessian"), expected, atol=1e-11)
    for operator in ("gauss_newton", "empirical_fisher", "residual"):
        with pytest.raises(WorkloadError, match="needs a loss of"):
            LocalProduct(local, operator, 1e9)


def test_a_product_that_is_not_finite_names_rank_and_batch() -> None:
    problem = mlp_problem("tanh", "mse")

    problem.dataset.tensors[0][12] = 0.0  # batch 1 of size 8
    problem.loss = lambda outputs, targets: (outputs**1.5).mean()  # no second derivative at 0

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.abs() * self.weight**2).sum(1, keepdim=True)

    local = local_loss(Problem(Sum(), problem.loss, problem.dataset))
    local.loss_and_gradient()  # the gradient is finite
    with pytest.raises(NumericalError, match=r"rank 0: the product over batch 1 is not finite"):
        LocalProduct(local, "hessian", 1e9)(torch.ones(6, dtype=torch.float64))


def test_a_loss_that_is_not_finite_names_rank_and_batch() -> None:
    problem = mlp_problem("tanh", "mse")
    problem.dataset.tensors[0][17] = float("nan")
    with pytest.raises(NumericalError, match=r"rank 0: the loss of batch 2 is not finite"):
        local_loss(problem).loss_and_gradient()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_product_that_is_let_go_frees_its_graphs(operator: str) -> None:
    problem = conv_problem()
    problem.dataset = problem.dataset.reordered(torch.arange(20).repeat(500))
    local = local_loss(problem, batch_size=2500)
    used = []
    for _ in range(8):
        product = LocalProduct(local, operator, 1e12)
        used.append(resident_bytes())
    assert used[-1] - used[2] < 2.5 * product.kept_bytes


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_product_lasts_while_those_of_other_blocks_are_proven(operator: str) -> None:
    """A proof in float64 changes the dtype of the parameters for a while."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    data = TensorDataset(torch.randn(9, 4), torch.arange(9) % 3)
    workload = Workload(model, nn.functional.cross_entropy, data, np.arange(9), compute=Compute())
    objective = workload.on(Ranks())
    product, v = objective.local_product(operator), torch.randn(objective.layout.size)
    before = product(v)
    objective.of_layers(["0"]).local_product(operator)
    assert before.norm() > 0
    assert torch.equal(product(v), before)
