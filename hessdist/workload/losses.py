"""Losses of all forms as sums over samples.

The loss of a run is L = Σ s / Σ w over all batches of all ranks. Every form gives the sum s of a
batch and its weight w: the number of samples, of labels that count, or the sum of class weights,
which is the divisor of PyTorch's own mean over all samples at once. So batches and shards of any
size have the right weight, and the division is done once, at the end.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor, nn

from hessdist.errors import DataError, HessdistError, WorkloadError
from hessdist.workload.criteria import ClassLabels, Criterion, Known, Reduction, known, placed
from hessdist.workload.nestings import Batch, batch_length, leading, map_tensors, part
from hessdist.workload.reductions import fitting_reductions
from hessdist.workload.user_code import evaluating

SummedLoss = Callable[[nn.Module, Batch], tuple[Tensor, float]]
"""Maps (model, batch) to (s, w): the loss summed over the batch, and its weight."""


@runtime_checkable
class OutputsLoss(Protocol):
    """A loss in two steps, for which the matrices G, S and F exist."""

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Compute the outputs z of the model: a tensor, or a nesting of tensors."""

    def of_outputs(self, z: Any, batch: Batch) -> tuple[Tensor, float]:
        """Compute (s, w): the loss summed over the batch, and its weight."""


AnyLoss = Criterion | SummedLoss | OutputsLoss
"""The three forms in which users give a loss."""

Result = TypeVar("Result")


class Loss:
    """A loss as sums over samples: calling it with a model and a batch gives (s, w)."""

    proof_samples = 4
    """The number of samples on which a product is proven."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        """Evaluate the loss.

        Args:
            model: The model.
            batch: The batch.

        Returns:
            The loss summed over the batch, a scalar with its graph, and the batch's weight.
        """
        raise NotImplementedError

    def weight_of(self, batch: Batch) -> float | None:
        """Return the weight of a batch; None if only an evaluation of the model gives it."""
        return None

    def placed(self, device: torch.device, dtype: torch.dtype) -> Loss:
        """Return the same loss with its own tensors on a device and in a dtype."""
        raise NotImplementedError


class OfOutputs(Loss):
    """A loss that is a function of the model's outputs z, so that G, S and F exist."""

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Compute the outputs z: a tensor, or a nesting of tensors."""
        raise NotImplementedError

    def of_outputs(self, z: Any, batch: Batch) -> tuple[Tensor, float]:
        """Compute (s, w) as a function of z."""
        raise NotImplementedError

    def of_each_sample(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the sum s_i and the weight w_i of each sample.

        Args:
            model: The model.
            batch: A batch of B samples.

        Returns:
            The sums, (B,) with their graph, and the weights, (B,).
        """
        raise NotImplementedError

    def gauss_newton_at(
        self, z: Any, batch: Batch
    ) -> Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]] | None:
        """Return the product with ∇²_z s, or with what stands for it if z is not the last step.

        Args:
            z: The outputs.
            batch: The batch.

        Returns:
            The map of a direction in the order of z's floating tensors to the product; None if it
            is to be found by differentiating `of_outputs`. In a direction, None stands for a tensor
            that does not depend on the parameters, and its part of the product is not needed.
        """
        return None

    def fisher_at(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Any, Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]] | None:
        """Return the outputs z, and the product with Σ w_i ∇_z ℓ_i ∇_z ℓ_iᵀ.

        Args:
            model: The model.
            batch: The batch.

        Returns:
            The outputs with their graph, and a map as that of `gauss_newton_at`; None if the matrix
            is to be found by differentiating `of_each_sample`.
        """
        return None

    def whole(self) -> OfOutputs:
        """Return the same loss with outputs z of which ∇²_z s is the curvature in G."""
        return self

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        """Evaluate the model and the loss."""
        return self.of_outputs(self.outputs(model, batch), batch)


@dataclass(frozen=True)
class CriterionLoss(OfOutputs):
    """A criterion of (outputs, targets).

    Args:
        criterion: The criterion.
        reduction: The reduction of the criterion: sum, mean, or a value for each sample or entry.
        labels: The labels that count, if targets are classes.
        over_labels: Whether the weight of a batch is that of its labels instead of its samples.
        name: The name of the function of torch.nn.functional, if it is one of PyTorch's
            criteria.
    """

    criterion: Criterion
    reduction: Reduction
    labels: ClassLabels | None = None
    over_labels: bool = False
    name: str = ""

    @property
    def takes_any_dtype(self) -> bool:
        """Return whether outputs may have another dtype than the model."""
        return bool(self.name) or self.criterion is mse

    @property
    def is_plain(self) -> bool:
        """Return whether it is PyTorch's mean over samples without other arguments."""
        options = getattr(self.criterion, "args", (None, {"reduction": "sum"}))[1]
        return self.over_labels and dict(options) == {"reduction": "sum"}

    def total(self, outputs: Any, targets: Any) -> Tensor:
        """Compute the loss summed over a batch, a scalar tensor."""
        value = self.criterion(outputs, targets)
        if self.reduction == "sum":
            return value
        mean = value.mean() if self.reduction == "none" else value
        return mean * batch_length(targets)

    def weight(self, targets: Any) -> float:
        """Compute the weight of a batch: the number of samples, or the weight of its labels."""
        if self.over_labels and self.labels is not None and isinstance(targets, Tensor):
            return self.labels.total(targets)
        return float(batch_length(targets))

    def weight_of(self, batch: Batch) -> float:
        """Return the weight of the targets of a batch (inputs, targets)."""
        return self.weight(batch[1])

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Compute the model's outputs for the inputs of a batch (inputs, targets)."""
        inputs, _ = batch
        return model(inputs)

    def of_outputs(self, z: Any, batch: Batch) -> tuple[Tensor, float]:
        """Compute (s, w) as a function of the outputs."""
        _, targets = batch
        return self.total(z, targets), self.weight(targets)

    def of_each_sample(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Evaluate the criterion on batches of one sample."""
        z, (_, targets) = self.outputs(model, batch), batch

        def of_one(output: Any, target: Any) -> Tensor:
            return self.total(leading(output), leading(target))

        try:
            values: Tensor = torch.func.vmap(of_one)(z, targets)
        except RuntimeError:  # the criterion depends on values, such as gaussian_nll_loss
            rows = [slice(i, i + 1) for i in range(batch_length(targets))]
            each = [self.total(part(z, row), part(targets, row)) for row in rows]
            values = torch.stack([value.reshape(()) for value in each])
        if self.over_labels and self.labels is not None:
            return values, self.labels.of_each_sample(targets).to(values)
        return values, torch.ones_like(values)

    def placed(self, device: torch.device, dtype: torch.dtype) -> CriterionLoss:
        """Return the same criterion with its weights on a device and in a dtype."""
        weight = None if self.labels is None else self.labels.weight
        labels = self.labels and replace(
            self.labels, weight=None if weight is None else placed(weight, device, dtype)
        )
        return replace(self, criterion=_placed(self.criterion, device, dtype), labels=labels)

    def check_labels(self, outputs: Any, targets: Any) -> None:
        """Refuse class labels that are out of the range of the outputs.

        Args:
            outputs: The outputs of the model.
            targets: The targets of the batch.

        Raises:
            DataError: A label is out of range.
        """
        if self.labels is not None:
            self.labels.check(outputs, targets)


@dataclass(frozen=True)
class ModelLoss(Loss):
    """A callable of (model, batch) that gives (s, w)."""

    function: SummedLoss

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        """Evaluate the callable, and check the result."""
        return _checked_sums(self.function(model, batch), "the loss of (model, batch)")

    def placed(self, device: torch.device, dtype: torch.dtype) -> ModelLoss:
        """Return the same loss with its own tensors on a device and in a dtype."""
        return replace(self, function=_placed(self.function, device, dtype))


@dataclass(frozen=True)
class TwoStepLoss(OfOutputs):
    """An object of the user with `outputs` and `of_outputs`."""

    loss: OutputsLoss

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """Call the user's `outputs`."""
        return self.loss.outputs(model, batch)

    def of_outputs(self, z: Any, batch: Batch) -> tuple[Tensor, float]:
        """Call the user's `of_outputs`, and check the result."""
        return _checked_sums(self.loss.of_outputs(z, batch), "of_outputs of the loss")

    def of_each_sample(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Evaluate batches of one sample, each by its own forward pass.

        The outputs of a batch cannot be assigned to its samples, because they may be of tokens.

        Args:
            model: The model.
            batch: A batch whose tensors all have its length as their first dimension.

        Returns:
            The sums, (B,) with their graph, and the weights, (B,).
        """
        sums = [self(model, part(batch, slice(i, i + 1))) for i in range(batch_length(batch))]
        values = torch.stack([value.reshape(()) for value, _ in sums])
        return values, values.new_tensor([weight for _, weight in sums])

    def placed(self, device: torch.device, dtype: torch.dtype) -> TwoStepLoss:
        """Return the same loss with its own tensors on a device and in a dtype."""
        return replace(self, loss=_placed(self.loss, device, dtype))


def _placed(loss: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Copy a loss with its visible tensors moved; the user's loss does not change."""
    if isinstance(loss, functools.partial):
        return functools.partial(
            _placed(loss.func, device, dtype),
            *(_placed(value, device, dtype) for value in loss.args),
            **{name: _placed(value, device, dtype) for name, value in loss.keywords.items()},
        )
    if isinstance(loss, nn.Module):
        tensors = [*loss.parameters(), *loss.buffers()]
        moved = [placed(tensor, device, dtype) for tensor in tensors]
        if all(a is b for a, b in zip(tensors, moved, strict=True)):
            return loss
        try:
            return copy.deepcopy(loss).to(device, dtype)
        except (RuntimeError, TypeError):  # it has parts that cannot be copied
            return loss
    if isinstance(loss, Mapping) and type(loss) is dict:
        return {name: _placed(value, device, dtype) for name, value in loss.items()}
    return placed(loss, device, dtype)


def _checked_sums(returned: Any, what: str) -> tuple[Tensor, float]:
    """Check the result of a loss of the user, and return it as (s, w).

    Returns:
        The sum, a scalar tensor, and the weight.

    Raises:
        WorkloadError: The result is no such pair, or the weight is no positive number.
    """
    pair = isinstance(returned, (tuple, list)) and len(returned) == 2
    if not pair or not isinstance(returned[0], Tensor) or returned[0].numel() != 1:
        kind = (
            f"({', '.join(map(_kind, returned))})"
            if isinstance(returned, (tuple, list))
            else _kind(returned)
        )
        raise WorkloadError(
            f"{what} returns {kind} instead of a pair",
            "return (loss summed over the batch, weight of the batch); the weight is the number "
            "of samples, of tokens that count, or the sum of class weights",
        )
    value = returned[0]
    try:
        weight = float(returned[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise WorkloadError(
            f"{what} returns {_kind(returned[1])} as the weight of a batch",
            "return a positive number",
        ) from error
    empty = weight == 0 and float(value.detach()) == 0
    if not (weight > 0 and math.isfinite(weight)) and not empty:
        raise WorkloadError(
            f"{what} returns {weight:g} as the weight of a batch",
            "return a positive number: of samples, of tokens that count, or the sum of class "
            "weights",
        )
    return value.reshape(()), weight


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__}"


def checked_loss(loss: Loss, model: nn.Module, batch: Batch, what: str) -> tuple[Tensor, float]:
    """Evaluate a batch with a check of class labels; failures become one line.

    Args:
        loss: The loss.
        model: The model.
        batch: The batch.
        what: The name of the batch in messages.

    Returns:
        The summed loss and the weight.

    Raises:
        WorkloadError: The model or the loss cannot be evaluated on this batch.
        DataError: A class label is out of the range of the model's outputs.
    """
    with evaluating(what):
        if not isinstance(loss, CriterionLoss):
            return loss(model, batch)
        outputs = loss.outputs(model, batch)
        loss.check_labels(outputs, batch[1])
        return loss.of_outputs(outputs, batch)


def plain_value(evaluate: Callable[[], Result]) -> Result:
    """Evaluate without a graph, or with one if the model or the loss itself takes derivatives.

    Physics-informed losses and force fields take derivatives with respect to their inputs.

    Args:
        evaluate: The function that evaluates the loss; it may be called twice.

    Returns:
        The value of the function.

    Raises:
        HessdistError: The function fails with a graph as well.
        RuntimeError: The function fails with a graph as well.
    """
    try:
        with torch.no_grad():
            return evaluate()
    except (HessdistError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, HessdistError) else error
        if not (isinstance(cause, RuntimeError) and "does not require grad" in str(cause)):
            raise
    with torch.enable_grad():
        return evaluate()


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compute the squared error, the mean over samples and outputs (PyTorch's convention).

    Args:
        outputs: The outputs, (B, C).
        targets: The targets, (B, C), or class labels (B,), which mean unit vectors.

    Returns:
        The error, a scalar.
    """
    if not targets.is_floating_point():
        targets = nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    return nn.functional.mse_loss(outputs, targets.reshape(outputs.shape))


# -- the form of a loss ----------------------------------------------------------------------


def is_summed_loss(loss: Any) -> bool:
    """Return whether a loss is a callable of (model, batch), by the names of its parameters."""
    called = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        names = list(inspect.signature(called).parameters)
    except (TypeError, ValueError):
        return False
    if names[1:2] == ["batch"]:
        return True
    models = {"model", "net", "network", "module"}
    targets = {"target", "targets", "label", "labels", "y"}
    return names[:1] != [] and names[0] in models and not {*names[1:2]} & targets


def as_summed_loss(
    loss: AnyLoss, model: nn.Module, samples: Batch, further: Iterable[Batch] = ()
) -> Loss:
    """Convert any loss into the summed form.

    The reduction of PyTorch's own criteria is known. For other criteria it is found by evaluation;
    `curvature/additivity.py` proves that the result is right.

    Args:
        loss: A criterion of (outputs, targets), a callable of (model, batch), or an object with
            `outputs` and `of_outputs`.
        model: The model in evaluation mode.
        samples: A batch of one to three samples of the data set, with the model's dtype and device.
        further: Batches of other samples, which are used if these have a loss of zero, such as
            images without an object.

    Returns:
        The loss, as a sum over samples.

    Raises:
        WorkloadError: The criterion is neither a sum nor a mean over samples.
        DataError: The samples are no pair of inputs and targets, or do not fit the criterion.
    """
    device, dtype = _place_of(model)
    if isinstance(loss, Loss):
        return loss.placed(device, dtype)
    if isinstance(loss, OutputsLoss):
        return TwoStepLoss(_placed(loss, device, dtype))
    if is_summed_loss(loss):
        return ModelLoss(_placed(loss, device, dtype))
    if not (isinstance(samples, (tuple, list)) and len(samples) == 2):
        raise DataError(
            "the data set does not give pairs of inputs and targets",
            "give a loss of (model, batch) that returns (summed loss, number of samples)",
        )
    criterion = cast("Criterion", loss)
    with evaluating("the first samples"):
        inputs, targets = samples
        outputs = plain_value(lambda: detached(model(inputs)))
    recognised = known(criterion, device, dtype)
    if recognised is not None:
        return _of_pytorch(recognised, outputs, targets)
    labels = ClassLabels() if criterion is mse else None
    moved = _placed(criterion, device, dtype)
    with evaluating("the first samples"), torch.no_grad():
        if labels is not None:
            labels.check(outputs, targets)
        reductions = fitting_reductions(moved, outputs, targets)
    others = iter(further)
    while len(reductions) > 1 and (batch := next(others, None)) is not None:
        reductions = _narrowed(moved, model, batch, reductions)
    return CriterionLoss(moved, reductions[0], labels)


def _of_pytorch(known: Known, outputs: Any, targets: Any) -> CriterionLoss:
    """Make the loss of one of PyTorch's criteria, and evaluate it on the first samples."""
    _require_tensor(outputs, known.name)
    loss = CriterionLoss(
        known.criterion, known.reduction, known.labels, known.over_labels, known.name
    )
    with evaluating("the first samples"), torch.no_grad():
        loss.check_labels(outputs, targets)
        loss.total(outputs, targets)
    return loss


def _place_of(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the dtype of a model's parameters."""
    for tensor in model.parameters():
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def detached(outputs: Any) -> Any:
    """Return outputs of a model without their graph."""
    return map_tensors(outputs, lambda tensor: tensor.detach())


def _require_tensor(outputs: Any, name: str) -> None:
    """Refuse outputs that are no tensor, which PyTorch's criteria need."""
    if isinstance(outputs, Tensor):
        return
    keys = f" with {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    raise WorkloadError(
        f"the model returns {type(outputs).__name__}{keys}, but {name} takes a tensor",
        "let the model return that tensor, or give a loss with outputs(model, batch) that returns "
        "it and of_outputs(z, batch)",
    )


def _narrowed(
    criterion: Criterion, model: nn.Module, batch: Batch, reductions: list[Reduction]
) -> list[Reduction]:
    """Return the reductions that fit other samples as well; all if these do not decide."""
    inputs, targets = batch
    with suppress(HessdistError), evaluating("some samples"), torch.no_grad():
        outputs = plain_value(lambda: detached(model(inputs)))
        fitting = fitting_reductions(criterion, outputs, targets)
        return [reduction for reduction in fitting if reduction in reductions] or reductions
    return reductions
