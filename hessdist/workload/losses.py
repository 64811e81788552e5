"""Losses as sums over samples, whatever form the user has them in.

Curvature adds over samples: batches of different sizes and shards of different sizes weigh
right only if every term is a sum, divided by the number of all samples once at the end.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hessdist.errors import DataError, HessdistError, NumericalError, WorkloadError
from hessdist.workload.factories import call_factory, find_factory

Batch = Any
"""What a data loader collates: a pair (inputs, targets), or any nesting of tensors."""

Criterion = Callable[[Any, Any], Tensor]
"""(outputs, targets) to a scalar: a sum or a mean over the samples of the batch."""

SummedLoss = Callable[[nn.Module, Batch], tuple[Tensor, int]]
"""(model, batch) to (the loss summed over the batch, the number of samples in it)."""


@dataclass(frozen=True)
class CriterionLoss:
    """A criterion of (outputs, targets), as a sum over samples.

    Args:
        criterion: The criterion.
        reduction: Whether it sums or averages over samples.
        of_classes: Whether integer targets are class labels.
    """

    criterion: Criterion
    reduction: Literal["sum", "mean"]
    of_classes: bool = False

    def total(self, outputs: Any, targets: Any, count: int) -> Tensor:
        """The loss summed over a batch of `count` samples; a scalar tensor."""
        value = self.criterion(outputs, targets)
        return value * count if self.reduction == "mean" else value

    def of_each_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample, (B,): the criterion on batches of one."""

        def of_one(output: Tensor, target: Tensor) -> Tensor:
            return self.criterion(output.unsqueeze(0), target.unsqueeze(0))

        return torch.func.vmap(of_one)(outputs, targets)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Evaluate the model on (inputs, targets); the summed loss and the number of samples."""
        inputs, targets = batch
        count = len(targets)
        return self.total(model(inputs), targets, count), count


def checked_loss(
    loss: CriterionLoss | SummedLoss, model: nn.Module, batch: Batch, what: str
) -> tuple[Tensor, int]:
    """Evaluate a batch for the first time: class labels are looked at, failures are one line.

    Args:
        loss: The loss.
        model: The model.
        batch: The batch.
        what: Its name in messages.

    Returns:
        The summed loss and the number of samples.

    Raises:
        WorkloadError: The model or the loss cannot be evaluated there.
        DataError: A class label is out of the range of the model's outputs.
    """
    with evaluating(what):
        if not (isinstance(loss, CriterionLoss) and loss.of_classes):
            return loss(model, batch)
        inputs, targets = batch
        outputs = model(inputs)
        check_labels(outputs, targets)
        return loss.total(outputs, targets, len(targets)), len(targets)


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error, the mean over samples and outputs (PyTorch's convention).

    Args:
        outputs: (B, C).
        targets: (B, C), or class labels (B,), which stand for unit vectors.

    Returns:
        A scalar.
    """
    if not targets.is_floating_point():
        targets = nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    return nn.functional.mse_loss(outputs, targets.reshape(outputs.shape))


LOSSES: dict[str, Criterion] = {"cross_entropy": nn.functional.cross_entropy, "mse": mse}


def build_loss(factory: str, arguments: Mapping[str, Any]) -> Criterion | SummedLoss:
    """Find the loss that a job names.

    Args:
        factory: "cross_entropy", "mse", or "package.module:callable". The callable is the loss
            itself, or (a class, or where there are `arguments`) makes it when called.
        arguments: Keyword arguments for a callable that makes the loss.

    Returns:
        A criterion or a summed loss.

    Raises:
        WorkloadError: The factory is not found, fails, or makes nothing callable.
    """
    found = find_factory(factory, LOSSES, "loss.factory")
    if not (arguments or inspect.isclass(found)):
        return found
    made = call_factory(found, arguments, "loss")
    if not callable(made):
        raise WorkloadError(
            f"loss.factory: '{factory}' made {type(made).__name__}, which is not callable",
            "name a criterion of (outputs, targets) or a callable of (model, batch)",
        )
    return made  # type: ignore[no-any-return]


def is_summed_loss(loss: Criterion | SummedLoss) -> bool:
    """Whether a loss is a callable of (model, batch): its first parameter is called `model`."""
    if isinstance(loss, nn.Module):
        return False
    try:
        return next(iter(inspect.signature(loss).parameters), None) == "model"
    except (TypeError, ValueError):
        return False


# Criteria whose integer targets are class labels: out of range, they end in an assertion on a GPU.
_OF_CLASSES = (nn.functional.cross_entropy, nn.functional.nll_loss, mse)
_CLASS_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)


@contextmanager
def evaluating(what: str) -> Iterator[None]:
    """Turn what PyTorch and the user's code raise when a model is evaluated into one line.

    Args:
        what: What is evaluated ("batch 3").

    Yields:
        Nothing.

    Raises:
        WorkloadError: The model or the loss cannot be evaluated there.
        HessdistError: Passed on as it is.
    """
    try:
        yield
    except HessdistError:
        raise
    except torch.OutOfMemoryError as error:
        raise WorkloadError(
            f"{what}: the device is out of memory ({_first_line(error)})",
            "lower compute.batch_size, compute.cache_gib or compute.data_gib",
        ) from error
    except Exception as error:
        raise WorkloadError(
            f"{what}: the model and the loss cannot be evaluated ({type(error).__name__}: "
            f"{_first_line(error)})",
            "check that the model, the loss and the data set fit together",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def as_summed_loss(
    loss: Criterion | SummedLoss, model: nn.Module, samples: Batch
) -> CriterionLoss | SummedLoss:
    """Bring any loss into the summed form, finding out whether a criterion sums or averages.

    Args:
        loss: A criterion of (outputs, targets), or a callable whose first parameter is `model`.
        model: In evaluation mode.
        samples: A batch of one to three samples of the data set, of the model's dtype and device.

    Returns:
        The loss, as a sum over samples.

    Raises:
        WorkloadError: The criterion is neither a sum nor a mean over samples (class weights do
            that), or returns no scalar.
        DataError: The samples are no pair of inputs and targets.
    """
    if is_summed_loss(loss):
        return loss  # type: ignore[return-value]
    if not (isinstance(samples, (tuple, list)) and len(samples) == 2):
        raise DataError(
            "the data set does not give pairs of inputs and targets",
            "give a loss of (model, batch) that returns (summed loss, number of samples)",
        )
    inputs, targets = samples
    criterion = cast("Criterion", loss)
    of_classes = isinstance(criterion, _CLASS_MODULES) or criterion in _OF_CLASSES
    with torch.no_grad(), evaluating("the first samples"):
        outputs = model(inputs)
        if of_classes:
            check_labels(outputs, targets)
        whole = criterion(outputs, targets)
        if not isinstance(whole, Tensor) or whole.numel() != 1:
            raise WorkloadError(
                "the loss does not return a scalar", "use reduction='sum' or reduction='mean'"
            )
        single = [criterion(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
    reduction = _reduction(criterion, float(whole), [float(value) for value in single])
    return CriterionLoss(criterion, reduction, of_classes)


def _reduction(criterion: Criterion, whole: float, single: list[float]) -> Literal["sum", "mean"]:
    """Sum or mean, told from the loss of a batch and of its samples one by one."""
    if not all(math.isfinite(value) for value in (whole, *single)):
        raise NumericalError(
            "the loss of the first samples is not finite", "check the data, the model and the loss"
        )
    total, allowed = sum(single), 1e-4 * max(map(abs, single))
    is_sum, is_mean = abs(whole - total) <= allowed, abs(whole - total / len(single)) <= allowed
    if is_sum and is_mean and len(single) > 1:  # the first samples have no loss
        stated = getattr(criterion, "reduction", None)
        is_sum, is_mean = stated == "sum", stated == "mean"
        if not (is_sum or is_mean):
            raise WorkloadError(
                "whether the loss sums or averages over samples cannot be told: it is zero on the "
                "first ones",
                "give it an attribute reduction = 'sum' or 'mean'",
            )
    if is_mean:
        return "mean"
    if is_sum:
        return "sum"
    raise WorkloadError(
        "the loss is neither the sum nor the mean of the losses of its samples "
        f"(batch {whole:.6g}, samples {', '.join(f'{value:.6g}' for value in single)})",
        "drop class weights and batch statistics, or give a loss of (model, batch) "
        "that returns (summed loss, number of samples)",
    )


def check_labels(outputs: Any, targets: Any) -> None:
    """Check class labels against the number of outputs.

    Args:
        outputs: (B, C, ...), or anything else, which is not checked.
        targets: Integer labels (B, ...), or anything else, which is not checked.

    Raises:
        DataError: A label is not in 0 ... C-1.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or outputs.ndim < 2:
        return
    if targets.is_floating_point() or targets.ndim != outputs.ndim - 1 or not targets.numel():
        return
    low, high, classes = int(targets.min()), int(targets.max()), outputs.shape[1]
    if low < 0 or high >= classes:
        raise DataError(
            f"labels are {low} ... {high}, and the model has outputs 0 ... {classes - 1}",
            "change the model's number of classes (model.arguments) or the data set",
        )
