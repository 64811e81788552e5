"""PyTorch's own criteria, handled from what they are: what they sum, and what they divide it by.

A criterion that averages divides by something: the number of samples, of labels that count, or the
sum of their class weights. A mean of batch means weighs batches wrongly wherever that differs from
batch to batch, so the sum and the divisor are taken apart here.
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

from hessdist.errors import DataError

Reduction = Literal["sum", "mean", "none"]

_OF_CLASSES: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll_loss",
}
"""Criteria of class labels, whose mean is over the labels that count, by their weights."""

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
    """Which class labels count in a criterion, and how much."""

    weight: Tensor | None = None  # (C,) of the classes; None: 1 each
    ignore_index: int = -100  # labels of this value do not count

    def of_each_sample(self, targets: Tensor) -> Tensor:
        """The sum of the weights of each sample's labels that count.

        Args:
            targets: Integer labels (B, ...), or class probabilities (B, C, ...), each of which
                counts as 1.

        Returns:
            (B,) float64.
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
        """The divisor of the criterion's mean over these targets."""
        return float(self.of_each_sample(targets).sum())

    def check(self, outputs: Any, targets: Any) -> None:
        """Check labels against the number of outputs.

        Args:
            outputs: (B, C, ...), or anything else, which is not checked.
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
                f"class labels are of shape {_shape(targets)} and the outputs of "
                f"{_shape(outputs)}, where labels of "
                f"{_shape(outputs.new_empty(outputs.shape[:1] + outputs.shape[2:]))} fit",
                "let the data set give one integer label for each place, or use another loss",
            )
        counted = targets[targets != self.ignore_index]
        if not counted.numel():
            return
        low, high, classes = int(counted.min()), int(counted.max()), outputs.shape[1]
        if low < 0 or high >= classes:
            raise DataError(
                f"labels are {low} ... {high}, and the model has outputs 0 ... {classes - 1}",
                "change the model's number of classes (model.arguments) or the data set, or name "
                "the label that does not count in the loss (ignore_index)",
            )


@dataclass(frozen=True)
class Known:
    """One of PyTorch's criteria, taken apart."""

    name: str  # of torch.nn.functional
    criterion: Callable[[Any, Any], Tensor]  # (outputs, targets) to a value by `reduction`
    reduction: Reduction  # what `criterion` returns
    labels: ClassLabels | None  # where targets are classes
    over_labels: bool  # whether the mean is over labels that count, and not over samples


def known(criterion: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> Known | None:
    """Recognise a criterion of torch.nn or torch.nn.functional, also inside functools.partial.

    A criterion of classes that averages, or gives a value for each label, comes back as a sum,
    with the labels that tell what PyTorch's mean divides by.

    Args:
        criterion: The criterion.
        device: Where its weights are wanted.
        dtype: Likewise.

    Returns:
        None where it is no criterion of PyTorch's: a function or a class of one's own.
    """
    function, options = _function_and_options(criterion)
    if function not in _OF_CLASSES and function not in _OF_ELEMENTS:
        return None
    options = {name: placed(value, device, dtype) for name, value in options.items()}
    reduction = _reduction(options)
    if function in _OF_ELEMENTS:
        name = _OF_ELEMENTS[function]
        return Known(
            name, functools.partial(_of_elements, function, options), reduction, None, False
        )
    name = _OF_CLASSES[function]
    labels = ClassLabels(options.get("weight"), int(options.get("ignore_index", -100)))
    summed = functools.partial(_of_classes, function, {**options, "reduction": "sum"})
    return Known(name, summed, "sum", labels, reduction != "sum")


def placed(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A tensor on a device, in a dtype if it is floating; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _reduction(options: Mapping[str, Any]) -> Reduction:
    stated = options.get("reduction", "mean")
    return "mean" if stated == "batchmean" else stated


def _function_and_options(criterion: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    """The function behind a criterion, and the keyword arguments that it is called with."""
    if isinstance(criterion, functools.partial):
        function, options = _function_and_options(criterion.func)
        if criterion.args or (criterion.keywords and isinstance(criterion.func, nn.Module)):
            return None, {}
        return function, {**options, **criterion.keywords}
    for module, function in _MODULES.items():
        # A subclass with a forward of its own is a criterion of one's own.
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
    """A criterion of classes; labels of any integer type are taken."""
    if isinstance(targets, Tensor):
        targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets.long()
    return function(outputs, targets, **options)


def _of_elements(
    function: Callable[..., Tensor], options: Mapping[str, Any], outputs: Any, targets: Any
) -> Tensor:
    """A criterion of entries; targets of any type are taken, of any shape they are not.

    Returns:
        The criterion's value.

    Raises:
        DataError: Outputs and targets would be broadcast against each other.
    """
    if isinstance(targets, Tensor) and isinstance(outputs, Tensor):
        if targets.ndim != outputs.ndim:
            raise DataError(
                f"outputs are of shape {_shape(outputs)} and targets of {_shape(targets)}, and "
                "the loss would compare every output with every target",
                "bring both to one shape: targets[:, None] in the data set, or outputs.squeeze(-1) "
                "in the model",
            )
        targets = targets.to(outputs.dtype)
    return function(outputs, targets, **options)


def _shape(tensor: Tensor) -> str:
    """The shape of a batch, its first dimension called B: (B, 3)."""
    return f"({', '.join(['B', *map(str, tensor.shape[1:])])}{',' if tensor.ndim == 1 else ''})"
