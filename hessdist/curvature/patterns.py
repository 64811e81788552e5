"""Parameters chosen by the names of parameters and modules, and by patterns of such names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import chain

from torch import nn

from hessdist.errors import WorkloadError

_LISTED = 8  # names in a message


def trainable_names(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the trainable parameters, by the name in `named_parameters()`.

    Args:
        model: The model.

    Returns:
        All names of each parameter. A tied parameter has several: GPT-2's `transformer.wte.weight`
        is also `lm_head.weight`.
    """
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(first.setdefault(id(parameter), name), []).append(name)
    return names


def chosen_names(names: Mapping[str, Sequence[str]], layers: Sequence[str], key: str) -> set[str]:
    """Choose parameters.

    Args:
        names: All names of each parameter, as `trainable_names` returns them.
        layers: Names of parameters or modules, or patterns of them as in `fits`; empty: all.
        key: The key of the job file that has the names, for messages.

    Returns:
        The keys of `names` of the chosen parameters.

    Raises:
        WorkloadError: A name or a pattern fits no parameter.
    """
    chosen: set[str] = set() if layers else set(names)
    for layer in layers:
        found = {
            first for first, known in names.items() if any(fits(name, layer) for name in known)
        }
        if names and not found:
            hint = _hint(list(chain.from_iterable(names.values())), layer)
            raise WorkloadError(f"{key}: no trainable parameter '{layer}'", hint)
        chosen |= found
    return chosen


def fits(name: str, pattern: str) -> bool:
    """Return whether a parameter is the one, or is in a module, that a pattern names.

    In a pattern, `*`, `?` and `[...]` stand for letters between two dots, as in file names, and
    `**` stands for any number of parts with dots between them, or none.

    Args:
        name: The name of the parameter, such as "transformer.h.0.attn.c_attn.weight".
        pattern: The pattern, such as `transformer.h.*.attn` or `**.bias`.
    """
    if name == pattern or name.startswith(f"{pattern}."):
        return True
    return any(True for _ in _rests(pattern.split("."), name.split(".")))


def _rests(pattern: Sequence[str], name: Sequence[str]) -> Iterator[Sequence[str]]:
    """Iterate over what is left of a name behind a pattern, for each way in which it fits."""
    if not pattern:
        yield name
    elif pattern[0] == "**":
        for begin in range(len(name) + 1):
            yield from _rests(pattern[1:], name[begin:])
    elif name and fnmatchcase(name[0], pattern[0]):
        yield from _rests(pattern[1:], name[1:])


def _hint(names: Sequence[str], layer: str) -> str:
    """Return what a name or a pattern that fits nothing may have meant."""
    if any(fits(name, f"**.{layer}") for name in names):
        return f"did you mean '**.{layer}'?"
    parts = layer.split(".")
    known = 0  # so many parts fit
    while _below(names, parts[: known + 1]) and known + 1 < len(parts):
        known += 1
    inside = _below(names, parts[:known])
    for near in get_close_matches(parts[known], inside, n=1):
        meant = [*parts[:known], near]
        whole = ".".join([*meant, *parts[known + 1 :]])
        fit = any(fits(name, whole) for name in names)
        return f"did you mean '{whole if fit else '.'.join(meant)}'?"
    for near in [] if known else get_close_matches(layer, names, n=1):
        return f"did you mean '{near}'?"
    listed = ", ".join(inside[:_LISTED]) + (", ..." if len(inside) > _LISTED else "")
    return f"{'.'.join(parts[:known])} has {listed}" if known else f"there are {listed}"


def _below(names: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Return the parts of names that come next where the first parts fit."""
    rests = (rest for name in names for rest in _rests(parts, name.split(".")))
    return list(dict.fromkeys(rest[0] for rest in rests if rest))
