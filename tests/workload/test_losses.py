from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hessdist.errors import DataError, HessdistError, InputError, WorkloadError
from hessdist.workload.losses import (
    CriterionLoss,
    ModelLoss,
    as_summed_loss,
    is_summed_loss,
    mse,
)
from hessdist.workload.named_losses import build_loss

Made = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture
def classes() -> Made:
    """A model, inputs and class labels of seven samples, in double precision."""
    torch.manual_seed(3)
    return nn.Linear(4, 5).double(), torch.randn(7, 4).double(), torch.tensor([0, 4, 2, 2, 1, 3, 0])


@pytest.fixture
def values() -> Made:
    """A model, inputs and real targets of seven samples, in double precision."""
    torch.manual_seed(3)
    return nn.Linear(4, 5).double(), torch.randn(7, 4).double(), torch.randn(7, 5).double()


def first(inputs: Tensor, targets: Tensor, count: int = 3) -> list[Tensor]:
    return [inputs[:count], targets[:count]]


def each_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The definition: log Σ exp z − z_y."""
    return outputs.exp().sum(1).log() - outputs[torch.arange(len(targets)), targets]


def own_cross_entropy(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    each = each_cross_entropy(outputs, targets)
    return each.sum() if reduction == "sum" else each.mean()


# -- sums and means --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "reduction"),
    [
        (F.cross_entropy, "sum"),
        (nn.CrossEntropyLoss(), "sum"),
        (nn.CrossEntropyLoss(reduction="none"), "sum"),
        (lambda z, y: F.cross_entropy(z, y, reduction="none"), "none"),
        (nn.CrossEntropyLoss(reduction="sum"), "sum"),
        (functools.partial(F.cross_entropy, reduction="sum"), "sum"),
        (lambda z, y: each_cross_entropy(z, y).sum(), "sum"),
        (lambda z, y: each_cross_entropy(z, y).mean(), "mean"),
    ],
)
def test_sums_and_means_are_told_apart_and_give_the_same_summed_value(
    classes: Made, criterion: Any, reduction: str
) -> None:
    model, inputs, targets = classes
    loss = as_summed_loss(criterion, model, first(inputs, targets))
    assert isinstance(loss, CriterionLoss)
    assert loss.reduction == reduction
    each = each_cross_entropy(model(inputs), targets)
    for size in (1, 2, 7):
        value, count = loss(model, (inputs[:size], targets[:size]))
        assert count == size
        torch.testing.assert_close(value, each[:size].sum())
    values, weights = loss.of_each_sample(model, (inputs, targets))
    torch.testing.assert_close(values, each)
    torch.testing.assert_close(weights, torch.ones_like(weights))


@pytest.mark.parametrize(
    ("criterion", "each"),
    [
        (nn.MSELoss(), lambda z, t: (z - t).square().mean(1)),
        (nn.MSELoss(reduction="sum"), lambda z, t: (z - t).square().sum(1)),
        (mse, lambda z, t: (z - t).square().mean(1)),
        (nn.L1Loss(), lambda z, t: (z - t).abs().mean(1)),
    ],
)
def test_losses_of_real_targets_are_summed_over_samples_alone(
    values: Made, criterion: Any, each: Callable[[Tensor, Tensor], Tensor]
) -> None:
    model, inputs, targets = values
    loss = as_summed_loss(criterion, model, first(inputs, targets))
    value, count = loss(model, (inputs, targets))
    torch.testing.assert_close(value, each(model(inputs), targets).sum())
    assert count == 7
    assert isinstance(loss, CriterionLoss)
    values, _ = loss.of_each_sample(model, (inputs, targets))
    torch.testing.assert_close(values, each(model(inputs), targets))


def test_batches_of_different_sizes_add_up_to_the_whole(classes: Made) -> None:
    model, inputs, targets = classes
    loss = as_summed_loss(F.cross_entropy, model, first(inputs, targets))
    whole, _ = loss(model, (inputs, targets))
    parts = [loss(model, (inputs[a:b], targets[a:b]))[0] for a, b in ((0, 1), (1, 5), (5, 7))]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_losses_in_single_precision_are_told_apart_too(classes: Made) -> None:
    model, inputs, targets = classes
    samples = first(inputs.float(), targets)
    for reduction in ("sum", "mean"):
        of_ones_own = functools.partial(own_cross_entropy, reduction=reduction)
        loss = as_summed_loss(of_ones_own, model.float(), samples)
        assert isinstance(loss, CriterionLoss)
        assert loss.reduction == reduction


def test_a_sum_that_is_zero_on_the_samples_looked_at_is_not_taken_for_a_mean() -> None:
    def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - outputs[:, 0] * targets).relu().sum()

    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    inputs, targets = torch.tensor([[2.0], [3.0], [4.0], [0.5], [0.0]]), torch.ones(5)
    try:
        loss = as_summed_loss(hinge, model, first(inputs, targets))
    except WorkloadError:
        return  # refusing to guess is right as well
    value, _ = loss(model, (inputs, targets))
    assert float(value.detach()) == 1.5


@pytest.mark.parametrize(
    "criterion",
    [
        lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()),
        lambda z, y: F.cross_entropy(z - z.mean(0), y),  # a statistic of the batch
        lambda z, y: F.cross_entropy(z, y) * len(y) ** 0.5,
    ],
)
def test_a_criterion_that_weighs_samples_by_their_batch_is_refused(
    classes: Made, criterion: Any
) -> None:
    model, inputs, targets = classes
    with pytest.raises(
        WorkloadError, match=r"neither the sum nor the mean.*class weights"
    ) as caught:
        as_summed_loss(criterion, model, first(inputs, targets))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_criterion_that_is_not_finite_is_not_said_to_weigh_samples(
    classes: Made, value: float
) -> None:
    model, inputs, targets = classes
    with pytest.raises(HessdistError, match="finite") as caught:
        as_summed_loss(lambda z, y: z.sum() * value, model, first(inputs, targets))
    assert "class weights" not in str(caught.value)


@pytest.mark.parametrize("criterion", [lambda z, y: 1.0, lambda z, y: z])
def test_a_criterion_that_gives_no_scalar_tensor_is_refused(classes: Made, criterion: Any) -> None:
    model, inputs, targets = classes
    with pytest.raises(WorkloadError, match="does not return a scalar"):
        as_summed_loss(criterion, model, first(inputs, targets))


@pytest.mark.parametrize(("label", "says"), [(5, r"1 \.\.\. 5"), (-1, r"-1 \.\.\. 2")])
@pytest.mark.parametrize("criterion", [F.cross_entropy, mse])
def test_labels_out_of_range_are_named_before_the_criterion_sees_them(
    classes: Made, criterion: Any, label: int, says: str
) -> None:
    model, inputs, _ = classes
    samples = [inputs[:3], torch.tensor([2, 1, label])]
    with pytest.raises(DataError, match=rf"labels are {says}.*outputs 0 \.\.\. 4"):
        as_summed_loss(criterion, model, samples)


@pytest.mark.parametrize(
    "samples", [torch.zeros(3, 4), {"inputs": torch.zeros(3, 4)}, [torch.zeros(3, 4)] * 3]
)
def test_samples_that_are_no_pairs_need_a_loss_of_model_and_batch(samples: Any) -> None:
    with pytest.raises(DataError, match=r"pairs of inputs and targets; give a loss of \(model"):
        as_summed_loss(F.cross_entropy, nn.Linear(4, 5), samples)


# -- (model, batch) --------------------------------------------------------------------------


def of_model_and_batch(model: nn.Module, batch: Any, power: int = 2) -> tuple[Tensor, int]:
    return (model(batch["x"])[:, 0] - batch["y"]).abs().pow(power).sum(), len(batch["y"])


class Callable1:
    def __call__(self, model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return of_model_and_batch(model, batch)


class Criterion(nn.Module):
    def forward(self, model: Tensor, targets: Tensor) -> Tensor:
        return (model[:, 0] - targets).square().sum()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (of_model_and_batch, True),
        (functools.partial(of_model_and_batch, power=4), True),
        (Callable1(), True),
        (lambda model, batch: (model(batch).sum(), len(batch)), True),
        (Criterion(), False),
        (nn.CrossEntropyLoss(), False),
        (F.cross_entropy, False),
        (lambda outputs, targets: outputs.sum(), False),
        (max, False),
    ],
)
def test_a_loss_of_model_and_batch_is_known_by_its_first_parameter(
    loss: Any, expected: bool
) -> None:
    assert is_summed_loss(loss) is expected


def test_a_loss_of_model_and_batch_is_used_as_it_is(classes: Made) -> None:
    model, inputs, _ = classes
    batch = {"x": inputs, "y": inputs[:, 0]}
    loss = as_summed_loss(of_model_and_batch, model, batch)
    assert isinstance(loss, ModelLoss)
    assert loss.function is of_model_and_batch


# -- mse -------------------------------------------------------------------------------------


def test_mse_takes_class_labels_as_unit_vectors(classes: Made) -> None:
    model, inputs, targets = classes
    outputs = model(inputs)
    expected = ((outputs - torch.eye(5).double()[targets]) ** 2).sum() / outputs.numel()
    torch.testing.assert_close(mse(outputs, targets), expected)
    torch.testing.assert_close(mse(outputs, torch.eye(5).double()[targets]), expected)


def test_mse_of_one_output_takes_targets_without_a_second_dimension() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 3.0])
    assert float(mse(outputs, targets)) == (4 + 1) / 2


# -- from the job file -----------------------------------------------------------------------

OURS = """
import torch

def half(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets) / 2

def scaled(factor):
    return lambda outputs, targets: factor * half(outputs, targets)

def nothing(factor):
    return None
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "losses_of_a_user.py").write_text(OURS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("losses_of_a_user", None)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("factory", "arguments", "factor"),
    [
        ("cross_entropy", {}, 1.0),
        ("torch.nn:CrossEntropyLoss", {}, 1.0),
        ("torch.nn:CrossEntropyLoss", {"reduction": "sum"}, 1.0),
        ("losses_of_a_user:half", {}, 0.5),
        ("losses_of_a_user:scaled", {"factor": 6.0}, 3.0),
    ],
)
def test_a_loss_is_the_callable_itself_a_class_or_made_with_arguments(
    classes: Made, factory: str, arguments: dict[str, Any], factor: float
) -> None:
    model, inputs, targets = classes
    loss = as_summed_loss(build_loss(factory, arguments), model, first(inputs, targets))
    value, _ = loss(model, (inputs, targets))
    torch.testing.assert_close(value, factor * each_cross_entropy(model(inputs), targets).sum())


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("factory", "arguments", "says"),
    [
        ("cross_entropi", {}, "loss.factory.*did you mean 'cross_entropy'"),
        ("losses_of_a_user:absent", {}, "loss.factory.*does not import"),
        ("losses_of_a_user:scaled", {"factr": 1}, "loss.arguments do not fit scaled.*factor"),
        ("losses_of_a_user:nothing", {"factor": 1}, "made NoneType, which is no loss"),
    ],
)
def test_a_loss_that_cannot_be_had_is_refused_in_one_line(
    factory: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        build_loss(factory, arguments)
    assert "\n" not in str(caught.value)
