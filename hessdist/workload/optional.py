"""Libraries that are imported only when a job asks for what they do."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from hessdist.errors import DependencyError


def import_library(name: str, extra: str = "language") -> ModuleType:
    """Import a library that only some models, data sets and formats of files need.

    Args:
        name: Its name.
        extra: The extra of hessdist that installs it; "" if none does.

    Returns:
        The module.

    Raises:
        DependencyError: It cannot be imported.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"{name} cannot be imported ({error})",
            f"install it: pip install {name.split('.')[0]}"
            + (f", or pip install 'hessdist[{extra}]'" if extra else ""),
        ) from error
