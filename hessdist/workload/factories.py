"""Python objects for names in a job file: built-in names, or `package.module:callable`."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from hessdist.errors import InputError, WorkloadError
from hessdist.unforeseen import memory_shortage


def find_factory(
    name: str, built_in: Mapping[str, Callable[..., Any]], where: str
) -> Callable[..., Any]:
    """Find a factory by its name.

    Args:
        name: A key of `built_in`, or "package.module:callable"; modules are also searched in the
            working directory.
        built_in: The factories that need no import.
        where: The key of the job file, for messages ("model.factory").

    Returns:
        The callable: a function, a class, or any other object that can be called.

    Raises:
        WorkloadError: The name is unknown, the module does not import, or it is not callable.
    """
    if name in built_in:
        return built_in[name]
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        near = get_close_matches(name, built_in, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        known = f"built in: {', '.join(built_in)}; or " if built_in and not near else ""
        write = (
            "(or write 'package.module:callable')" if near else "write 'package.module:callable'"
        )
        raise WorkloadError(f"{where}: '{name}' is not known", f"{hint}{known}{write}")
    module = _import(module_name, name, where)
    factory = _attribute(module, attribute, name, where)
    if not callable(factory):
        raise WorkloadError(
            f"{where}: '{name}' is not callable, it is {_article(type(factory).__name__)}",
            "name a function or a class that makes it",
        )
    return factory  # type: ignore[no-any-return]


def call_factory(factory: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    """Call a factory with the keyword arguments of the job file.

    Args:
        factory: The callable.
        arguments: The keyword arguments of the callable.
        where: The section of the job file, for messages ("model").

    Returns:
        The value that the factory returns.

    Raises:
        WorkloadError: The arguments do not fit, or the factory itself fails.
        InputError: The error of a built-in factory.
    """
    signature = signature_of(factory)
    try:
        if signature is not None:
            signature.bind(**arguments)
    except TypeError as error:
        raise WorkloadError(
            f"{where}.arguments do not fit {name_of(factory)} ({error})",
            f"its signature is {_shortened(str(signature))}{_if_made(factory)}",
        ) from error
    try:
        return factory(**arguments)
    except InputError:  # it already has a message and a remedy
        raise
    except Exception as error:
        if (shortage := memory_shortage(error)) is not None:
            raise InputError(f"{where}: {shortage.what}", shortage.remedy) from error
        raise WorkloadError(
            f"{where}: {name_of(factory)} failed ({one_line(error)})",
            _shadow(error) or f"check {where}.arguments and {where}'s own code",
        ) from error


def signature_of(factory: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature of a callable; None if it has none that can be read."""
    try:
        return inspect.signature(factory)
    except Exception:  # callables written in C, and those whose __signature__ is wrong
        return None


def name_of(factory: Callable[..., Any]) -> str:
    """Return the name of a callable for messages: that of the function behind a partial one."""
    if isinstance(factory, functools.partial):
        return name_of(factory.func)
    name = getattr(factory, "__qualname__", None)
    return name if isinstance(name, str) else type(factory).__qualname__


def one_line(error: BaseException) -> str:
    """Format an error in one line of up to 200 letters: its type and its message's first line."""
    name = type(error).__name__
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # the message of a user's own exception is user code too
        lines = []
    return _shortened(f"{name}: {lines[0]}") if lines else name


# -- importing -------------------------------------------------------------------------------


def _import(module_name: str, name: str, where: str) -> ModuleType:
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which can raise anything
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None
        if missing and f"{module_name}.".startswith(f"{error.name}."):  # type: ignore[attr-defined]
            remedy = (
                "check the spelling, and that the module is in the working directory or on "
                "PYTHONPATH"
            )
        else:
            remedy = f"correct the module, so that `python -c 'import {module_name}'` works"
        raise WorkloadError(
            f"{where}: '{name}' does not import ({one_line(error)})",
            _hidden(module_name) or _shadow(error) or remedy,
        ) from error
    if (hidden := _hidden(module_name)) is not None:
        raise WorkloadError(f"{where}: '{name}' is not the module of the working directory", hidden)
    return module


def _attribute(module: ModuleType, attribute: str, name: str, where: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except Exception as error:  # a module may have its own __getattr__
            try:
                near = get_close_matches(part, dir(value), n=1)
            except Exception:
                near = []
            file = getattr(module, "__file__", None)
            raise WorkloadError(
                f"{where}: '{name}' does not import ({one_line(error)})",
                f"did you mean '{near[0]}'?" if near else f"define it in {file or module}",
            ) from error
    return value


def _hidden(module_name: str) -> str | None:
    """Return the remedy if another module of this name hides one of the working directory."""
    top = module_name.partition(".")[0]
    folder = Path.cwd()
    candidates = (folder / f"{top}.py", folder / top / "__init__.py")
    local = next((path for path in candidates if path.is_file()), None)
    imported = sys.modules.get(top)
    if local is None or imported is None:
        return None
    file = getattr(imported, "__file__", None)
    # A module that was imported from an earlier working directory is the user's, too.
    packages = {"site-packages", "dist-packages"}
    installed = top in sys.stdlib_module_names or bool(packages & set(Path(file or "").parts))
    try:
        if not installed or (file is not None and local.samefile(file)):
            return None
    except OSError:
        pass
    which = f"the one in {file}" if file else "one of Python's own"
    return (
        f"Python has imported {which}, not {local.relative_to(folder)} of the working directory: "
        "give that file another name"
    )


def _shadow(error: BaseException) -> str | None:
    """Return the remedy if a file of the working directory hides a module that is needed."""
    if not isinstance(error, (ImportError, AttributeError)):
        return None
    try:
        message = str(error)
    except Exception:
        return None
    for name, file in _local_modules():
        if (f"'{name}'" in message or f"'{name}." in message) and _is_elsewhere(name):
            return f"{file} has the name of another module, which it hides: give it another name"
    return None


def _local_modules() -> Iterator[tuple[str, str]]:
    """Iterate over top-level modules of the working directory and their files."""
    folder = Path.cwd()
    try:
        files = sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")])
    except OSError:
        return
    for file in files:
        relative = file.relative_to(folder)
        yield (relative.stem if len(relative.parts) == 1 else relative.parts[0]), str(relative)


def _is_elsewhere(name: str) -> bool:
    """Return whether Python or an installed package has a module of this name."""
    if name in sys.stdlib_module_names:
        return True
    local = {"", ".", str(Path.cwd())}
    try:
        return PathFinder.find_spec(name, [p for p in sys.path if p not in local]) is not None
    except Exception:
        return False


# -- messages --------------------------------------------------------------------------------


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _if_made(factory: Callable[..., Any]) -> str:
    """Return a hint for objects that are called like functions."""
    if inspect.isroutine(factory) or inspect.isclass(factory):
        return ""
    if isinstance(factory, functools.partial):
        return ""
    return f"; it is {_article(type(factory).__name__)} itself: name a function that returns it"
