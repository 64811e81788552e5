"""Names in a job file to Python objects: built-in names, or `package.module:callable`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hessdist.errors import InputError, WorkloadError


def find_factory(
    name: str, built_in: Mapping[str, Callable[..., Any]], where: str
) -> Callable[..., Any]:
    """Look a factory up by name.

    Args:
        name: A key of `built_in`, or "package.module:callable"; modules are also looked for in
            the working directory.
        built_in: The names that need no import.
        where: The key of the job file, for messages ("model.factory").

    Returns:
        The callable.

    Raises:
        WorkloadError: No such name, the module does not import, or the object is not callable.
    """
    if name in built_in:
        return built_in[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        near = get_close_matches(name, built_in, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"built in: {', '.join(built_in)}"
        raise WorkloadError(
            f"{where}: '{name}' is not known", f"{hint} (or write 'package.module:callable')"
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # importing runs the user's code: anything can come out of it
        raise WorkloadError(
            f"{where}: '{name}' does not import ({type(error).__name__}: {error})",
            "check the spelling, and that the module is in the working directory or on PYTHONPATH",
        ) from error
    if not callable(found):
        raise WorkloadError(f"{where}: '{name}' is not callable", "name a function or a class")
    return found  # type: ignore[no-any-return]


def call_factory(factory: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    """Call a factory with the keyword arguments of the job file.

    Args:
        factory: The callable.
        arguments: Its keyword arguments.
        where: The section of the job file, for messages ("model").

    Returns:
        What the factory returns.

    Raises:
        WorkloadError: The arguments do not fit, or the factory itself fails.
        InputError: What a built-in factory has to say.
    """
    try:
        inspect.signature(factory).bind(**arguments)
    except ValueError:  # some callables written in C have no signature
        pass
    except TypeError as error:
        raise WorkloadError(
            f"{where}.arguments do not fit {_name(factory)} ({error})",
            f"its signature is {inspect.signature(factory)}",
        ) from error
    try:
        return factory(**arguments)
    except InputError:  # it already says what is wrong
        raise
    except Exception as error:
        raise WorkloadError(
            f"{where}: {_name(factory)} failed ({type(error).__name__}: {error})",
            f"check {where}.arguments",
        ) from error


def _name(factory: Callable[..., Any]) -> str:
    return getattr(factory, "__qualname__", repr(factory))
