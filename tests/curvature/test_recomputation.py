"""Blocks that are computed again: the same products, graphs of block inputs alone, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from language_models import from_config
from networks import Samples
from torch import Tensor, nn

import hessdist
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.curvature.recomputation import blocks_of, recomputing
from hessdist.errors import WorkloadError
from hessdist.objective import Compute, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.shard import Shard

OPERATORS = ["hessian", "gauss_newton", "empirical_fisher", "residual"]


class Residual(nn.Module):
    """Two convolutions with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + self.second(torch.relu(self.norm(self.first(x)))))


class Odd(nn.Module):
    """A recurrent block with keyword arguments, which returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gru = nn.Linear(3, 3), nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor, *, given: dict[str, Any], flag: bool = True) -> tuple[Tensor, Any]:
        hidden, _ = self.gru(torch.tanh(self.linear(x)))
        return (x if flag else x + hidden), {"given": given, "count": 3}


class OddNetwork(nn.Module):
    """Blocks that share what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(3))
        self.blocks = nn.ModuleList(Odd() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, more = block(x, given={"bias": self.bias * 2}, flag=False)
        return x.mean(1) + more["given"]["bias"]


class LastToken(nn.Module):
    """A language model as a classifier."""

    def __init__(self, use_cache: bool = False) -> None:
        super().__init__()
        sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
        self.model = from_config("gpt2", **sizes, bos_token_id=0, eos_token_id=0)
        self.model.config.use_cache = use_cache

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits[:, -1]


def convolutions() -> nn.Module:
    pair = nn.Sequential(Residual(), Residual())
    return nn.Sequential(nn.Conv2d(1, 2, 3), pair, nn.Flatten(), nn.Linear(32, 3))


def problem(name: str) -> tuple[nn.Module, Samples]:
    torch.manual_seed(0)
    targets = torch.randint(0, 3, (4,))
    if name == "gpt2":
        return LastToken().double(), Samples(torch.randint(0, 20, (4, 5)), targets)
    if name == "convolutions":
        model, inputs = convolutions(), torch.randn(4, 1, 6, 6)
        model(inputs)  # for the statistics of batch norm
        return model.double(), Samples(inputs.double(), targets)
    return OddNetwork().double(), Samples(torch.randn(4, 4, 3).double(), targets)


def local_loss(model: nn.Module, data: Samples) -> LocalLoss:
    shard = Shard(data, np.arange(4), batch_size=2, device=torch.device("cpu"), dtype=torch.float64)
    model.eval()
    loss = as_summed_loss(nn.CrossEntropyLoss(), model, shard.head(3))
    return LocalLoss(model, loss, shard, Parameters(model))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ["gpt2", "convolutions", "odd"])
def test_products_are_those_without_and_graphs_are_small(name: str, operator: str) -> None:
    model, data = problem(name)
    local = local_loss(model, data)
    names = blocks_of(model, "block")
    expected = LocalProduct(local, operator, 1e12)
    v = torch.randn(expected.size, dtype=torch.float64)
    right = expected(v)
    with recomputing(model, names):
        kept, rebuilt = LocalProduct(local, operator, 1e12), LocalProduct(local, operator, 0)
        found = [kept(v), kept(v), rebuilt(v)]
    found.append(kept(v))  # its graph does not depend on what the model is now
    for each in found:
        assert float((each - right).norm()) <= 1e-12 * float(right.norm())
    assert kept.kept_batches == 2
    assert 0 < kept.kept_bytes < expected.kept_bytes / 2
    assert not any(hasattr(type(m), "_hessdist_plain") for m in model.modules())


def test_a_kept_graph_has_the_inputs_and_cotangents_of_blocks() -> None:
    torch.manual_seed(0)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(torch.tanh(self.up(x)))

    model = nn.Sequential(*(Wide() for _ in range(5))).double()
    data = Samples(torch.randn(4, 4).double(), torch.randint(0, 4, (4,)))
    local = local_loss(model, data)
    with recomputing(model, blocks_of(model, "block")):
        product = LocalProduct(local, "hessian", 1e12)
    tensors = 2 * 5 * (4 * 4) * 8  # x and γ of five blocks, (4, 4) over both batches, float64
    of_loss = 4 * 4 * 8 * 8  # a few tensors of the loss
    assert tensors <= product.kept_bytes <= tensors + of_loss


def test_repeated_blocks_are_the_outermost_ones() -> None:
    inner = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2))
    outer = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([inner, OddNetwork(), OddNetwork()]))
    assert sorted(blocks_of(outer, "block")) == ["1.0.0", "1.0.1", "1.1", "1.2"]
    assert blocks_of(outer, ["1.0.*"]) == ["1.0.0", "1.0.1"]
    assert blocks_of(outer, "none") == []


@pytest.mark.parametrize(
    ("chosen", "said"),
    [("block", "no repeated blocks"), (["2"], "no module '2'"), (["list"], "'list.*'")],
)
def test_what_cannot_be_computed_again_is_refused(chosen: Any, said: str) -> None:
    model = nn.Module()
    model.list = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(WorkloadError, match="recompute") as raised:
        blocks_of(model, chosen)
    assert said in str(raised.value)


class Borrowing(nn.Module):
    """A block that uses a parameter of another module."""

    def __init__(self, other: nn.Parameter) -> None:
        super().__init__()
        self.linear, self.others = nn.Linear(3, 3), [other]

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) * self.others[0]


def test_blocks_with_wrong_derivatives_are_refused() -> None:
    torch.manual_seed(0)
    scale = nn.Parameter(torch.ones(3))
    borrowing = nn.Sequential(*(Borrowing(scale) for _ in range(2)))
    borrowing.register_parameter("scale", scale)
    data = Samples(torch.randn(4, 3), torch.randint(0, 3, (4,)))
    tokens = Samples(torch.randint(0, 20, (4, 5)), torch.randint(0, 3, (4,)))
    for model, samples in ((borrowing, data), (LastToken(use_cache=True), tokens)):
        work = Workload(
            model,
            nn.CrossEntropyLoss(),
            samples,
            np.arange(4),
            compute=Compute(dtype="float64", recompute="block"),
        )
        with pytest.raises(WorkloadError, match=r"with compute.recompute the .* own parameters"):
            work.on(Ranks()).evaluate()


class Uncopyable(nn.Sequential):
    """A model that copy.deepcopy refuses."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("no copies")


@pytest.mark.parametrize("copies", [True, False])
def test_the_model_of_the_user_is_as_before(copies: bool) -> None:
    model, data = problem("convolutions")
    if not copies:
        model = Uncopyable(*model)
    before = [type(module) for module in model.modules()]
    found, right = (
        hessdist.extreme_eigenpairs(
            model, nn.CrossEntropyLoss(), data, largest=2, smallest=1, recompute=how
        )
        for how in (["1.*"], "none")
    )
    assert [type(module) for module in model.modules()] == before
    assert np.allclose(found.eigenvalues_largest, right.eigenvalues_largest, rtol=1e-10, atol=0)
