"""The monitor, which a training loop calls after every step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from hessdist.callbacks.budget import Budget
from hessdist.callbacks.trained import HasState
from hessdist.errors import HessdistError, InputError
from hessdist.parallel.crew import Crew

_log = logging.getLogger("hessdist")


class Action(Protocol):
    """What a monitor does every now and then: `Checkpoints` or `Solves`."""

    def crew(self) -> Any:
        """Find the processes that take part. Collective."""

    def prepare(self, crew: Any, model: nn.Module, step: int) -> None:
        """Check before the first step what can be checked. Collective."""

    def act(self, crew: Any, model: nn.Module, optimizer: HasState | None, step: int) -> bool:
        """Do it once, and return whether it was done. Collective."""


class Monitor:
    """Looks at a model while it is trained, every n steps, within a share of the time.

    The training goes on bit for bit as it would without the monitor: parameters, buffers,
    gradients, modes, the optimiser and the random states stay as they are.

    Args:
        action: What is done: `Checkpoints` or `Solves`.
        every: The number n of steps.
        share: The share of the time since the first call that the action may take, such as 0.05.
            While it has taken more, it is left out; the first one is always done. None: it is
            done every n steps.
        clock: The clock, in seconds.

    Raises:
        InputError: `every` or `share` is out of range.
    """

    def __init__(
        self,
        action: Action,
        *,
        every: int,
        share: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if every < 1:
            raise InputError(f"every is {every}", "use 1 or more steps")
        if share is not None and not 0 < share <= 1:
            raise InputError(f"share is {share}", "use a number above 0 and up to 1, or None")
        self._action, self._every, self._clock = action, every, clock
        self._budget = Budget(share, 0.0)
        self._crew: Crew | None = None
        self._last: int | None = None

    def step(self, model: nn.Module, optimizer: HasState | None, step: int) -> bool:
        """Act if it is time to. Collective: every process of the trainer calls it at every step.

        Rank 0 decides for all. The first call checks what can be checked, and an error in it or in
        the first action is raised. If a later action fails, it is logged as a warning, and the
        training goes on.

        Args:
            model: The model, also in DistributedDataParallel or torch.compile.
            optimizer: Its optimiser, which may be wrapped; None: nothing is known of it.
            step: The number of steps that the optimiser has made. A second call with the same
                number does nothing.

        Returns:
            True if the action was done.

        Raises:
            HessdistError: The first action is not possible; on every process.
        """
        if step == self._last:
            return False
        self._last = step
        if self._crew is None:
            crew = self._action.crew()
            self._action.prepare(crew, model, step)
            self._crew, self._budget.begun = crew, self._clock()
        if step % self._every:
            return False
        begun = self._clock()
        if not self._crew.told(self._budget.allows(begun)):
            return False
        done = False
        try:
            done = self._action.act(self._crew, model, optimizer, step)
        except HessdistError as error:
            if not self._budget.count:
                raise
            if self._crew.is_root:
                _log.warning("step %d: the monitor has failed: %s", step, error)
        finally:
            self._budget.add(self._clock() - begun, done)
        return done
