"""Measurements of studies: named arrays, stored with the eigenpairs in a run's HDF5 file.

The measurements of a study have one file for each checkpoint, or one file for the whole run, in the
folder of the checkpoints' files. The run's file holds a copy of all of them in the group `studies`,
where those of single checkpoints are stacked along a dimension `step`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hessdist.errors import HessdistError, UntrustedError
from hessdist.results.files import parts_folder, replacing
from hessdist.results.opening import group_in, is_intact, open_hdf5, with_retries
from hessdist.results.schema import ENDS, STEP, group_name
from hessdist.results.untrusted import REMEDY, CheckedGroup, File

if TYPE_CHECKING:
    import xarray

# Measured on eigenvectors of a LeNet (docs/measured.md): bytes shuffled and deflated at level 1 are
# as small as at level 9 to a percent, and written several times faster.
COMPRESSION = {"shuffle": True, "compression": "gzip", "compression_opts": 1}

GROUP = "studies"
_PREFIX = "study-"
_COUNT = "number, from 1"  # the long name of a dimension without a coordinate
_LINKED = "apart"  # the attribute of arrays that the run's file only links to
_LINKS = "checkpoints"  # the group of links to the files that have such arrays


@dataclass(frozen=True)
class Variable:
    """An array with named dimensions. If it has the name of its dimension, it is a coordinate."""

    dimensions: tuple[str, ...]
    values: NDArray[Any]  # numbers, booleans, or text as objects
    long_name: str
    units: str = "1"
    linked: bool = False  # so large that the run's file only links to it


@dataclass(frozen=True)
class Measurements(Mapping[str, NDArray[Any]]):
    """The measurements of a study: arrays by name."""

    variables: Mapping[str, Variable]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[int, tuple[Path, str]] = field(default_factory=dict)
    """The file and the group of the linked arrays, by step."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.variables[name].values

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    def to_xarray(self) -> xarray.Dataset:
        """Return the measurements as an `xarray.Dataset`, in memory."""
        import xarray

        described = {
            name: (v.dimensions, v.values, {"units": v.units, "long_name": v.long_name})
            for name, v in self.variables.items()
        }
        coordinates = {
            name: described.pop(name)
            for name, variable in self.variables.items()
            if variable.dimensions == (name,)
        }
        return xarray.Dataset(described, coordinates, dict(self.attributes))


# -- the files of a study --------------------------------------------------------------------


def unit_path(path: Path, study: str, step: int | None, fingerprint: str) -> Path:
    """Return the file of a study at one checkpoint, or of a study of the whole run.

    Args:
        path: The run's file.
        study: The name of the study.
        step: The step of the checkpoint; None for a study of the whole run.
        fingerprint: The fingerprint of the run's job.

    Returns:
        The path.
    """
    checkpoint = "" if step is None else f".{group_name(step)}"
    return parts_folder(path) / f"{_PREFIX}{study}{checkpoint}.{fingerprint}.h5"


def units_of(folder: Path, fingerprint: str) -> dict[str, list[Path]]:
    """Return the files of a run's studies, by name of the study and in the order of steps."""
    units: dict[str, list[Path]] = {}
    for unit in sorted(folder.glob(f"{_PREFIX}*.{fingerprint}.h5")):
        units.setdefault(unit.name.removeprefix(_PREFIX).split(".")[0], []).append(unit)
    return units


@dataclass(frozen=True)
class Digests:
    """Hashes that distinguish a checkpoint of a run from an earlier one of the same step."""

    checkpoint: str  # of the parameters
    pairs: str  # `pairs_digest`


def is_current(attributes: Mapping[str, Any], digests: Mapping[int, Digests]) -> bool:
    """Return whether measurements belong to the present checkpoints of the run.

    Args:
        attributes: The attributes of the measurements.
        digests: The digests of the run's checkpoints, by step.

    Returns:
        True also for measurements of no checkpoint, and for measurements that depend only on a
        checkpoint's parameters if the run has no eigenpairs of that step. Measurements that compare
        checkpoints belong to the eigenpairs of all of them.
    """
    if "step" not in attributes:
        return True
    known = digests.get(int(attributes["step"]))
    if "checkpoint_digest" in attributes:
        return known is None or known.checkpoint in ("", attributes["checkpoint_digest"])
    others = json.loads(attributes.get("compared", "{}"))  # of other steps, read besides
    there = {step: digests[int(step)].pairs for step in others if int(step) in digests}
    return known is not None and attributes.get("pairs_digest") == known.pairs and others == there


def pairs_digest(checkpoint_digest: str, table: Callable[[str], NDArray[Any]]) -> str:
    """Hash a checkpoint with its eigenvalues and residuals, on which its studies depend.

    Args:
        checkpoint_digest: The digest of the checkpoint's parameters.
        table: A function that returns a table of the checkpoint by name.

    Returns:
        The hash.
    """
    digest = hashlib.sha256(checkpoint_digest.encode())
    for quantity, end in product(("eigenvalues", "residuals"), ENDS):
        digest.update(np.ascontiguousarray(table(f"{quantity}_{end}"), dtype="<f8").tobytes())
    return digest.hexdigest()


def remove_outdated(path: Path, fingerprint: str, study: str, settings: str) -> None:
    """Remove the measurements that a study made with other settings.

    Args:
        path: The run's file.
        fingerprint: The fingerprint of its job.
        study: The name of the study.
        settings: The hash of the present settings.
    """
    for unit in units_of(parts_folder(path), fingerprint).get(study, []):
        stored = read_unit(unit)
        if stored is not None and stored.attributes["settings"] != settings:
            unit.unlink()


def write_unit(
    path: Path, measurements: Measurements, run: Mapping[str, Any], step: int | None
) -> None:
    """Write the file of measurements so that a kill leaves it whole or as it was.

    Args:
        path: The path of the file, from `unit_path`.
        measurements: The measurements; their attributes name the settings and the checkpoint.
        run: The root attributes of the run's files.
        step: The step of the checkpoint; None for measurements of the whole run.

    Raises:
        OutputError: The file cannot be written.
    """
    with replacing(path, sealed=True) as file:
        write_measurements(file, measurements)
        file.attrs.update(run)
        if step is not None:
            file.attrs["step"] = step
        file.attrs["complete"] = True


def read_unit(path: Path) -> Measurements | None:
    """Read a file of measurements, and check all its bytes.

    Args:
        path: The file.

    Returns:
        The measurements; None if the file is absent or damaged.

    Raises:
        ReadingError: The file cannot be read now.
    """

    def read() -> Measurements | None:
        status = path.stat()
        return _read_unit(path, (status.st_mtime_ns, status.st_size, status.st_ino))

    try:
        return with_retries(read, path)
    except (OSError, KeyError, RuntimeError, ValueError):
        return None


@lru_cache(maxsize=4096)  # the index is written after every unit, from all units
def _read_unit(path: Path, state: tuple[int, int, int]) -> Measurements | None:
    if not is_intact(path):
        return None
    with open_hdf5(path) as file:
        if not file.attrs.get("complete", False):
            return None
        measurements = read_measurements(file)
        has_linked = any(_LINKED in file[name].attrs for name in file.datasets())
    files = {int(measurements.attributes["step"]): (path, "/")} if has_linked else {}
    return replace(measurements, files=files)


# -- groups ----------------------------------------------------------------------------------


def write_measurements(group: h5py.Group, measurements: Measurements) -> None:
    """Write arrays with their dimension scales into an empty group.

    Args:
        group: The group.
        measurements: The measurements to write.
    """
    group.attrs.update(measurements.attributes)
    sizes: dict[str, int] = {}
    for variable in measurements.variables.values():
        sizes.update(zip(variable.dimensions, variable.values.shape, strict=True))
    for name, size in sizes.items():
        own = measurements.variables.get(name)
        values = np.arange(1, size + 1) if own is None else own.values
        scale = group.create_dataset(name, data=_storable(values))
        scale.make_scale(name)
        _describe(scale, own or Variable((name,), values, _COUNT))
    for name, variable in measurements.variables.items():
        if name in sizes:
            continue
        dataset = group.create_dataset(name, data=_storable(variable.values))
        _describe(dataset, variable)
        if variable.linked:
            dataset.attrs[_LINKED] = True
        for axis, dimension in enumerate(variable.dimensions):
            dataset.dims[axis].attach_scale(group[dimension])


def read_measurements(group: CheckedGroup) -> Measurements:
    """Read what `write_measurements` has written.

    Args:
        group: The group.

    Returns:
        The measurements, in memory, without their linked arrays.

    Raises:
        UntrustedError: They are not what hessdist writes.
    """
    variables = {}
    for name in group.datasets():
        dataset = group[name]
        attributes, is_scale = dataset.attrs, dataset.is_scale
        if _LINKED in attributes or (is_scale and attributes["long_name"] == _COUNT):
            continue
        dimensions = (name,) if is_scale else dataset.dimensions
        if len(dimensions) != dataset.ndim:
            raise UntrustedError(f"the dimensions of {group.name}/{name} are not named", REMEDY)
        long_name, units = str(attributes["long_name"]), str(attributes["units"])
        variables[name] = Variable(dimensions, np.asarray(dataset[()]), long_name, units)
    return Measurements(variables, group.attrs)


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(h5py.string_dtype()) if values.dtype.kind in "OU" else values


def _describe(dataset: h5py.Dataset, variable: Variable) -> None:
    dataset.attrs["units"], dataset.attrs["long_name"] = variable.units, variable.long_name


@contextmanager
def fitting(path: Path, study: str) -> Iterator[None]:
    """Take errors in this context for those of a study's arrays, whose shapes no schema says.

    Args:
        path: The run's file.
        study: The name of the study.

    Yields:
        Nothing.

    Raises:
        HessdistError: There was an error of another kind that hessdist foresees.
        UntrustedError: There was such an error.
    """
    try:
        yield
    except HessdistError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UntrustedError(
            f"{path}: the results of '{study}' do not fit together ({said})",
            "run `hessdist study --overwrite` again; --traceback says more",
        ) from error


# -- the run's file --------------------------------------------------------------------------


def stacked(checkpoints: Sequence[Measurements]) -> Measurements:
    """Stack the measurements of single checkpoints along a dimension `step`.

    Coordinates that differ are joined. A checkpoint that lacks an entry gets NaN, an empty text or
    False there. Checkpoints with other settings than the last one are left out, and so are those
    whose arrays have other shapes all the same, as another version may have written them.

    Args:
        checkpoints: The measurements of each, with an attribute "step", by increasing step.

    Returns:
        The measurements of all checkpoints.
    """
    last = checkpoints[-1]
    settings, names = last.attributes.get("settings"), _names(last)
    alike = [m for m in checkpoints if m.attributes.get("settings") == settings]
    alike = [m for m in alike if _names(m) == names]
    joined = _joined_coordinates(alike)
    alike = [_aligned(m, joined) for m in alike]
    last = alike[-1]
    alike = [m for m in alike if _shapes(m) == _shapes(last)]
    steps = np.array([m.attributes["step"] for m in alike], dtype=STEP.dtype)
    variables = {STEP.name: Variable(("step",), steps, STEP.long_name)}
    for name, variable in last.variables.items():
        if variable.dimensions == (name,):
            variables[name] = variable
        else:
            values = np.stack([m.variables[name].values for m in alike])
            variables[name] = Variable(
                ("step", *variable.dimensions), values, variable.long_name, variable.units
            )
    files = {step: place for m in alike for step, place in m.files.items()}
    return Measurements(variables, last.attributes, files)


def _names(measurements: Measurements) -> dict[str, tuple[str, ...]]:
    return {name: v.dimensions for name, v in measurements.variables.items()}


def _shapes(measurements: Measurements) -> dict[str, tuple[int, ...]]:
    return {name: v.values.shape for name, v in measurements.variables.items()}


def _joined_coordinates(checkpoints: Sequence[Measurements]) -> dict[str, NDArray[Any]]:
    """Return all entries, as they first appear, of coordinates that are not the same everywhere."""
    joined = {}
    for name, dimensions in _names(checkpoints[-1]).items():
        coordinates = [measurements[name] for measurements in checkpoints]
        last = coordinates[-1]
        if dimensions == (name,) and not all(np.array_equal(c, last) for c in coordinates):
            entries = dict.fromkeys(entry for c in coordinates for entry in c.tolist())
            joined[name] = np.array(list(entries), dtype=last.dtype)
    return joined


def _aligned(measurements: Measurements, joined: Mapping[str, NDArray[Any]]) -> Measurements:
    """Put measurements on coordinates that have more entries than their own."""
    places = {
        name: [whole.tolist().index(entry) for entry in measurements[name].tolist()]
        for name, whole in joined.items()
    }
    variables = dict(measurements.variables)
    for name, variable in measurements.variables.items():
        values = joined.get(name, variable.values)
        for axis, dimension in enumerate(variable.dimensions):
            if dimension in joined and name not in joined:
                values = _spread(values, axis, places[dimension], len(joined[dimension]))
        variables[name] = replace(variable, values=values)
    return replace(measurements, variables=variables)


def _spread(values: NDArray[Any], axis: int, places: Sequence[int], length: int) -> NDArray[Any]:
    """Put values at places of a longer axis, and the value for missing entries elsewhere."""
    filling = {"O": "", "U": "", "b": False}.get(values.dtype.kind, np.nan)
    dtype = np.result_type(values.dtype, float) if values.dtype.kind in "iu" else values.dtype
    shape = (*values.shape[:axis], length, *values.shape[axis + 1 :])
    spread = np.full(shape, filling, dtype=dtype)
    spread[(slice(None),) * axis + (list(places),)] = values
    return spread


def collect_studies(
    folder: Path, fingerprint: str, digests: Mapping[int, Digests]
) -> dict[str, Measurements]:
    """Read the measurements of a run's studies from their files.

    Args:
        folder: The folder of the files of the run's checkpoints.
        fingerprint: The fingerprint of the run's job.
        digests: The digests of the run's present checkpoints, by step. Measurements of other
            checkpoints are left out.

    Returns:
        The measurements by name of the study.
    """
    studies = {}
    for name, units in units_of(folder, fingerprint).items():
        with fitting(folder, name):
            read = [
                measurements
                for unit in units
                if (measurements := read_unit(unit)) is not None
                and is_current(measurements.attributes, digests)
            ]
            if read:
                whole = stacked(read) if "step" in read[-1].attributes else read[-1]
                kept = {name: whole.attributes[name] for name in ("settings", "created")}
                studies[name] = replace(whole, attributes=kept)
    return studies


def write_studies(
    index: h5py.File, studies: Mapping[str, Measurements], folder: Path | None = None
) -> None:
    """Write the measurements of studies into a run's file.

    Args:
        index: The open file.
        studies: The measurements by name of the study.
        folder: The folder of the finished file, for links to linked arrays; None: no links.
    """
    for name, measurements in studies.items():
        group = index.require_group(GROUP).create_group(name)
        write_measurements(group, measurements)
        for step, (path, source) in measurements.files.items() if folder is not None else ():
            link = h5py.ExternalLink(os.path.relpath(path, folder), source)
            group.require_group(_LINKS)[group_name(step)] = link


def copy_linked_arrays(index: h5py.File, name: str, measurements: Measurements) -> None:
    """Copy the linked arrays of a study, compressed, into a run's file.

    Args:
        index: The open file.
        name: The name of the study.
        measurements: The measurements of the study.
    """
    for step, (path, where) in measurements.files.items():
        target = index.require_group(f"{GROUP}/{name}/{_LINKS}").create_group(group_name(step))
        with group_in(path, where) as source:
            for array in source.datasets():
                dataset = source[array]
                if _LINKED not in dataset.attrs:
                    continue
                copied = target.create_dataset(
                    array,
                    dataset.shape,
                    dataset.dtype,
                    chunks=(*(1,) * (dataset.ndim - 1), dataset.shape[-1]),
                    **COMPRESSION,
                )
                copied.attrs.update(dataset.attrs)
                for row in range(len(dataset)):
                    copied[row] = dataset[row]


def read_studies(file: File, path: Path) -> dict[str, Measurements]:
    """Read the measurements of all studies in a run's file.

    Args:
        file: The open file.
        path: The path of the file.

    Returns:
        The measurements by name of the study; empty if no study was run.

    Raises:
        UntrustedError: They are not what hessdist writes.
    """
    studies = file.group(GROUP) if GROUP in file else ()
    read = {}
    for name in studies:
        with fitting(path, name):
            read[name] = _with_links(file.group(f"{GROUP}/{name}"), path)
    return read


def _with_links(group: CheckedGroup, path: Path) -> Measurements:
    """Read measurements, with the places of their linked arrays."""
    files = {
        int(name.rsplit("-", 1)[-1]): (path, f"{group.name}/{_LINKS}/{name}")
        for name in (group.group(_LINKS) if _LINKS in group else ())
    }
    return replace(read_measurements(group), files=files)
