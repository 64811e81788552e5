"""Reading results with h5py and NumPy only, so without MPI, PETSc and torch."""

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

import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ReadingError, ResultError, UntrustedError
from hessdist.printable import printable
from hessdist.results import seal
from hessdist.results.contents import (
    ParameterTensor,
    check_ours,
    read_attributes,
    read_parameters,
    read_steps,
    read_tables,
    require_field,
)
from hessdist.results.opening import (
    group_in,
    is_intact,
    open_hdf5,
    reading_error,
    with_retries,
)
from hessdist.results.parts import column, read_row, sizes_of
from hessdist.results.schema import ENDS, STEP, TABLES, VECTORS, Field, group_name
from hessdist.results.units import (
    Measurements,
    collect_studies,
    pairs_digest,
    read_studies,
)
from hessdist.results.untrusted import CheckedGroup, Dataset, File, is_system_error, require_regular

if TYPE_CHECKING:
    import pandas as pd
    import xarray

_log = logging.getLogger("hessdist")


def open_run(path: str | Path, fingerprint: str | None = None) -> Run:
    """Open the result of a run.

    The small tables are read at once and the file is closed again. Eigenvectors are read on
    demand. A sweep may still be writing: open the run again to see newer checkpoints.

    Args:
        path: The run's HDF5 file, or the folder of its checkpoints' files. A damaged file in such
            a folder is left out and named in a warning and in `Run.damaged`.
        fingerprint: The fingerprint of the job, for a folder that has the files of several jobs.

    Returns:
        The run.

    Raises:
        ResultError: The file is missing, damaged, of a newer schema, or not one of ours.
    """
    return Run(Path(path), fingerprint)


class Run:
    """All checkpoints of a run; arrays have one row for each checkpoint, by increasing step.

    Args:
        path: The run's HDF5 file, or the folder of its checkpoints' files.
        fingerprint: The fingerprint of the job, for a folder that has the files of several jobs.

    Raises:
        ResultError: The file is missing, damaged, of a newer schema, or not one of ours.
    """

    attributes: dict[str, Any]
    parameters: list[ParameterTensor]
    damaged: dict[str, str]
    """The reasons why files of checkpoints were left out, by file name."""
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
    stability_bound: NDArray[np.float64]  # (S,) on the largest eigenvalue; NaN: unknown

    def __init__(self, path: Path, fingerprint: str | None = None) -> None:
        self.path, self.damaged = path, {}
        self._files: dict[int, Path] = {}  # of the checkpoints, if the path is a folder
        if path.is_dir():
            self._read_folder(fingerprint)
        else:
            self._read_index()

    def _read_index(self) -> None:
        with _open(self.path) as file:
            check_ours(file, self.path)
            try:
                self.attributes = read_attributes(file, self.path)
                self.steps = read_steps(file, self.path)
                row = read_tables(file, self.path, self.steps.shape)
                self.parameters = read_parameters(file, self.path, self.attributes)
                sizes = {end: row[f"eigenvalues_{end}"].shape[1] for end in ENDS}
            except (IndexError, KeyError, OSError, RuntimeError, ValueError) as error:
                raise _unreadable(self.path, error) from error
        for field in TABLES:  # an earlier version may not have written all tables
            absent = column(field, [{}] * len(self.steps), sizes)
            setattr(self, field.name, row.get(field.name, absent))

    def _read_folder(self, fingerprint: str | None) -> None:
        rows: list[dict[str, Any]] = []
        for part in _parts_in(self.path, fingerprint):
            try:
                attributes, parameters, row = with_retries(partial(_read_part, part), part)
                rows.append(row)
            except ReadingError:
                raise
            except (ResultError, KeyError, OSError, RuntimeError, ValueError) as error:
                self.damaged[part.name] = str(error)
                _log.warning("%s is damaged and left out: %s", printable(part), printable(error))
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
    def metric(self) -> str:
        """The metric of the eigenpairs: none, optimizer or diagonal."""
        return str(self.attributes.get("metric", "none"))

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
        """The divisor of the sum of losses: N, the number of labels, or a sum of class weights."""
        return float(self.attributes.get("weight", self.num_samples))

    @property
    def samples(self) -> str:
        """The number of samples as text, with their weight where it is another number."""
        if self.weight == self.num_samples:
            return f"{self.num_samples:,} samples"
        return f"{self.num_samples:,} samples of weight {self.weight:,.10g}"

    @cached_property
    def studies(self) -> dict[str, Measurements]:
        """The measurements of `hessdist study`, by name of the study."""
        if self._files:
            return collect_studies(self.path, self.fingerprint, self._digests)
        with _open(self.path) as file:
            return read_studies(file, self.path)

    def study_array(self, study: str, name: str, step: int) -> NDArray[Any]:
        """Read an array that is so large that the run's file only links to it.

        Args:
            study: The name of the study, such as "exact".
            name: The name of the array, such as "eigenvectors".
            step: The step of the checkpoint.

        Returns:
            The array.

        Raises:
            ResultError: It was not stored, or its file is missing or damaged.
            UntrustedError: It is not what hessdist writes.
        """
        try:
            file, where = self.studies[study].files[step]
            with group_in(file, where) as group:
                return np.asarray(group[name][()])
        except UntrustedError:
            raise
        except (KeyError, OSError, RuntimeError) as error:
            raise ResultError(
                f"{self.path}: no array '{name}' of the study '{study}' at step {step} ({error})",
                "store it by the study's settings, and keep the .checkpoints folder with the file",
            ) from error

    def file_of(self, step: int) -> tuple[Path, str]:
        """Return the file and the group of a checkpoint's arrays.

        Args:
            step: The step.

        Returns:
            The HDF5 file and the name of the group in it.
        """
        if step in self._files:
            return self._files[step], "/"
        return self.path, f"checkpoints/{group_name(step)}"

    def __len__(self) -> int:
        """The number of checkpoints, S."""
        return len(self.steps)

    def __getitem__(self, step: int) -> CheckpointResult:
        """Return the result at a training step.

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
        """Return the tables as an `xarray.Dataset` with dimensions step, largest, smallest.

        Returns:
            The data set, in memory.
        """
        import xarray

        variables = {
            field.name: (
                ("step", *field.dimensions),
                getattr(self, field.name),
                {"units": field.units, "long_name": field.meaning(self.metric)},
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
        """Return all eigenpairs as a table with one row for each pair.

        Returns:
            The columns step, end ("largest" or "smallest"), rank (from 1), eigenvalue, residual,
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


@dataclass(frozen=True, eq=False)
class CheckpointResult:
    """One checkpoint of a run; large arrays are read on demand.

    The tables (`loss`, `eigenvalues_largest`, ...) are attributes like those of the run, without
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
        """The eigenvectors of `eigenvalues_largest` in its order, (k, d) float32, unit norm."""
        return self._read("eigenvectors_largest")

    @cached_property
    def eigenvectors_smallest(self) -> NDArray[np.float32]:
        """The eigenvectors of `eigenvalues_smallest` in its order, (m, d) float32, unit norm."""
        return self._read("eigenvectors_smallest")

    @property
    def has_eigenvectors(self) -> bool:
        """Return whether the eigenvectors of all computed ends were stored."""
        names = [f"eigenvectors_{end}" for end in ENDS if getattr(self, f"eigenvalues_{end}").size]
        with self.opened() as group:
            return all(name in group for name in names)

    @property
    def metric_digest(self) -> str:
        """The hash of the metric of the eigenpairs; empty without one."""
        with self.opened() as group:
            return str(group.attrs.get("metric_digest", ""))

    @property
    def pairs_digest(self) -> str:
        """The hash of the checkpoint and its eigenpairs, on which studies depend."""
        return pairs_digest(self.checkpoint_digest, partial(getattr, self))

    @property
    def checkpoint_digest(self) -> str:
        """The hash of the checkpoint's parameters and buffers."""
        with self.opened() as group:
            return str(group.attrs["checkpoint_digest"])

    @property
    def product_error(self) -> float:
        """The measured relative error of products by finite differences; 0 for exact ones."""
        with self.opened() as group:
            return float(group.attrs.get("product_error", 0.0))

    def eigenvector(self, end: str, rank: int, entries: slice = slice(None)) -> NDArray[np.float32]:
        """Read one eigenvector; the others are not read.

        Args:
            end: "largest" or "smallest".
            rank: The rank of the eigenvalue; 1 is the most extreme.
            entries: The entries to read; by default all.

        Returns:
            (d,) float32, unit norm, or the entries.

        Raises:
            ResultError: It was not stored, or its file is missing or damaged.
        """
        return self._read(f"eigenvectors_{end}", (self._place(end, rank), entries))

    def part(self, end: str, rank: int, parameter: str) -> NDArray[np.float32]:
        """Read the entries of an eigenvector that belong to one parameter tensor.

        Args:
            end: "largest" or "smallest".
            rank: The rank of the eigenvalue; 1 is the most extreme.
            parameter: The tensor's name, such as "conv1.weight".

        Returns:
            The entries, in the tensor's shape.

        Raises:
            KeyError: There is no such tensor.
        """
        tensors = {tensor.name: tensor for tensor in self.run.parameters}
        if parameter not in tensors:
            raise KeyError(f"no parameter '{parameter}'; there are {', '.join(tensors)}")
        tensor = tensors[parameter]
        inside = slice(tensor.offset, tensor.offset + math.prod(tensor.shape))
        entries: NDArray[np.float32] = self._read(
            f"eigenvectors_{end}", np.s_[self._place(end, rank), inside]
        )
        return entries.reshape(tensor.shape)

    def layer_shares(self, vector: NDArray[Any]) -> NDArray[np.float64]:
        """Return the shares of a vector's squared norm in the parameter tensors.

        Args:
            vector: The vector, (d,), such as a row of `eigenvectors_largest`.

        Returns:
            ‖v_layer‖² / ‖v‖² in the order of `run.parameters`; they add up to 1.
        """
        squares, tensors = vector.astype(np.float64) ** 2, self.run.parameters
        some = np.array([math.prod(tensor.shape) > 0 for tensor in tensors])  # reduceat needs one
        sums = np.zeros(len(tensors))
        sums[some] = np.add.reduceat(squares, np.array([tensor.offset for tensor in tensors])[some])
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
            (field,) = (field for field in VECTORS if field.name == name)
            return self.array(group, field)[rows]  # type: ignore[no-any-return]

    def array(self, group: CheckedGroup, field: Field) -> Dataset:
        """Open an array of the checkpoint, and check its type and shape.

        Args:
            group: The group, from `opened`.
            field: What the schema says of the array.

        Returns:
            The array, of which nothing is read yet.

        Raises:
            UntrustedError: It is not as the schema says.
        """
        sizes = {end: len(getattr(self, f"eigenvalues_{end}")) for end in ENDS}
        sizes["parameter"] = self.run.num_parameters
        dataset = group[field.name]
        require_field(dataset, field, sizes, f"{self.run.path}: {field.name} of step {self.step}")
        return dataset

    def _place(self, end: str, rank: int) -> int:
        count = len(getattr(self, f"eigenvalues_{end}"))
        if not 1 <= rank <= count:
            raise IndexError(f"no rank {rank}; there are 1 to {count}")
        return rank - 1

    @contextmanager
    def opened(self) -> Iterator[CheckedGroup]:
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
                    "keep the .checkpoints folder with the run's file, or carry the result by "
                    "`hessdist pack`",
                ) from error
            yield group


class PartState(Enum):
    """The state of the file of a checkpoint."""

    ABSENT = "absent"
    DAMAGED = "damaged"
    OTHER = "of another content of the checkpoint, or of an earlier version"
    UNCONVERGED = "unconverged"
    COMPLETE = "complete"


def part_state(part: Path, fingerprint: str, digest: str, metric_digest: str = "") -> PartState:
    """Check a checkpoint's file, including all its bytes.

    Args:
        part: The file.
        fingerprint: The fingerprint of the job.
        digest: The digest of the checkpoint's parameters.
        metric_digest: The digest of the metric; "" without one.

    Returns:
        The state; `COMPLETE` if the result can be used again.

    Raises:
        ReadingError: The file cannot be read now, which does not mean that it is damaged.
    """
    try:
        return with_retries(partial(_state_of, part, (fingerprint, digest, metric_digest)), part)
    except FileNotFoundError:
        return PartState.ABSENT


def _state_of(part: Path, wanted: tuple[str, str, str]) -> PartState:
    if not is_intact(part):
        return PartState.DAMAGED
    try:
        with open_hdf5(part) as file:
            attributes = file.attrs
            if not attributes.get("complete", False) or any(
                f.name not in file for f in TABLES if not f.optional
            ):
                # A sealed file is not damaged: an earlier version wrote it like this.
                sealed = seal.check(part) is not seal.Seal.NONE
                return PartState.OTHER if sealed else PartState.DAMAGED
            names = ("fingerprint", "checkpoint_digest", "metric_digest")
            if tuple(attributes.get(name, "") for name in names) != wanted:
                return PartState.OTHER
            converged = all(file[f"converged_{end}"][()].all() for end in ENDS)
            return PartState.COMPLETE if converged else PartState.UNCONVERGED
    except (OSError, RuntimeError, ValueError) as error:
        if is_system_error(error):
            raise
        if seal.check(part) is seal.Seal.NONE:
            return PartState.DAMAGED
        raise ReadingError(
            f"{part} is intact, but HDF5 cannot read it ({error})",
            "use the version of HDF5 that wrote it, or move the file away",
        ) from error


def _parts_in(folder: Path, fingerprint: str | None) -> list[Path]:
    """Return the files of the checkpoints of one job, by increasing step."""
    parts = sorted(folder.glob(f"step-*.{fingerprint or '*'}.h5"))
    jobs = {part.suffixes[-2].removeprefix(".") for part in parts if len(part.suffixes) > 1}
    if len(jobs) > 1:
        raise ResultError(
            f"{folder} has the files of several jobs ({', '.join(sorted(jobs))})",
            "name the run's HDF5 file, or choose a job: open_run(folder, fingerprint=...)",
        )
    if not parts:
        raise ResultError(f"{folder} has no file of a checkpoint", "name the run's HDF5 file")
    return parts


def _read_part(part: Path) -> tuple[dict[str, Any], list[ParameterTensor], dict[str, Any]]:
    """Read attributes, parameters and tables of a checkpoint's file, and check its bytes."""
    with open_hdf5(part) as file:
        check_ours(file, part)
        attributes = read_attributes(file, part)
        parameters = read_parameters(file, part, attributes)
    if not is_intact(part):
        raise ValueError("its bytes are not those that were written")
    row = read_row(part)
    if not part.name.startswith(f"{group_name(row[STEP.name])}."):
        raise ValueError(f"it is of step {row[STEP.name]}")
    return attributes, parameters, row


def _open(path: Path) -> File:
    _require_file(path)
    try:
        return with_retries(partial(open_hdf5, path), path)
    except OSError as error:
        raise _damaged(path, error) from error


def _require_file(path: Path) -> None:
    if with_retries(path.is_file, path):
        return
    if path.exists() and not path.is_dir():
        require_regular(path)
    folder = path.with_suffix(".checkpoints")
    if any(folder.glob("step-*.h5")):
        raise ResultError(
            f"the result {path} does not exist",
            f"name the folder of its checkpoints' files, {folder}, or run `hessdist "
            "spectrum` again, which rebuilds it",
        )
    raise ResultError(f"the result {path} does not exist", "run `hessdist spectrum` first")


def _unreadable(path: Path, error: Exception) -> ResultError:
    if isinstance(error, ResultError):
        return error
    return reading_error(path, error) if is_system_error(error) else _damaged(path, error)


def _damaged(path: Path, error: Exception) -> ResultError:
    return ResultError(
        f"{path} is no HDF5 file, or damaged ({error})",
        "run `hessdist spectrum` again: it rebuilds the index from the files of the checkpoints",
    )
