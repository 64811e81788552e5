"""Reading results: h5py and NumPy alone, on a laptop that has neither MPI, PETSc nor torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ReadingError, ResultError
from hessdist.results import seal
from hessdist.results.opening import (
    group_in,
    is_intact,
    is_of_the_system,
    open_hdf5,
    patiently,
    reading_error,
)
from hessdist.results.parts import column, read_row, sizes_of
from hessdist.results.schema import ENDS, SCHEMA_VERSION, SOFTWARE, STEP, TABLES, group_name
from hessdist.results.units import (
    Measurements,
    collect_studies,
    pairs_digest,
    read_studies,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray

_log = logging.getLogger("hessdist")


def open_run(path: str | Path, fingerprint: str | None = None) -> Run:
    """Open a run's result.

    The small tables are read at once and the file is closed again; eigenvectors are read when
    they are asked for. A sweep may go on writing meanwhile: open the run anew to see more.

    Args:
        path: The run's HDF5 file; or the folder of its checkpoints' files, where that is all there
            is. A damaged file in it is named in a warning and in `Run.damaged`, and left out.
        fingerprint: Of the job, where such a folder has the files of several.

    Returns:
        The run.

    Raises:
        ResultError: The file is missing, damaged, of a newer schema, or not one of ours.
    """
    return Run(Path(path), fingerprint)


class Run:
    """All checkpoints of a run; arrays have one row a checkpoint, by increasing step.

    Args:
        path: The run's HDF5 file, or the folder of its checkpoints' files.
        fingerprint: Of the job, where such a folder has the files of several.

    Raises:
        ResultError: The file is missing, damaged, of a newer schema, or not one of ours.
    """

    attributes: dict[str, Any]
    parameters: list[ParameterTensor]
    damaged: dict[str, str]
    """Why files of checkpoints were left out, by name."""
    steps: NDArray[np.int64]  # (S,)
    loss: NDArray[np.float64]  # (S,)
    gradient_norm: NDArray[np.float64]  # (S,)
    eigenvalues_largest: NDArray[np.float64]  # (S, k) descending
    residuals_largest: NDArray[np.float64]  # (S, k) relative
    converged_largest: NDArray[np.bool_]  # (S, k)
    eigenvalues_smallest: NDArray[np.float64]  # (S, m) ascending
    residuals_smallest: NDArray[np.float64]  # (S, m) relative
    converged_smallest: NDArray[np.bool_]  # (S, m)
    products: NDArray[np.int64]  # (S,)
    seconds: NDArray[np.float64]  # (S,)

    def __init__(self, path: Path, fingerprint: str | None = None) -> None:
        self.path, self.damaged = path, {}
        self._files: dict[int, Path] = {}  # of checkpoints, where there is no index
        if path.is_dir():
            self._read_folder(fingerprint)
        else:
            self._read_index()

    def _read_index(self) -> None:
        with _open(self.path) as file:
            check_ours(file, self.path)
            try:
                self.attributes = dict(file.attrs)
                self.steps = file[STEP.name][()]
                row = {f.name: file[f.name][()] for f in TABLES if f.name in file}
                self.parameters = _parameters(file["parameters"])
                sizes = {end: row[f"eigenvalues_{end}"].shape[1] for end in ENDS}
            except (IndexError, KeyError, OSError, RuntimeError, ValueError) as error:
                raise _unreadable(self.path, error) from error
        for field in TABLES:  # an earlier version may not have written all of them
            absent = column(field, [{}] * len(self.steps), sizes)
            setattr(self, field.name, row.get(field.name, absent))

    def _read_folder(self, fingerprint: str | None) -> None:
        rows: list[dict[str, Any]] = []
        for part in _parts_in(self.path, fingerprint):
            try:
                attributes, parameters, row = patiently(partial(_read_part, part), part)
                rows.append(row)
            except ReadingError:
                raise
            except (ResultError, KeyError, OSError, RuntimeError, ValueError) as error:
                self.damaged[part.name] = str(error)
                _log.warning("%s is damaged and left out: %s", part, error)
                continue
            self.attributes, self.parameters = attributes, parameters
            self._files[rows[-1][STEP.name]] = part
        if not rows:
            raise ResultError(
                f"no file of a checkpoint in {self.path} can be read",
                "run `hessdist spectrum` again",
            )
        self.steps = np.array([row[STEP.name] for row in rows], dtype=STEP.dtype)
        self._digests = {row[STEP.name]: row["digests"] for row in rows}
        for field in TABLES:
            setattr(self, field.name, column(field, rows, sizes_of(rows[-1])))

    @property
    def job(self) -> str:
        """The TOML text of the job."""
        return str(self.attributes["job"])

    @property
    def fingerprint(self) -> str:
        """The hash of what determines the numbers."""
        return str(self.attributes.get("fingerprint", ""))

    @property
    def num_parameters(self) -> int:
        """The number of parameters, d."""
        return int(self.attributes["num_parameters"])

    @property
    def num_samples(self) -> int:
        """The number of samples, N."""
        return int(self.attributes["num_samples"])

    @property
    def weight(self) -> float:
        """What the sum of the losses is divided by: N, labels that count, or class weights."""
        return float(self.attributes.get("weight", self.num_samples))

    @property
    def samples(self) -> str:
        """The number of samples in words, with their weight where it is another number."""
        if self.weight == self.num_samples:
            return f"{self.num_samples:,} samples"
        return f"{self.num_samples:,} samples of weight {self.weight:,.10g}"

    @cached_property
    def studies(self) -> dict[str, Measurements]:
        """What `hessdist study` has found: sections by name, arrays of a section by name."""
        if self._files:
            return collect_studies(self.path, self.fingerprint, self._digests)
        with _open(self.path) as file:
            return read_studies(file, self.path)

    def study_array(self, section: str, name: str, step: int) -> NDArray[Any]:
        """An array that a study keeps beside the run's file for its size; read when asked for.

        Args:
            section: Of the study, such as "exact".
            name: Of the array, such as "eigenvectors".
            step: The checkpoint.

        Returns:
            The array.

        Raises:
            ResultError: It was not stored, or its file is missing or damaged.
        """
        try:
            file, where = self.studies[section].files[step]
            with group_in(file, where) as group:
                return np.asarray(group[name][()])
        except (KeyError, OSError, RuntimeError) as error:
            raise ResultError(
                f"{self.path}: no array '{name}' of the study '{section}' at step {step} ({error})",
                "store it (the section's settings), and keep the .checkpoints folder beside the "
                "run's file",
            ) from error

    def file_of(self, step: int) -> tuple[Path, str]:
        """Where the arrays of a checkpoint are.

        Args:
            step: The step.

        Returns:
            An HDF5 file and a group in it.
        """
        if step in self._files:
            return self._files[step], "/"
        return self.path, f"checkpoints/{group_name(step)}"

    def __len__(self) -> int:
        """The number of checkpoints, S."""
        return len(self.steps)

    def __getitem__(self, step: int) -> CheckpointResult:
        """The result at a training step.

        Args:
            step: The step.

        Returns:
            The checkpoint's result.

        Raises:
            KeyError: There is no checkpoint of this step.
        """
        (rows,) = np.nonzero(self.steps == step)
        if not len(rows):
            raise KeyError(f"no step {step}; there are {', '.join(map(str, self.steps))}")
        return CheckpointResult(self, step, int(rows[0]))

    def to_xarray(self) -> xarray.Dataset:
        """The small tables as an `xarray.Dataset` with dimensions step, largest, smallest.

        Returns:
            The data set, in memory.
        """
        import xarray

        variables = {
            field.name: (
                ("step", *field.dimensions),
                getattr(self, field.name),
                {"units": field.units, "long_name": field.long_name},
            )
            for field in TABLES
        }
        coordinates = {
            "step": self.steps,
            "largest": np.arange(1, self.eigenvalues_largest.shape[1] + 1),
            "smallest": np.arange(1, self.eigenvalues_smallest.shape[1] + 1),
        }
        return xarray.Dataset(variables, coordinates, self.attributes)

    def to_pandas(self) -> pd.DataFrame:
        """All eigenpairs as a table, one row each.

        Returns:
            Columns step, end ("largest" or "smallest"), rank (from 1), eigenvalue, residual,
            converged, and the loss and the gradient's norm at the step.
        """
        import pandas as pd

        ends = []
        for end in ENDS:
            values = getattr(self, f"eigenvalues_{end}")
            rows, ranks = np.indices(values.shape)
            ends.append(
                pd.DataFrame({
                    "step": self.steps[rows.ravel()],
                    "end": end,
                    "rank": ranks.ravel() + 1,
                    "eigenvalue": values.ravel(),
                    "residual": getattr(self, f"residuals_{end}").ravel(),
                    "converged": getattr(self, f"converged_{end}").ravel(),
                    "loss": self.loss[rows.ravel()],
                    "gradient_norm": self.gradient_norm[rows.ravel()],
                })
            )
        return pd.concat(ends, ignore_index=True).sort_values(
            ["step", "end", "rank"], ignore_index=True
        )

    def __repr__(self) -> str:
        return (
            f"<Run {self.path}: {len(self)} checkpoints, {self.num_parameters} parameters, "
            f"{self.num_samples} samples>"
        )


@dataclass(frozen=True)
class ParameterTensor:
    """One tensor of the flat parameter vector."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, eq=False)
class CheckpointResult:
    """One checkpoint of a run; large arrays are read when asked for.

    Small tables (`loss`, `eigenvalues_largest`, ...) are attributes as those of the run, without
    the first dimension.
    """

    run: Run
    step: int
    row: int

    def __getattr__(self, name: str) -> Any:
        if name in {field.name for field in TABLES}:
            return getattr(self.run, name)[self.row]
        raise AttributeError(name)

    @cached_property
    def eigenvectors_largest(self) -> NDArray[np.float32]:
        """(k, d) float32, unit norm; rows in the order of `eigenvalues_largest`."""
        return self._read("eigenvectors_largest")

    @cached_property
    def eigenvectors_smallest(self) -> NDArray[np.float32]:
        """(m, d) float32, unit norm; rows in the order of `eigenvalues_smallest`."""
        return self._read("eigenvectors_smallest")

    @property
    def has_eigenvectors(self) -> bool:
        """Whether eigenvectors of all ends that were asked for were stored."""
        names = [f"eigenvectors_{end}" for end in ENDS if getattr(self, f"eigenvalues_{end}").size]
        with self.opened() as group:
            return all(name in group for name in names)

    @property
    def pairs_digest(self) -> str:
        """A hash of the eigenpairs' tables and of the checkpoint: what a study depends on."""
        return pairs_digest(self.checkpoint_digest, partial(getattr, self))

    @property
    def checkpoint_digest(self) -> str:
        """The hash of the checkpoint's parameters and buffers."""
        with self.opened() as group:
            return str(group.attrs["checkpoint_digest"])

    def eigenvector(self, end: str, rank: int) -> NDArray[np.float32]:
        """One eigenvector; the others are not read.

        Args:
            end: "largest" or "smallest".
            rank: From 1, the most extreme.

        Returns:
            (d,) float32, unit norm.

        Raises:
            ResultError: It was not stored, or its file is missing or damaged.
        """
        return self._read(f"eigenvectors_{end}", np.s_[rank - 1])

    def part(self, end: str, rank: int, parameter: str) -> NDArray[np.float32]:
        """What an eigenvector has of one parameter tensor; nothing else is read.

        Args:
            end: "largest" or "smallest".
            rank: From 1, the most extreme.
            parameter: The tensor's name, such as "conv1.weight".

        Returns:
            In the tensor's shape.

        Raises:
            KeyError: There is no such tensor.
        """
        tensors = {tensor.name: tensor for tensor in self.run.parameters}
        if parameter not in tensors:
            raise KeyError(f"no parameter '{parameter}'; there are {', '.join(tensors)}")
        tensor = tensors[parameter]
        inside = slice(tensor.offset, tensor.offset + math.prod(tensor.shape))
        entries: NDArray[np.float32] = self._read(f"eigenvectors_{end}", np.s_[rank - 1, inside])
        return entries.reshape(tensor.shape)

    def layer_shares(self, vector: NDArray[Any]) -> NDArray[np.float64]:
        """How much of a vector lies in each parameter tensor.

        Args:
            vector: (d,), such as a row of `eigenvectors_largest`.

        Returns:
            ‖v_layer‖² / ‖v‖² in the order of `run.parameters`; they add up to 1.
        """
        squares = vector.astype(np.float64) ** 2
        sums = np.add.reduceat(squares, [tensor.offset for tensor in self.run.parameters])
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / squares.sum())  # NaN for a vector that is zero

    @cached_property
    def gradient(self) -> NDArray[np.float64]:
        """The gradient of the loss, (d,)."""
        return self._read("gradient")

    def _read(self, name: str, rows: Any = ()) -> NDArray[Any]:
        with self.opened() as group:
            if name not in group:
                raise ResultError(
                    f"{self.run.path}: {name} of step {self.step} was not stored",
                    "run with spectrum.eigenvectors = true",
                )
            return group[name][rows]  # type: ignore[no-any-return]

    @contextmanager
    def opened(self) -> Iterator[h5py.Group]:
        """Open the checkpoint's arrays, in its own file or through the run's.

        Yields:
            The group, while its file is open.

        Raises:
            ResultError: The file is missing or damaged.
        """
        path, name = self.run.file_of(self.step)
        with ExitStack() as stack:
            try:
                _require_file(path)
                group = stack.enter_context(group_in(path, name))
            except (KeyError, OSError) as error:
                raise ResultError(
                    f"{path}: the file of step {self.step} is missing or damaged ({error})",
                    "keep the .checkpoints folder beside the run's file, or carry the result by "
                    "`hessdist pack`",
                ) from error
            yield group


class PartState(Enum):
    """What is found where the file of a checkpoint should be."""

    ABSENT = "absent"
    DAMAGED = "damaged"
    OTHER = "of another content of the checkpoint, or of an earlier version"
    UNCONVERGED = "unconverged"
    COMPLETE = "complete"


def part_state(part: Path, fingerprint: str, digest: str) -> PartState:
    """Look at a checkpoint's file, all its bytes included.

    Args:
        part: The file.
        fingerprint: Of the job.
        digest: Of the checkpoint's parameters.

    Returns:
        `COMPLETE` if its result can be taken over.

    Raises:
        ReadingError: It cannot be read now, which is no damage.
    """
    try:
        return patiently(partial(_state_of, part, fingerprint, digest), part)
    except FileNotFoundError:
        return PartState.ABSENT


def _state_of(part: Path, fingerprint: str, digest: str) -> PartState:
    if not is_intact(part):
        return PartState.DAMAGED
    try:
        with open_hdf5(part) as file:
            if not file.attrs.get("complete", False) or any(f.name not in file for f in TABLES):
                # What is sealed was written so, by an earlier version.
                sealed = seal.look(part) is not seal.Seal.NONE
                return PartState.OTHER if sealed else PartState.DAMAGED
            mine = (file.attrs.get("fingerprint"), file.attrs.get("checkpoint_digest"))
            if mine != (fingerprint, digest):
                return PartState.OTHER
            good = file["converged_largest"][()].all() and file["converged_smallest"][()].all()
            return PartState.COMPLETE if good else PartState.UNCONVERGED
    except (OSError, RuntimeError, ValueError) as error:
        if is_of_the_system(error):
            raise
        if seal.look(part) is seal.Seal.NONE:
            return PartState.DAMAGED
        raise ReadingError(
            f"{part} is as it was written, and HDF5 cannot read it ({error})",
            "use the version of HDF5 that wrote it, or move the file away",
        ) from error


def check_ours(file: h5py.File, path: Path) -> None:
    """Refuse a file that hessdist did not write, or a later version of it did.

    Args:
        file: The open file.
        path: Its path, for messages.

    Raises:
        ResultError: It is not ours to read.
    """
    if file.attrs.get("software") != SOFTWARE:
        raise ResultError(f"{path} is not a result of hessdist", "name the run's HDF5 file")
    version = int(file.attrs.get("schema_version", 0))
    if version > SCHEMA_VERSION:
        raise ResultError(
            f"{path} has schema version {version}, and this hessdist reads up to {SCHEMA_VERSION}",
            "update hessdist",
        )


def _parts_in(folder: Path, fingerprint: str | None) -> list[Path]:
    """Files of checkpoints of one job, by increasing step."""
    parts = sorted(folder.glob(f"step-*.{fingerprint or '*'}.h5"))
    jobs = {part.suffixes[-2].removeprefix(".") for part in parts if len(part.suffixes) > 1}
    if len(jobs) > 1:
        raise ResultError(
            f"{folder} has the files of several jobs ({', '.join(sorted(jobs))})",
            "name the run's HDF5 file, or say which: open_run(folder, fingerprint=...)",
        )
    if not parts:
        raise ResultError(f"{folder} has no file of a checkpoint", "name the run's HDF5 file")
    return parts


def _read_part(part: Path) -> tuple[dict[str, Any], list[ParameterTensor], dict[str, Any]]:
    """Attributes, parameters and tables of a checkpoint's file, all its bytes looked at."""
    with open_hdf5(part) as file:
        check_ours(file, part)
        attributes, parameters = dict(file.attrs), _parameters(file["parameters"])
    if not is_intact(part):
        raise ValueError("its bytes are not those that were written")
    return attributes, parameters, read_row(part)


def _open(path: Path) -> h5py.File:
    _require_file(path)
    try:
        return patiently(partial(open_hdf5, path), path)
    except OSError as error:
        raise _damaged(path, error) from error


def _require_file(path: Path) -> None:
    if patiently(path.is_file, path):
        return
    folder = path.with_suffix(".checkpoints")
    if any(folder.glob("step-*.h5")):
        raise ResultError(
            f"the result {path} does not exist",
            f"name the folder of its checkpoints' files instead, {folder}, or run `hessdist "
            "spectrum` again, which writes it from them",
        )
    raise ResultError(f"the result {path} does not exist", "run `hessdist spectrum` first")


def _unreadable(path: Path, error: Exception) -> ResultError:
    return reading_error(path, error) if is_of_the_system(error) else _damaged(path, error)


def _damaged(path: Path, error: Exception) -> ResultError:
    return ResultError(
        f"{path} is no HDF5 file, or damaged ({error})",
        "run `hessdist spectrum` again: it rebuilds the index from the files of the checkpoints",
    )


def _parameters(group: h5py.Group) -> list[ParameterTensor]:
    names, shapes = group["name"].asstr()[()], group["shape"].asstr()[()]
    return [
        ParameterTensor(name, tuple(int(n) for n in shape.split(",") if n), int(offset))
        for name, shape, offset in zip(names, shapes, group["offset"][()], strict=True)
    ]
