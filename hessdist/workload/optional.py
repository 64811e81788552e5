"""Libraries that are imported only when a job asks for what they do."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from hessdist.errors import DependencyError


def import_library(name: str) -> ModuleType:
    """Import a library that only some models and data sets need.

    Args:
        name: Its name.

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
            f"install it: pip install {name}, or pip install 'hessdist[language]'",
        ) from error
