"""The common parts of the stochastic optimisers of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def check_settings(**settings: tuple[float, bool]) -> None:
    """Check the settings of an optimiser.

    Args:
        settings: The value of each setting, and whether it is within its range.

    Raises:
        ValueError: A setting is out of its range.
    """
    for name, (value, good) in settings.items():
        if not good:
            raise ValueError(f"{name} = {value} is out of range")


def loss_of(closure: Callable[[], Tensor] | None) -> Tensor | None:
    """Call the closure of a step with gradients enabled, if there is one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class OverBase(Optimizer):
    """An optimiser that adds steps of its own to those of a base optimiser.

    Args:
        params: The parameters, or groups of them; the same as those of the base optimiser.
        base: The base optimiser.
        defaults: The settings of a group.
    """

    def __init__(self, params: Iterable[Any], base: Optimizer, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self.base = base
        self._steps = 0

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with that of the base optimiser: numbers, tensors and settings."""
        return {**super().state_dict(), "base": self.base.state_dict(), "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` has returned; the next step is the same to the bit."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.base.load_state_dict(state_dict["base"])
        self._steps = int(state_dict["steps"])
