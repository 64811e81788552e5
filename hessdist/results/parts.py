"""Reading the files of single checkpoints, of which the run's file is an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import UntrustedError
from hessdist.results.contents import read_tables, require_attribute
from hessdist.results.opening import open_hdf5
from hessdist.results.schema import ENDS, STEP, Field
from hessdist.results.units import Digests, pairs_digest


def read_row(part: Path) -> dict[str, Any]:
    """Read the tables of a checkpoint.

    Args:
        part: The file of the checkpoint.

    Returns:
        Arrays by name, "step" and "digests". A table that an earlier version did not write is
        left out.

    Raises:
        OSError: The file is no HDF5 file, or it cannot be read now.
        KeyError: The file is not that of a checkpoint.
    """
    with open_hdf5(part) as file:
        row: dict[str, Any] = {**read_tables(file, part)}
        attributes = file.attrs
        of_checkpoint = str(attributes.get("checkpoint_digest", ""))
        of_pairs = pairs_digest(of_checkpoint, lambda name: row.get(name, np.zeros(0)))
        row["digests"] = Digests(of_checkpoint, of_pairs)
        require_attribute(attributes, STEP.name, int, part)
        row[STEP.name] = int(attributes[STEP.name])
    return row


def column(
    field: Field, rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]
) -> NDArray[Any]:
    """Stack one table over all checkpoints.

    Args:
        field: The table.
        rows: The tables of each checkpoint, from `read_row`.
        sizes: The sizes of the dimensions "largest" and "smallest".

    Returns:
        The stacked table, (S, ...); NaN, 0 or False where a checkpoint has no such table.

    Raises:
        UntrustedError: The checkpoints have tables of different shapes.
    """
    shape = tuple(sizes[name] for name in field.dimensions)
    dtype = np.dtype(field.dtype)
    missing = {"f": np.nan, "i": 0, "b": False}[dtype.kind]
    values = np.full((len(rows), *shape), missing, dtype)
    for number, row in enumerate(rows):
        if field.name in row:
            if row[field.name].shape != shape:
                raise UntrustedError(
                    f"the checkpoints have different numbers of {field.name.replace('_', ' ')}",
                    "remove the files of checkpoints that are of another job",
                )
            values[number] = row[field.name]
    return values


def sizes_of(row: Mapping[str, Any]) -> dict[str, int]:
    """Return the lengths of the dimensions "largest" and "smallest" of a checkpoint's tables."""
    return {end: len(row.get(f"eigenvalues_{end}", ())) for end in ENDS}
