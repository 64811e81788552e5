"""The loss that a job names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hessdist.errors import WorkloadError
from hessdist.workload.criteria import Criterion
from hessdist.workload.factories import call_factory, find_factory
from hessdist.workload.language import causal_lm, masked_lm
from hessdist.workload.losses import AnyLoss, OutputsLoss, mse

LOSSES: dict[str, Criterion] = {"cross_entropy": nn.functional.cross_entropy, "mse": mse}
"""Losses that are named themselves."""

MADE_LOSSES: dict[str, Callable[..., AnyLoss]] = {"causal_lm": causal_lm, "masked_lm": masked_lm}
"""Losses that a function makes of `loss.arguments`."""


def build_loss(factory: str, arguments: Mapping[str, Any]) -> AnyLoss:
    """Find the loss that a job names.

    Args:
        factory: "cross_entropy", "mse", "causal_lm", "masked_lm", or "package.module:callable".
            The callable is the loss itself, or makes it when called: a class, a function without
            parameters, or any function if there are `arguments`.
        arguments: The keyword arguments for a callable that makes the loss.

    Returns:
        The loss in one of the three forms.

    Raises:
        WorkloadError: The factory is not found, fails, or does not make a loss.
    """
    candidate = find_factory(factory, {**LOSSES, **MADE_LOSSES}, "loss.factory")
    makes = factory in MADE_LOSSES or inspect.isclass(candidate) or _takes_nothing(candidate)
    if not (arguments or makes):
        return candidate
    loss = call_factory(candidate, arguments, "loss")
    if not (callable(loss) or isinstance(loss, OutputsLoss)):
        raise WorkloadError(
            f"loss.factory: '{factory}' made {type(loss).__name__}, which is no loss",
            "name a criterion of (outputs, targets), a callable of (model, batch), or an object "
            "with outputs and of_outputs",
        )
    return loss  # type: ignore[no-any-return]


def _takes_nothing(factory: Any) -> bool:
    """Return whether a callable has no parameters, so that it cannot itself be a loss."""
    try:
        return not isinstance(factory, nn.Module) and not inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
