"""Learning rates over the steps of a training run: warm-up, and a decay along a cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Schedule:
    """The factor of the learning rate at every step.

    It rises linearly over `warmup_steps` steps, and then stays at 1 or falls to 0 along half a
    period of a cosine, which ends with the last step.

    Args:
        kind: What follows the warm-up.
        steps: The number of steps of the run.
        warmup_steps: The number of steps of the warm-up, fewer than `steps`.
    """

    kind: Literal["constant", "cosine"]
    steps: int
    warmup_steps: int = 0

    @property
    def is_constant(self) -> bool:
        """Return whether the factor is 1 at every step."""
        return self.kind == "constant" and not self.warmup_steps

    def factor(self, step: int) -> float:
        """Compute the factor of the step that follows `step` steps.

        After the last step, it is that of the last step.

        Args:
            step: The number of steps before.

        Returns:
            The factor, above 0 and up to 1.
        """
        step = min(step, self.steps - 1)
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return (1 + math.cos(math.pi * done)) / 2

    def of(self, optimizer: Optimizer) -> LambdaLR | None:
        """Return the scheduler of an optimiser; None if its learning rate stays as it is."""
        return None if self.is_constant else LambdaLR(optimizer, self.factor)
