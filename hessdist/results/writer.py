"""Writing result files so that a kill at any moment leaves the last complete one.

Each checkpoint has one file, which is written under another name, flushed to disk and renamed. The
run's file is an index over these files: external links, with the small tables copied in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hessdist.errors import OutputError
from hessdist.results.files import (
    PARTIAL,
    partial_name,
    parts_folder,
    replacing,
    require_place,
    shortened,
)
from hessdist.results.opening import open_hdf5, with_retries
from hessdist.results.parts import column, read_row
from hessdist.results.schema import (
    DIMENSIONS,
    ENDS,
    SCHEMA_VERSION,
    SOFTWARE,
    STEP,
    TABLES,
    VECTORS,
    Field,
    group_name,
)
from hessdist.results.units import collect_studies, write_studies


@dataclass(frozen=True)
class RunDescription:
    """Everything that is the same for all checkpoints of a run."""

    job: str  # the TOML text
    fingerprint: str  # Job.fingerprint()
    num_parameters: int
    num_samples: int
    ranks: int
    versions: Mapping[str, str]  # of torch, PETSc, SLEPc, MPI, HDF5, by lower-case name
    parameter_names: Sequence[str]
    parameter_shapes: Sequence[Sequence[int]]
    parameter_offsets: Sequence[int]
    weight: float | None = None  # the divisor of the sum of losses; None: num_samples
    metric: str = "none"  # of the eigenpairs

    def attributes(self) -> dict[str, Any]:
        """Return the root attributes of the run's files."""
        from hessdist import __version__

        return {
            "schema_version": SCHEMA_VERSION,
            "software": SOFTWARE,
            "software_version": __version__,
            "created": _now(),
            "job": self.job,
            "fingerprint": self.fingerprint,
            "num_parameters": self.num_parameters,
            "num_samples": self.num_samples,
            "weight": float(self.num_samples if self.weight is None else self.weight),
            "ranks": self.ranks,
            "metric": self.metric,
            **{f"{name}_version": version for name, version in self.versions.items()},
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def part_path(path: Path, step: int, fingerprint: str) -> Path:
    """Return the file of one checkpoint; its name depends on the job's fingerprint."""
    return parts_folder(path) / f"{group_name(step)}.{fingerprint}.h5"


def remove_partial_files(path: Path) -> None:
    """Remove the temporary files of killed writers. No other writer may be at work.

    Args:
        path: The run's file.
    """
    for folder, names in ((path.parent, f".{path.name}.*"), (parts_folder(path), ".*")):
        for partial in folder.glob(f"{names}{PARTIAL}"):
            partial.unlink(missing_ok=True)


def parts_of(path: Path, fingerprint: str) -> list[Path]:
    """Return the files of the checkpoints of a job, by increasing step.

    Args:
        path: The run's file.
        fingerprint: The fingerprint of the job.

    Returns:
        The paths of the files; some of them may be damaged.
    """
    return sorted(parts_folder(path).glob(f"{group_name(0)[:5]}*.{fingerprint}.h5"))


def check_writable(path: Path) -> None:
    """Check before a long solve that the result can be written.

    Args:
        path: The run's file.

    Raises:
        OutputError: The folder cannot be created or written to, or the path is not that of a file.
    """
    require_place(path)
    folder = parts_folder(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target in (part_path(path, 0, "f" * 12), path):
            probe = partial_name(target)  # the longest name
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise OutputError(
            f"the output folder {shortened(folder)} cannot be written ({error.strerror})",
            "change output.path or the folder's permissions",
        ) from error


# -- one checkpoint --------------------------------------------------------------------------


class CheckpointFile:
    """The file of one checkpoint during writing.

    Args:
        file: The open HDF5 file.
        description: The run.
        step: The training step.
        sizes: The lengths of the dimensions "largest" and "smallest".
    """

    def __init__(
        self, file: h5py.File, description: RunDescription, step: int, sizes: Mapping[str, int]
    ) -> None:
        self._file = file
        self._sizes = {**sizes, "parameter": description.num_parameters}
        file.attrs.update(description.attributes())
        file.attrs["step"] = step
        for name, size in self._sizes.items():
            make_dimension(file, name, size)
        shapes = [",".join(map(str, shape)) for shape in description.parameter_shapes]
        write_parameters(
            file, description.parameter_names, shapes, description.parameter_offsets[:-1]
        )

    def put(self, name: str, value: Any) -> None:
        """Write a small table."""
        _write(self._file, _field(name), np.asarray(value))

    def put_slice(
        self, name: str, begin: int, entries: NDArray[Any], row: int | None = None
    ) -> None:
        """Write some entries of the gradient, or of one eigenvector.

        So only a part of a vector has to be in memory.

        Args:
            name: The name of the data set.
            begin: The place of the first entry.
            entries: The entries, (n,).
            row: The number of the eigenvector; None for the gradient.
        """
        field = _field(name)
        if name not in self._file:
            shape = tuple(self._sizes[dimension] for dimension in field.dimensions)
            self._file.create_dataset(name, shape, field.dtype)
            _annotate(self._file, field)
        place = slice(begin, begin + len(entries))
        self._file[name][place if row is None else (row, place)] = entries

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Write the last attributes, and the attribute that marks the file as complete."""
        self._file.attrs.update(attributes)
        self._file.attrs["complete"] = True


# -- the index -------------------------------------------------------------------------------


Rows = dict[Path, tuple[tuple[int, int, int], dict[str, Any]]]
"""Tables of checkpoints by file, each with the file's time, size and inode when it was read."""


def write_index(
    path: Path,
    parts: Sequence[Path],
    known: Rows | None = None,
    without: RunDescription | None = None,
) -> None:
    """Write the run's file again from the files of its checkpoints and studies.

    Args:
        path: The run's file.
        parts: The files of one job, by increasing step; a damaged file is left out.
        known: The tables that were read before, which are not read again; this call updates it.
        without: The description of a run that has studies and no checkpoints; if None, no file is
            written for such a run.

    Raises:
        OutputError: The file cannot be written.
        ReadingError: One of the files cannot be read now. An earlier run's file is kept.
    """
    known = {} if known is None else known
    rows = {part: row for part in parts if (row := _row_of(part, known)) is not None}
    if not rows and without is None:
        return
    with replacing(path) as index:
        if rows:
            sizes = _copy_description(index, list(rows)[-1])
        else:
            assert without is not None
            index.attrs.update(without.attributes())
            shapes = [",".join(map(str, shape)) for shape in without.parameter_shapes]
            write_parameters(index, without.parameter_names, shapes, without.parameter_offsets[:-1])
            sizes = {"largest": 0, "smallest": 0}
        steps = np.array([row[STEP.name] for row in rows.values()], dtype=STEP.dtype)
        columns = {field.name: column(field, list(rows.values()), sizes) for field in TABLES}
        write_tables(index, steps, columns)
        group = index.create_group("checkpoints")
        for part, row in rows.items():
            target = os.path.relpath(part, path.parent)
            group[group_name(int(row[STEP.name]))] = h5py.ExternalLink(target, "/")
        digests = {int(row[STEP.name]): row["digests"] for row in rows.values()}
        fingerprint = str(index.attrs["fingerprint"])
        studies = collect_studies(parts_folder(path), fingerprint, digests)
        write_studies(index, studies, path.parent)


def write_tables(
    file: h5py.File, steps: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]
) -> None:
    """Write the tables of all checkpoints with their dimension scales.

    Args:
        file: The open file.
        steps: The steps of the checkpoints, (S,).
        columns: The tables by name, (S, ...).
    """
    _write(file, STEP, steps, scale=True)
    for end in ENDS:
        make_dimension(file, end, columns[f"eigenvalues_{end}"].shape[1])
    for field in TABLES:
        behind_step = Field(
            field.name, ("step", *field.dimensions), field.dtype, field.long_name, field.units
        )
        _write(file, behind_step, columns[field.name])


def _copy_description(index: h5py.File, part: Path) -> dict[str, int]:
    """Copy what all checkpoints have in common, and return the sizes of the dimensions."""
    common = (
        *("software", "job", "fingerprint", "num_parameters", "num_samples", "weight", "ranks"),
        "metric",
    )
    with with_retries(lambda: open_hdf5(part), part) as file:
        for name, value in file.attrs.items():
            if name in common or name.endswith("_version"):
                index.attrs[name] = value
        index.attrs["created"] = _now()
        parameters = file.group("parameters")
        columns = [parameters[name][()] for name in ("name", "shape", "offset")]
        sizes = {name: len(file[name]) for name in ENDS}
    write_parameters(index, *columns)
    return sizes


def _row_of(part: Path, known: Rows) -> dict[str, Any] | None:
    def read() -> dict[str, Any]:
        status = part.stat()
        present = status.st_mtime_ns, status.st_size, status.st_ino
        if part not in known or known[part][0] != present:
            known[part] = present, read_row(part)
        return known[part][1]

    try:
        return with_retries(read, part)
    except (OSError, KeyError, RuntimeError, ValueError):
        return None


# -- datasets --------------------------------------------------------------------------------


def _field(name: str) -> Field:
    return next(field for field in (*TABLES, *VECTORS) if field.name == name)


def _write(file: h5py.Group, field: Field, values: NDArray[Any], scale: bool = False) -> None:
    dataset = file.create_dataset(field.name, data=values.astype(field.dtype))
    if scale:
        dataset.make_scale(field.name)
    _annotate(file, field, skip_scales=scale)


def _annotate(file: h5py.Group, field: Field, skip_scales: bool = False) -> None:
    dataset = file[field.name]
    dataset.attrs["units"] = field.units
    dataset.attrs["long_name"] = field.meaning(str(file.file.attrs.get("metric", "none")))
    if not skip_scales:
        for axis, dimension in enumerate(field.dimensions):
            dataset.dims[axis].attach_scale(file[dimension])


def make_dimension(file: h5py.Group, name: str, size: int) -> None:
    """Make a dimension scale without values: netCDF's dimension without variable.

    Args:
        file: The open file.
        name: The name of the dimension.
        size: The length of the dimension.
    """
    if name == "parameter":
        scale = file.create_dataset(name, (size,), "f4")  # never written: takes no space
        scale.make_scale(f"This is a netCDF dimension but not a netCDF variable. {size:9d}")
    else:
        scale = file.create_dataset(name, data=np.arange(1, size + 1))
        scale.make_scale(name)
    scale.attrs["units"] = "1"
    scale.attrs["long_name"] = DIMENSIONS[name]


def write_parameters(
    file: h5py.File, names: Sequence[Any], shapes: Sequence[Any], offsets: Sequence[int]
) -> None:
    """Write where the parameter tensors lie in the flat vector.

    Args:
        file: The open file.
        names: The names of the tensors.
        shapes: The shapes of the tensors, comma-separated.
        offsets: The offsets of the first entries of the tensors.
    """
    group = file.create_group("parameters")
    text = h5py.string_dtype()
    scale = group.create_dataset("tensor", data=np.arange(len(names)))
    scale.make_scale("tensor")
    scale.attrs["units"], scale.attrs["long_name"] = "1", DIMENSIONS["tensor"]
    columns: dict[str, tuple[NDArray[Any], str]] = {
        "name": (np.array(list(names), dtype=text), "name of the parameter tensor"),
        "shape": (
            np.array(list(shapes), dtype=text),
            "its shape, comma-separated; empty for a scalar",
        ),
        "offset": (np.array(offsets, dtype="i8"), "its first entry in the flat vector"),
    }
    for name, (values, long_name) in columns.items():
        dataset = group.create_dataset(name, data=values)
        dataset.dims[0].attach_scale(scale)
        dataset.attrs["units"], dataset.attrs["long_name"] = "1", long_name
