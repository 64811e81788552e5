"""The monitor as a callback of Lightning."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hessdist.callbacks.monitor import Monitor
from hessdist.errors import DependencyError
from hessdist.workload.optional import import_library


def lightning_callback(monitor: Monitor) -> Any:
    """Make a callback of Lightning's Trainer of a monitor.

    The monitor is called before the first step and after every batch. Batches whose gradients are
    accumulated count as one step. The model is the whole LightningModule; if it has several
    optimisers, their states are not read.

    Args:
        monitor: The monitor.

    Returns:
        A `lightning.pytorch.Callback`, or that of `pytorch_lightning` if this is what is installed.

    Raises:
        DependencyError: Neither can be imported.
    """
    base: Any = _lightning().Callback

    def called(trainer: Any, module: Any) -> None:
        optimizers = trainer.optimizers
        only = optimizers[0] if len(optimizers) == 1 else None
        monitor.step(module, only, trainer.global_step)

    class HessdistCallback(base):  # type: ignore[misc]
        """Calls the monitor."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Call it at the step at which training begins, or is resumed."""
            called(trainer, pl_module)

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            """Call it after a batch."""
            called(trainer, pl_module)

    return HessdistCallback()


def _lightning() -> ModuleType:
    try:
        return import_library("lightning.pytorch")
    except DependencyError:
        try:
            return import_library("pytorch_lightning")
        except DependencyError:
            pass
        raise
