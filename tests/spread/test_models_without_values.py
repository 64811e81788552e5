"""Models that are built without memory for their parameters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hessdist.errors import WorkloadError
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
        with parameters_on_meta():
            model = Elsewhere()
            assert model.w.is_meta
