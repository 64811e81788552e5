"""Result files, written so that a kill at any moment leaves the last complete one.

One file a checkpoint, written under another name, flushed to disk and renamed; the run's file is
an index over them: external links, with the small tables copied in.
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
from hessdist.results.files import PARTIAL, parts_folder, replacing
from hessdist.results.schema import (
    DIMENSIONS,
    SCHEMA_VERSION,
    SOFTWARE,
    STEP,
    TABLES,
    VECTORS,
    Field,
    group_name,
)
from hessdist.results.studies import pairs_digest, write_studies

_ENDS = ("largest", "smallest")
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable. {:9d}"


@dataclass(frozen=True)
class RunDescription:
    """What is the same for all checkpoints of a run."""

    job: str  # the TOML text
    fingerprint: str  # of the job: Job.fingerprint()
    num_parameters: int
    num_samples: int
    ranks: int
    versions: Mapping[str, str]  # torch, PETSc, SLEPc, MPI, HDF5: by lower-case name
    parameter_names: Sequence[str]
    parameter_shapes: Sequence[Sequence[int]]
    parameter_offsets: Sequence[int]

    def attributes(self) -> dict[str, Any]:
        """Root attributes."""
        from hessdist import __version__

        return {
            "schema_version": SCHEMA_VERSION,
            "software": SOFTWARE,
            "software_version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": self.job,
            "fingerprint": self.fingerprint,
            "num_parameters": self.num_parameters,
            "num_samples": self.num_samples,
            "ranks": self.ranks,
            **{f"{name}_version": version for name, version in self.versions.items()},
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def part_path(path: Path, step: int, fingerprint: str) -> Path:
    """The file of one checkpoint; jobs with other numbers have other names."""
    return parts_folder(path) / f"{group_name(step)}.{fingerprint}.h5"


def remove_partial_files(path: Path) -> None:
    """Remove what killed writers left; only for who knows that no other one is at work.

    Args:
        path: The run's file.
    """
    for folder, names in ((path.parent, f".{path.name}.*"), (parts_folder(path), ".*")):
        for partial in folder.glob(f"{names}{PARTIAL}"):
            partial.unlink(missing_ok=True)


def parts_of(path: Path, fingerprint: str) -> list[Path]:
    """Files of single checkpoints of a job, by increasing step.

    Args:
        path: The run's file.
        fingerprint: Of the job.

    Returns:
        Their paths; whether they are whole is not looked at.
    """
    return sorted(parts_folder(path).glob(f"{group_name(0)[:5]}*.{fingerprint}.h5"))


def check_writable(path: Path) -> None:
    """Find out before a long solve whether the result can be written.

    Args:
        path: The run's file.

    Raises:
        OutputError: The folder cannot be made or written to.
    """
    folder = parts_folder(path)
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"the output folder {folder} cannot be written ({error.strerror})",
            "change output.path or the folder's permissions",
        ) from error
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "change output.path to a file's name")


# -- one checkpoint --------------------------------------------------------------------------


class CheckpointFile:
    """The file of one checkpoint while it is written.

    Args:
        file: The open HDF5 file.
        description: The run.
        step: The training step.
        sizes: Lengths of the dimensions "largest" and "smallest".
    """

    def __init__(
        self, file: h5py.File, description: RunDescription, step: int, sizes: Mapping[str, int]
    ) -> None:
        self._file = file
        self._sizes = {**sizes, "parameter": description.num_parameters}
        file.attrs.update(description.attributes())
        file.attrs["step"] = step
        for name, size in self._sizes.items():
            _make_dimension(file, name, size)
        shapes = [",".join(map(str, shape)) for shape in description.parameter_shapes]
        _write_parameters(
            file, description.parameter_names, shapes, description.parameter_offsets[:-1]
        )

    def put(self, name: str, value: Any) -> None:
        """Write a small table, or the gradient."""
        _write(self._file, _field(name), np.asarray(value))

    def put_row(self, name: str, row: int, vector: NDArray[Any]) -> None:
        """Write one eigenvector, (d,); row by row, so that only one is held at a time."""
        field = _field(name)
        if name not in self._file:
            shape = tuple(self._sizes[dimension] for dimension in field.dimensions)
            self._file.create_dataset(name, shape, field.dtype)
            _annotate(self._file, field)
        self._file[name][row] = vector

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Write the last attributes, and the one that says the file is complete."""
        self._file.attrs.update(attributes)
        self._file.attrs["complete"] = True


# -- the index -------------------------------------------------------------------------------


Rows = dict[Path, tuple[tuple[int, int, int], dict[str, Any]]]
"""Tables of checkpoints' files, with what tells whether a file is still the one they are of."""


def write_index(
    path: Path,
    parts: Sequence[Path],
    known: Rows | None = None,
    without: RunDescription | None = None,
) -> None:
    """Write the run's file anew from the files of its checkpoints and studies.

    Args:
        path: The run's file.
        parts: Files of one job, by increasing step; one that cannot be read is left out.
        known: Tables that were read before, which spares reading them again; kept up to date.
        without: What is said of a run that has studies and no checkpoints; without it, no file
            is written then.

    Raises:
        OutputError: It cannot be written.
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
            _write_parameters(
                index, without.parameter_names, shapes, without.parameter_offsets[:-1]
            )
            sizes = {"largest": 0, "smallest": 0}
        steps = np.array([row[STEP.name] for row in rows.values()], dtype=STEP.dtype)
        _write(index, STEP, steps, scale=True)
        for name, size in sizes.items():
            _make_dimension(index, name, size)
        for field in TABLES:
            behind_step = Field(
                field.name, ("step", *field.dimensions), field.dtype, field.long_name, field.units
            )
            shape = len(rows), *(sizes[name] for name in field.dimensions)
            values = np.array([row[field.name] for row in rows.values()], dtype=field.dtype)
            _write(index, behind_step, values.reshape(shape))
        group = index.create_group("checkpoints")
        for part, row in rows.items():
            target = os.path.relpath(part, path.parent)
            group[group_name(int(row[STEP.name]))] = h5py.ExternalLink(target, "/")
        digests = {int(row[STEP.name]): row["digest"] for row in rows.values()}
        write_studies(index, path, index.attrs["fingerprint"], digests)


def _copy_description(index: h5py.File, part: Path) -> dict[str, int]:
    """Copy what all checkpoints have in common; sizes of the dimensions."""
    with h5py.File(part, "r") as file:
        for name, value in file.attrs.items():
            if name in _ROOT_ATTRIBUTES or name.endswith("_version"):
                index.attrs[name] = value
        index.attrs["created"] = _now()
        columns = [file["parameters"][name][()] for name in ("name", "shape", "offset")]
        sizes = {name: len(file[name]) for name in ("largest", "smallest")}
    _write_parameters(index, *columns)
    return sizes


def _row_of(part: Path, known: Rows) -> dict[str, Any] | None:
    try:
        status = part.stat()
        present = status.st_mtime_ns, status.st_size, status.st_ino
        if part not in known or known[part][0] != present:
            known[part] = present, _read_row(part)
        return known[part][1]
    except (OSError, KeyError, RuntimeError, ValueError):
        return None


def _read_row(part: Path) -> dict[str, Any]:
    with h5py.File(part, "r") as file:
        tables = {field.name: file[field.name][()] for field in TABLES}
        pairs = [tables[f"{what}_{end}"] for what in ("eigenvalues", "residuals") for end in _ENDS]
        digest = pairs_digest(str(file.attrs.get("checkpoint_digest", "")), pairs)
        return {**tables, STEP.name: file.attrs["step"], "digest": digest}


_ROOT_ATTRIBUTES = (
    "software",
    "job",
    "fingerprint",
    "num_parameters",
    "num_samples",
    "ranks",
)


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
    dataset.attrs["long_name"] = field.long_name
    if not skip_scales:
        for axis, dimension in enumerate(field.dimensions):
            dataset.dims[axis].attach_scale(file[dimension])


def _make_dimension(file: h5py.Group, name: str, size: int) -> None:
    """A dimension scale without values: netCDF's dimension without a variable."""
    if name == "parameter":
        scale = file.create_dataset(name, (size,), "f4")  # never written: takes no space
        scale.make_scale(_NO_VARIABLE.format(size))
    else:
        scale = file.create_dataset(name, data=np.arange(1, size + 1))
        scale.make_scale(name)
    scale.attrs["units"] = "1"
    scale.attrs["long_name"] = DIMENSIONS[name]


def _write_parameters(
    file: h5py.File, names: Sequence[Any], shapes: Sequence[Any], offsets: Sequence[int]
) -> None:
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
