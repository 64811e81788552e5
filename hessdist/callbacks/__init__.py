"""Looking at curvature while a model is trained, from the trainer's own processes.

A `Monitor` is called after every step. It writes checkpoints for `hessdist watch` (`Checkpoints`),
or solves in place (`Solves`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessdist.callbacks.checkpoints import Checkpoints
    from hessdist.callbacks.huggingface import trainer_callback
    from hessdist.callbacks.lightning import lightning_callback
    from hessdist.callbacks.monitor import Monitor
    from hessdist.callbacks.solves import Solves

__all__ = ["Checkpoints", "Monitor", "Solves", "lightning_callback", "trainer_callback"]

_HOMES = {
    "Checkpoints": "checkpoints",
    "Monitor": "monitor",
    "Solves": "solves",
    "lightning_callback": "lightning",
    "trainer_callback": "huggingface",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"hessdist.callbacks.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hessdist.callbacks' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
