"""Models that are built without memory for their parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hessdist.errors import CheckpointError, WorkloadError
from hessdist.workload.checkpoints import load_into
from hessdist.workload.meta import parameters_on_meta


class Kinds(nn.Module):
    """Tied weights, lists, frozen parameters, and modules that keep their parameters in lists."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.recurrent = nn.LSTM(4, 4, num_layers=2, bidirectional=True)
        self.several = nn.ParameterList([torch.ones(2), nn.Parameter(torch.zeros(3))])
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.ones(()))})
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.register_parameter("absent", None)
        self.register_buffer("positions", torch.arange(5))


def built_on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with parameters_on_meta():
        return make()


def test_parameters_are_on_the_meta_device_and_buffers_are_not() -> None:
    whole = Kinds()
    with parameters_on_meta():
        model = Kinds()
    assert all(parameter.is_meta for parameter in model.parameters())
    for parameters in (model.parameters, whole.parameters):
        assert len(list(parameters())) == len({id(parameter) for parameter in parameters()})

    def structure(one: nn.Module) -> list[tuple[str, torch.Size, torch.dtype, bool]]:
        named = one.named_parameters(remove_duplicate=False)
        return [(name, p.shape, p.dtype, p.requires_grad) for name, p in named]

    assert structure(model) == structure(whole)
    assert model.head.weight is model.embedding.weight
    assert model.absent is None
    buffers = dict(model.named_buffers())
    assert list(buffers) == [name for name, _ in whole.named_buffers()]
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffers[name], buffer)


def test_modules_made_afterwards_have_values() -> None:
    with parameters_on_meta():
        nn.Linear(2, 2)
    assert not nn.Linear(2, 2).weight.is_meta
    with pytest.raises(ValueError, match="bad day"), parameters_on_meta():
        raise ValueError("bad day")
    assert not nn.Linear(2, 2).weight.is_meta


class Constants(nn.Module):
    """A constant, which is drawn after weights; those are drawn in many ways."""

    def __init__(self, drawn: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.layer, self.free = nn.Linear(3, 3), nn.Parameter(torch.randn(2) / 2)
        self.start = nn.Parameter(nn.init.trunc_normal_(torch.empty(9)))
        nn.init.orthogonal_(self.layer.weight)
        self.register_buffer("known", torch.randn(3).abs())
        self.constant = drawn(self)


REFUSED: list[Callable[[nn.Module], Any]] = [
    lambda model: torch.randn(4),
    lambda model: [2 * torch.pi * torch.rand(4, 2)[:, 0]],
    lambda model: float(torch.rand(())),
    lambda model: model.register_buffer("more", torch.randn(4).cos(), persistent=False),
    lambda model: torch.randperm(5).numpy(),
    lambda model: torch.zeros(5).normal_().sum,
]
ACCEPTED: list[Callable[[nn.Module], Any]] = [
    lambda model: torch.randn(4, generator=torch.Generator().manual_seed(0)).cos(),
    lambda model: torch.ones(4),
    lambda model: model.register_buffer("more", torch.randn(4)),
    lambda model: torch.randn(4).cos().shape,
]


@pytest.mark.parametrize("drawn", REFUSED)
def test_a_constant_that_would_be_another_one_is_refused(drawn: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(WorkloadError, match="draws a constant at random"):
        built_on_meta(lambda: Constants(drawn))
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.parametrize("drawn", ACCEPTED)
def test_constants_that_are_those_of_the_whole_model(drawn: Callable[[nn.Module], Any]) -> None:
    with parameters_on_meta():
        model = Constants(drawn)
    assert all(parameter.is_meta for parameter in model.parameters())


class Elsewhere(nn.Module):
    """A parameter that a list keeps as well, which would stay as it was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [nn.Parameter(torch.ones(2))]
        self.w = self.kept[0]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.kept[0]


def test_a_parameter_that_is_kept_elsewhere_is_refused() -> None:
    with pytest.raises(WorkloadError, match="keeps the parameter w outside of its module"):
        built_on_meta(Elsewhere)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)
        self.last.weight = self.first.weight


@pytest.mark.parametrize("lacks", ["first.weight", "last.weight", ""])
def test_a_checkpoint_may_have_a_tied_tensor_once(lacks: str) -> None:
    state = {name: value for name, value in Tied().state_dict().items() if name != lacks}
    with parameters_on_meta():
        model = Tied()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_into(model, state, Path("step_1.pt"))
    for name in {"first.weight", "last.weight"} - {lacks}:
        assert torch.equal(model.first.weight, state[name])
        assert torch.equal(model.last.weight, state[name])


def test_a_checkpoint_with_two_values_of_a_tied_tensor_is_refused() -> None:
    state = {name: value.clone() for name, value in Tied().state_dict().items()}
    state["last.weight"] += 1
    with parameters_on_meta():
        model = Tied()
    with pytest.raises(CheckpointError, match=r"two different tensors, first\.weight and last"):
        load_into(model, state, Path("step_1.pt"))
