"""PyTorch's own criteria, split into the sum and the divisor of their mean.

A criterion that averages divides by a number: of samples, of labels that count, or the sum of their
class weights. Where this differs between batches, a mean of batch means has wrong weights, so the
sum and the divisor are needed separately.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's own abbreviation

from hessdist.errors import DataError, WorkloadError

Criterion = Callable[[Any, Any], Tensor]
"""Maps (outputs, targets) to a scalar: a sum or a mean over the samples of the batch."""

Reduction = Literal["sum", "mean", "none"]

_OF_CLASSES: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll_loss",
}
"""Criteria of class labels, whose mean is a weighted mean over the labels that count."""

_OF_ELEMENTS: dict[Callable[..., Any], str] = {
    F.mse_loss: "mse_loss",
    F.l1_loss: "l1_loss",
    F.smooth_l1_loss: "smooth_l1_loss",
    F.huber_loss: "huber_loss",
    F.binary_cross_entropy: "binary_cross_entropy",
    F.binary_cross_entropy_with_logits: "binary_cross_entropy_with_logits",
    F.poisson_nll_loss: "poisson_nll_loss",
    F.kl_div: "kl_div",
    F.soft_margin_loss: "soft_margin_loss",
}
"""Criteria that compare outputs and targets entry by entry."""

_MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.NLLLoss: F.nll_loss,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.KLDivLoss: F.kl_div,
    nn.SoftMarginLoss: F.soft_margin_loss,
}


@dataclass(frozen=True)
class ClassLabels:
    """The class labels that count in a criterion, with their weights."""

    weight: Tensor | None = None  # (C,) of the classes; None: 1 each
    ignore_index: int = -100  # labels of this value do not count

    def of_each_sample(self, targets: Tensor) -> Tensor:
        """Compute the sum of the weights of each sample's labels that count.

        Args:
            targets: Integer labels (B, ...), or class probabilities (B, C, ...), each of which
                counts as 1.

        Returns:
            The sums, (B,) float64.
        """
        if targets.is_floating_point():
            places = float(math.prod(targets.shape[2:]))
            return torch.full((len(targets),), places, dtype=torch.float64, device=targets.device)
        counted = targets != self.ignore_index
        if self.weight is None:
            weights = counted.double()
        else:
            labels = torch.where(counted, targets, 0).long()
            weights = self.weight.double()[labels] * counted
        return weights.reshape(len(targets), -1).sum(1)

    def total(self, targets: Tensor) -> float:
        """Return the divisor of the criterion's mean over these targets."""
        return float(self.of_each_sample(targets).sum())

    def check(self, outputs: Any, targets: Any) -> None:
        """Check labels against the number of outputs.

        Args:
            outputs: Outputs (B, C, ...), or anything else, which is not checked.
            targets: Integer labels (B, ...), or anything else, which is not checked.

        Raises:
            DataError: A label that counts is not in 0 ... C-1, or the shapes do not fit.
        """
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or outputs.ndim < 2:
            return
        if targets.is_floating_point() or not targets.numel():
            return
        if targets.ndim != outputs.ndim - 1:
            raise DataError(
                f"class labels are of shape {_shape(targets)} and outputs of "
                f"{_shape(outputs)}, which need labels of shape "
                f"{_shape(outputs.new_empty(outputs.shape[:1] + outputs.shape[2:]))}",
                "let the data set give one integer label for each place, or use another loss",
            )
        counted = targets[targets != self.ignore_index]
        if not counted.numel():
            return
        low, high, classes = int(counted.min()), int(counted.max()), outputs.shape[1]
        if low < 0 or high >= classes:
            raise DataError(
                f"labels are {low} ... {high}, but the model has outputs 0 ... {classes - 1}",
                "change the model's number of classes (model.arguments) or the data set, or name "
                "the label that does not count in the loss (ignore_index)",
            )


@dataclass(frozen=True)
class Known:
    """One of PyTorch's criteria, with its reduction and its labels."""

    name: str  # in torch.nn.functional
    criterion: Criterion
    reduction: Reduction  # the reduction of `criterion`
    labels: ClassLabels | None  # if targets are classes
    over_labels: bool  # whether the mean is over labels that count, not over samples


def known(criterion: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> Known | None:
    """Recognise a criterion of torch.nn or torch.nn.functional, also inside functools.partial.

    A criterion of classes is always returned as a sum, with the labels that determine the divisor
    of PyTorch's mean.

    Args:
        criterion: The criterion.
        device: The device for its weights.
        dtype: The dtype for its weights.

    Returns:
        The criterion; None if it is not PyTorch's own, but a function or a class of the user.

    Raises:
        WorkloadError: Its weights of entries sum to zero or less, so that there is no loss.
    """
    function, options = _function_and_options(criterion)
    if function not in _OF_CLASSES and function not in _OF_ELEMENTS:
        return None
    options = {name: placed(value, device, dtype) for name, value in options.items()}
    reduction = _reduction(options)
    if function in _OF_ELEMENTS:
        name = _OF_ELEMENTS[function]
        _require_weight(name, options.get("weight"))
        return Known(
            name, functools.partial(_of_elements, function, options), reduction, None, False
        )
    name = _OF_CLASSES[function]
    labels = ClassLabels(options.get("weight"), int(options.get("ignore_index", -100)))
    summed = functools.partial(_of_classes, function, {**options, "reduction": "sum"})
    return Known(name, summed, "sum", labels, reduction != "sum")


def placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move a tensor to a device, and to a dtype if it is floating; keep anything else."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _require_weight(name: str, weight: Any) -> None:
    """Refuse weights of entries that make the loss zero or negative; those of classes are summed.

    Raises:
        WorkloadError: They sum to zero or less.
    """
    if isinstance(weight, Tensor) and not float(weight.sum()) > 0:
        raise WorkloadError(
            f"the weights of {name} sum to {float(weight.sum()):g}", "give positive weights"
        )


def _reduction(options: Mapping[str, Any]) -> Reduction:
    stated = options.get("reduction", "mean")
    return "mean" if stated == "batchmean" else stated


def _function_and_options(criterion: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """Return the function of a criterion and the keyword arguments that it is called with."""
    if isinstance(criterion, functools.partial):
        function, options = _function_and_options(criterion.func)
        if criterion.args or (criterion.keywords and isinstance(criterion.func, nn.Module)):
            return None, {}
        return function, {**options, **criterion.keywords}
    for module, function in _MODULES.items():
        # A subclass with its own forward is a custom criterion.
        if isinstance(criterion, module) and type(criterion).forward is module.forward:
            return function, _options_of(criterion, module)
    try:
        hash(criterion)
    except TypeError:
        return None, {}
    return criterion, {}


# The attributes of PyTorch's modules that their functions take as keyword arguments.
_OPTIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.CrossEntropyLoss: ("weight", "ignore_index", "label_smoothing"),
    nn.NLLLoss: ("weight", "ignore_index"),
    nn.SmoothL1Loss: ("beta",),
    nn.HuberLoss: ("delta",),
    nn.BCELoss: ("weight",),
    nn.BCEWithLogitsLoss: ("weight", "pos_weight"),
    nn.PoissonNLLLoss: ("log_input", "full", "eps"),
    nn.KLDivLoss: ("log_target",),
}


def _options_of(criterion: nn.Module, module: type[nn.Module]) -> dict[str, Any]:
    names = ("reduction", *_OPTIONS.get(module, ()))
    options = {name: getattr(criterion, name) for name in names}
    return {name: value for name, value in options.items() if value is not None}


def _of_classes(
    function: Callable[..., Tensor], options: Mapping[str, Any], outputs: Any, targets: Any
) -> Tensor:
    """Evaluate a criterion of classes; labels may have any integer type."""
    if isinstance(targets, Tensor):
        targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets.long()
    return function(outputs, targets, **options)


def _of_elements(
    function: Callable[..., Tensor], options: Mapping[str, Any], outputs: Any, targets: Any
) -> Tensor:
    """Evaluate a criterion of entries; targets may have any type, but not any shape.

    Returns:
        The criterion's value.

    Raises:
        DataError: Outputs and targets would be broadcast against each other.
    """
    if isinstance(targets, Tensor) and isinstance(outputs, Tensor):
        if targets.ndim != outputs.ndim:
            raise DataError(
                f"outputs are of shape {_shape(outputs)} and targets of {_shape(targets)}, so "
                "the loss would compare every output with every target",
                "bring both to one shape: targets[:, None] in the data set, or outputs.squeeze(-1) "
                "in the model",
            )
        targets = targets.to(outputs.dtype)
    return function(outputs, targets, **options)


def _shape(tensor: Tensor) -> str:
    """Format the shape of a batch, with B for its first dimension: (B, 3)."""
    return f"({', '.join(['B', *map(str, tensor.shape[1:])])}{',' if tensor.ndim == 1 else ''})"
