"""The contents of a result, checked against its schema (docs/hdf5-file.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ResultError, UntrustedError
from hessdist.results.schema import ENDS, SCHEMA_VERSION, SOFTWARE, STEP, TABLES, Field
from hessdist.results.untrusted import REMEDY, CheckedGroup, Dataset, File

_ATTRIBUTES = {
    "job": str,
    "software_version": str,
    "num_parameters": int,
    "num_samples": int,
    "ranks": int,
}


@dataclass(frozen=True)
class ParameterTensor:
    """One tensor of the flat parameter vector."""

    name: str
    shape: tuple[int, ...]
    offset: int


def check_ours(file: File, path: Path) -> None:
    """Refuse a file that hessdist did not write, or that a later version wrote.

    Args:
        file: The open file.
        path: The path of the file, for messages.

    Raises:
        ResultError: The file cannot be read by this version of hessdist.
        UntrustedError: The version of its schema is no number.
    """
    attributes = file.attrs
    if not _is(attributes.get("software"), str) or attributes["software"] != SOFTWARE:
        raise ResultError(f"{path} is not a result of hessdist", "name the run's HDF5 file")
    version = attributes.get("schema_version", 0)
    require_attribute({"schema_version": version}, "schema_version", int, path)
    if version > SCHEMA_VERSION:
        raise ResultError(
            f"{path} has schema version {version}, but this hessdist reads up to {SCHEMA_VERSION}",
            "update hessdist",
        )


def read_attributes(file: File, path: Path) -> dict[str, Any]:
    """Read the attributes of a run.

    Args:
        file: The open file.
        path: The path of the file, for messages.

    Returns:
        All attributes that are numbers or text.

    Raises:
        UntrustedError: One of the schema is missing, or of another kind.
    """
    attributes = file.attrs
    for name, kind in _ATTRIBUTES.items():
        require_attribute(attributes, name, kind, path)
    require_attribute({"fingerprint": "", **attributes}, "fingerprint", str, path)
    weight = attributes.get("weight", 1.0)
    if np.ndim(weight) or not isinstance(weight, float | int | np.floating | np.integer):
        raise UntrustedError(f"{path}: the attribute weight is no number", REMEDY)
    return attributes


def require_attribute(attributes: Mapping[str, Any], name: str, kind: type, path: Path) -> None:
    """Refuse an attribute that is missing or of another kind.

    Args:
        attributes: The attributes.
        name: The name of the attribute.
        kind: `str`, or `int` for a number from 0.
        path: The path of the file, for messages.

    Raises:
        UntrustedError: It is missing or of another kind.
    """
    if not _is(attributes.get(name), kind):
        what = "text" if kind is str else "whole number from 0"
        raise UntrustedError(f"{path}: the attribute {name} is no {what}", REMEDY)


def _is(value: Any, kind: type) -> bool:
    """Return whether an attribute is text, or a number from 0."""
    if kind is str:
        return isinstance(value, str)
    return isinstance(value, int | np.integer) and bool(value >= 0)


# -- tables ----------------------------------------------------------------------------------


def read_steps(file: File, path: Path) -> NDArray[np.int64]:
    """Read the training steps of the checkpoints.

    Args:
        file: The open file.
        path: The path of the file, for messages.

    Returns:
        The steps, ascending.

    Raises:
        KeyError: There are none.
        UntrustedError: They are no ascending numbers from 0.
    """
    dataset = file[STEP.name]
    require_field(dataset, STEP, {}, f"{path}: {STEP.name}")
    steps = np.asarray(dataset[()], dtype=STEP.dtype)
    if (np.diff(steps, prepend=-1) <= 0).any():
        raise UntrustedError(f"{path}: the steps do not ascend from 0", REMEDY)
    return steps


def read_tables(
    group: CheckedGroup, where: object, before: tuple[int, ...] = ()
) -> dict[str, NDArray[Any]]:
    """Read the tables of one checkpoint or of all.

    Args:
        group: The group that has them.
        where: The file, for messages.
        before: The number of checkpoints, (S,), or nothing for a single one.

    Returns:
        The tables that are there, by name: an earlier version did not write all.

    Raises:
        KeyError: There are no eigenvalues.
        UntrustedError: A table has another type or shape than the schema says.
    """
    sizes: dict[str, int] = {}
    tables = {}
    for field in TABLES:
        if field.name in group:
            dataset, place = group[field.name], f"{where}: {field.name}"
            require_field(dataset, field, sizes, place, before)
            values = np.asarray(dataset[()], dtype=field.dtype)
            sizes.update(zip(field.dimensions, values.shape[len(before) :], strict=True))
            tables[field.name] = values
    if missing := [end for end in ENDS if f"eigenvalues_{end}" not in tables]:
        raise KeyError(f"it has no eigenvalues_{missing[0]}")
    return tables


def require_field(
    dataset: Dataset,
    field: Field,
    sizes: Mapping[str, int],
    where: str,
    before: tuple[int, ...] = (),
) -> None:
    """Refuse a dataset that has not the type and the shape of the schema.

    Args:
        dataset: The dataset.
        field: What the schema says of it.
        sizes: The lengths of dimensions by name; one that is missing may have any length.
        where: The file and the name, for messages.
        before: The lengths of the dimensions before those of the schema.

    Raises:
        UntrustedError: Its type or shape is another one.
    """
    if dataset.dtype.kind not in {"f": "f", "i": "iu", "b": "b"}[np.dtype(field.dtype).kind]:
        raise UntrustedError(f"{where} has values of another kind", REMEDY)
    _require_shape(dataset, (*before, *(sizes.get(name) for name in field.dimensions)), where)


def _require_shape(dataset: Dataset, shape: tuple[int | None, ...], where: str) -> None:
    """Refuse a dataset of another shape; None stands for any length."""
    same = len(shape) == dataset.ndim and all(
        wanted in {None, there} for wanted, there in zip(shape, dataset.shape, strict=True)
    )
    if not same:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise UntrustedError(f"{where} has shape {dataset.shape}, not ({wanted})", REMEDY)


# -- parameters ------------------------------------------------------------------------------


def read_parameters(file: File, path: Path, attributes: Mapping[str, Any]) -> list[ParameterTensor]:
    """Read where the parameter tensors lie in the flat vector.

    Args:
        file: The open file.
        path: The path of the file, for messages.
        attributes: The attributes of the run.

    Returns:
        The tensors, which follow one another and have all parameters.

    Raises:
        UntrustedError: They do not.
    """
    group = file.group("parameters")
    names, shapes, offsets = (group[name] for name in ("name", "shape", "offset"))
    for column, name in ((names, "name"), (shapes, "shape"), (offsets, "offset")):
        _require_shape(column, names.shape[:1] or (None,), f"{path}: parameters/{name}")
    if not (names.is_text and shapes.is_text) or offsets.dtype.kind not in "iu":
        raise UntrustedError(f"{path}: the table of parameters has values of other kinds", REMEDY)
    tensors = [
        ParameterTensor(str(name), tuple(int(n) for n in shape.split(",") if n), int(offset))
        for name, shape, offset in zip(names[()], shapes[()], offsets[()], strict=True)
    ]
    end = 0
    for tensor in tensors:
        if tensor.offset != end or min(tensor.shape, default=0) < 0:
            raise UntrustedError(f"{path}: the parameters do not follow one another", REMEDY)
        end += math.prod(tensor.shape)
    if not end or end != attributes["num_parameters"]:
        raise UntrustedError(f"{path}: the parameters are not as many as it says", REMEDY)
    return tensors
