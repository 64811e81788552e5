"""The monitor as a callback of Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

from hessdist.callbacks.monitor import Monitor
from hessdist.workload.optional import import_library


def trainer_callback(monitor: Monitor) -> Any:
    """Make a callback of transformers' Trainer of a monitor.

    The monitor is called before the first step and after every one.

    Args:
        monitor: The monitor.

    Returns:
        A `transformers.TrainerCallback`, for the Trainer's argument `callbacks`.

    Raises:
        DependencyError: transformers cannot be imported.
    """
    base: Any = import_library("transformers").TrainerCallback

    class HessdistCallback(base):  # type: ignore[misc]
        """Calls the monitor."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Call it at the step at which training begins, or is resumed."""
            monitor.step(kwargs["model"], kwargs.get("optimizer"), state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Call it after a step of the optimiser."""
            monitor.step(kwargs["model"], kwargs.get("optimizer"), state.global_step)

    return HessdistCallback()
