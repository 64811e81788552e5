"""Results of studies: named arrays, beside the eigenpairs in a run's HDF5 file.

A section of a study has one file for each checkpoint, or one in all, beside the files of the
checkpoints and written like them; the run's file holds a copy of every section in the group
`studies`, those of checkpoints stacked behind a dimension `step`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hessdist.errors import ResultError
from hessdist.results.files import parts_folder, replacing
from hessdist.results.opening import group_in, is_intact, open_hdf5, patiently
from hessdist.results.schema import ENDS, STEP, group_name

if TYPE_CHECKING:
    import xarray

# Measured on eigenvectors of a LeNet (docs/measured.md): bytes shuffled and deflated at level 1 are
# as small as at level 9 to a percent, and written several times faster.
COMPRESSION = {"shuffle": True, "compression": "gzip", "compression_opts": 1}

GROUP = "studies"
_PREFIX = "study-"
_COUNT = "number, from 1"  # of a dimension without a coordinate
_APART = "apart"  # an attribute of arrays that the run's file links to
_LINKS = "checkpoints"  # a group of a section: files with such arrays


@dataclass(frozen=True)
class Variable:
    """An array with names for its dimensions; one of its own dimension's name is a coordinate."""

    dimensions: tuple[str, ...]
    values: NDArray[Any]  # numbers, booleans, or text as objects
    long_name: str
    units: str = "1"
    apart: bool = False  # so large that the run's file only links to it


@dataclass(frozen=True)
class Measurements(Mapping[str, NDArray[Any]]):
    """One section of a study: arrays by name."""

    variables: Mapping[str, Variable]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[int, tuple[Path, str]] = field(default_factory=dict)
    """Where the arrays that are kept apart lie, by step: a file, and a group in it."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.variables[name].values

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)

    def to_xarray(self) -> xarray.Dataset:
        """The section as an `xarray.Dataset`, in memory."""
        import xarray

        described = {
            name: (v.dimensions, v.values, {"units": v.units, "long_name": v.long_name})
            for name, v in self.variables.items()
        }
        own = {name for name, v in self.variables.items() if v.dimensions == (name,)}
        return xarray.Dataset(
            {name: one for name, one in described.items() if name not in own},
            {name: one for name, one in described.items() if name in own},
            dict(self.attributes),
        )


# -- the files of a study --------------------------------------------------------------------


def unit_path(path: Path, section: str, step: int | None, fingerprint: str) -> Path:
    """The file of a section at one checkpoint, or of a section that is one for all.

    Args:
        path: The run's file.
        section: Its name.
        step: The checkpoint; None: for all.
        fingerprint: Of the run's job.

    Returns:
        The path.
    """
    where = "" if step is None else f".{group_name(step)}"
    return parts_folder(path) / f"{_PREFIX}{section}{where}.{fingerprint}.h5"


def units_of(folder: Path, fingerprint: str) -> dict[str, list[Path]]:
    """Files of a run's studies in its folder, by section and in the order of steps."""
    found: dict[str, list[Path]] = {}
    for unit in sorted(folder.glob(f"{_PREFIX}*.{fingerprint}.h5")):
        found.setdefault(unit.name.removeprefix(_PREFIX).split(".")[0], []).append(unit)
    return found


@dataclass(frozen=True)
class Digests:
    """What tells a checkpoint of a run from an earlier one of the same step."""

    checkpoint: str  # of its parameters
    pairs: str  # `pairs_digest`


def is_current(attributes: Mapping[str, Any], digests: Mapping[int, Digests]) -> bool:
    """Whether what a study has found is about the run's checkpoints as they are.

    Args:
        attributes: Of the section's file.
        digests: Of the run's checkpoints, by step.

    Returns:
        True for what is about no checkpoint, and for what depends on a checkpoint's parameters
        alone where the run has no eigenpairs of that step.
    """
    if "step" not in attributes:
        return True
    known = digests.get(int(attributes["step"]))
    if "checkpoint_digest" in attributes:
        return known is None or known.checkpoint in ("", attributes["checkpoint_digest"])
    return known is not None and attributes.get("pairs_digest") == known.pairs


def pairs_digest(checkpoint_digest: str, table: Callable[[str], NDArray[Any]]) -> str:
    """A hash of what the sections about a checkpoint depend on: it, its eigenvalues and residuals.

    Args:
        checkpoint_digest: Of its parameters.
        table: Its tables, by name.

    Returns:
        The hash.
    """
    digest = hashlib.sha256(checkpoint_digest.encode())
    for what, end in product(("eigenvalues", "residuals"), ENDS):
        digest.update(np.ascontiguousarray(table(f"{what}_{end}"), dtype="<f8").tobytes())
    return digest.hexdigest()


def drop_others(path: Path, fingerprint: str, section: str, settings: str) -> None:
    """Remove what was done of a section with other settings.

    Args:
        path: The run's file.
        fingerprint: Of its job.
        section: The section.
        settings: The hash of those that stay.
    """
    for unit in units_of(parts_folder(path), fingerprint).get(section, []):
        there = read_unit(unit)
        if there is not None and there.attributes["settings"] != settings:
            unit.unlink()


def write_unit(path: Path, section: Measurements, run: Mapping[str, Any], step: int | None) -> None:
    """Write a file so that a kill leaves it whole or as it was.

    Args:
        path: From `unit_path`.
        section: What is in it; its attributes say of what settings and checkpoint it is.
        run: Root attributes of the run's files.
        step: Of the checkpoint; None: of all.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing(path, sealed=True) as file:
        write_section(file, section)
        file.attrs.update(run)
        if step is not None:
            file.attrs["step"] = step
        file.attrs["complete"] = True


def read_unit(path: Path) -> Measurements | None:
    """Read a file of a study, all its bytes looked at.

    Args:
        path: The file.

    Returns:
        What is in it; None where it is absent or damaged.

    Raises:
        ReadingError: It cannot be read now.
    """

    def read() -> Measurements | None:
        status = path.stat()
        return _read_unit(path, (status.st_mtime_ns, status.st_size, status.st_ino))

    try:
        return patiently(read, path)
    except (OSError, KeyError, RuntimeError, ValueError):
        return None


@lru_cache(maxsize=4096)  # the index is written after every unit, from all of them
def _read_unit(path: Path, state: tuple[int, int, int]) -> Measurements | None:
    if not is_intact(path):
        return None
    with open_hdf5(path) as file:
        if not file.attrs.get("complete", False):
            return None
        section = read_section(file)
        kept_apart = any(_APART in dataset.attrs for dataset in file.values())
    links = {int(section.attributes["step"]): (path, "/")} if kept_apart else {}
    return Measurements(section.variables, section.attributes, links)


# -- groups ----------------------------------------------------------------------------------


def write_section(group: h5py.Group, section: Measurements) -> None:
    """Write arrays with their dimension scales into an empty group.

    Args:
        group: The group.
        section: Its content.
    """
    group.attrs.update(section.attributes)
    sizes: dict[str, int] = {}
    for variable in section.variables.values():
        sizes.update(zip(variable.dimensions, variable.values.shape, strict=True))
    for name, size in sizes.items():
        own = section.variables.get(name)
        values = np.arange(1, size + 1) if own is None else own.values
        scale = group.create_dataset(name, data=_storable(values))
        scale.make_scale(name)
        _describe(scale, own or Variable((name,), values, _COUNT))
    for name, variable in section.variables.items():
        if name in sizes:
            continue
        dataset = group.create_dataset(name, data=_storable(variable.values))
        _describe(dataset, variable)
        if variable.apart:
            dataset.attrs[_APART] = True
        for axis, dimension in enumerate(variable.dimensions):
            dataset.dims[axis].attach_scale(group[dimension])


def read_section(group: h5py.Group) -> Measurements:
    """Read what `write_section` has written.

    Args:
        group: The group.

    Returns:
        Its content, in memory, but for arrays that are kept apart.
    """
    variables = {}
    for name, dataset in group.items():
        if not isinstance(dataset, h5py.Dataset) or _APART in dataset.attrs:
            continue
        is_scale = h5py.h5ds.is_scale(dataset.id)
        if is_scale and dataset.attrs["long_name"] == _COUNT:
            continue
        dimensions = tuple(
            name if is_scale else scales[0].name.rsplit("/", 1)[-1] for scales in dataset.dims
        )
        text = h5py.check_string_dtype(dataset.dtype) is not None
        values = dataset.asstr()[()] if text else dataset[()]
        variables[name] = Variable(
            dimensions, np.asarray(values), dataset.attrs["long_name"], dataset.attrs["units"]
        )
    return Measurements(variables, dict(group.attrs))


def _storable(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(h5py.string_dtype()) if values.dtype.kind in "OU" else values


def _describe(dataset: h5py.Dataset, variable: Variable) -> None:
    dataset.attrs["units"], dataset.attrs["long_name"] = variable.units, variable.long_name


# -- the run's file --------------------------------------------------------------------------


def stacked(sections: Sequence[Measurements]) -> Measurements:
    """Sections of single checkpoints as one, with a dimension `step` in front.

    Coordinates that differ are joined: a checkpoint that lacks an entry has NaN there, no text, or
    False. Checkpoints of other settings than the last one are left out, and those whose arrays have
    other shapes all the same, as another version may have written them.

    Args:
        sections: With an attribute "step" each, increasing.

    Returns:
        The section.
    """
    last = sections[-1]
    alike = [s for s in sections if s.attributes.get("settings") == last.attributes.get("settings")]
    joined = _joined_coordinates([s for s in alike if _names(s) == _names(last)])
    alike = [_aligned(s, joined) for s in alike if _names(s) == _names(last)]
    last = alike[-1]
    alike = [s for s in alike if _shapes(s) == _shapes(last)]
    steps = np.array([s.attributes["step"] for s in alike], dtype=STEP.dtype)
    variables = {STEP.name: Variable(("step",), steps, STEP.long_name)}
    for name, variable in last.variables.items():
        if variable.dimensions == (name,):
            variables[name] = variable
        else:
            values = np.stack([s.variables[name].values for s in alike])
            variables[name] = Variable(
                ("step", *variable.dimensions), values, variable.long_name, variable.units
            )
    files = {step: place for s in alike for step, place in s.files.items()}
    return Measurements(variables, last.attributes, files)


def _names(section: Measurements) -> dict[str, tuple[str, ...]]:
    return {name: v.dimensions for name, v in section.variables.items()}


def _shapes(section: Measurements) -> dict[str, tuple[int, ...]]:
    return {name: v.values.shape for name, v in section.variables.items()}


def _joined_coordinates(sections: Sequence[Measurements]) -> dict[str, NDArray[Any]]:
    """Coordinates that are not the same in all sections: all entries, as they first appear."""
    joined = {}
    for name, dimensions in _names(sections[-1]).items():
        each = [section[name] for section in sections]
        if dimensions == (name,) and not all(np.array_equal(one, each[-1]) for one in each):
            entries = dict.fromkeys(entry for one in each for entry in one.tolist())
            joined[name] = np.array(list(entries), dtype=each[-1].dtype)
    return joined


def _aligned(section: Measurements, joined: Mapping[str, NDArray[Any]]) -> Measurements:
    """A section on coordinates that have more entries than its own."""
    places = {
        name: [whole.tolist().index(entry) for entry in section[name].tolist()]
        for name, whole in joined.items()
    }
    variables = dict(section.variables)
    for name, variable in section.variables.items():
        own = [axis for axis, dim in enumerate(variable.dimensions) if dim in joined]
        if name in joined:
            variables[name] = replace(variable, values=joined[name])
        elif own:
            values = variable.values
            for axis in own:
                dimension = variable.dimensions[axis]
                values = _spread(values, axis, places[dimension], len(joined[dimension]))
            variables[name] = replace(variable, values=values)
    return Measurements(variables, section.attributes, section.files)


def _spread(values: NDArray[Any], axis: int, places: Sequence[int], length: int) -> NDArray[Any]:
    """Values at places of a longer axis, and what says that there is none elsewhere."""
    filling = {"O": "", "U": "", "b": False}.get(values.dtype.kind, np.nan)
    dtype = np.result_type(values.dtype, float) if values.dtype.kind in "iu" else values.dtype
    shape = (*values.shape[:axis], length, *values.shape[axis + 1 :])
    spread = np.full(shape, filling, dtype=dtype)
    spread[(slice(None),) * axis + (list(places),)] = values
    return spread


def collect_studies(
    folder: Path, fingerprint: str, digests: Mapping[int, Digests]
) -> dict[str, Measurements]:
    """The sections of a run's studies, from their files.

    Args:
        folder: Of the files of the run's checkpoints.
        fingerprint: Of its job.
        digests: Of the run's checkpoints as they are, by step; what was found with others is left
            out.

    Returns:
        Sections by name.
    """
    found = {}
    for name, units in units_of(folder, fingerprint).items():
        read = [
            section
            for unit in units
            if (section := read_unit(unit)) is not None and is_current(section.attributes, digests)
        ]
        if read:
            whole = stacked(read) if "step" in read[-1].attributes else read[-1]
            kept = {name: whole.attributes[name] for name in ("settings", "created")}
            found[name] = Measurements(whole.variables, kept, whole.files)
    return found


def write_studies(
    index: h5py.File, studies: Mapping[str, Measurements], folder: Path | None = None
) -> None:
    """Write sections into a run's file.

    Args:
        index: The open file.
        studies: Sections by name.
        folder: Where the file is to be, for links to arrays that are kept apart; None: without.
    """
    for name, section in studies.items():
        group = index.require_group(GROUP).create_group(name)
        write_section(group, section)
        for step, (path, where) in section.files.items() if folder is not None else ():
            link = h5py.ExternalLink(os.path.relpath(path, folder), where)
            group.require_group(_LINKS)[group_name(step)] = link


def copy_apart(index: h5py.File, name: str, section: Measurements) -> None:
    """Copy the arrays that a section keeps apart, compressed, into a file with the section itself.

    Args:
        index: The open file.
        name: Of the section.
        section: The section.
    """
    for step, (path, where) in section.files.items():
        target = index.require_group(f"{GROUP}/{name}/{_LINKS}").create_group(group_name(step))
        with group_in(path, where) as source:
            for own, dataset in source.items():
                if _APART not in dataset.attrs:
                    continue
                copied = target.create_dataset(
                    own,
                    dataset.shape,
                    dataset.dtype,
                    chunks=(*(1,) * (dataset.ndim - 1), dataset.shape[-1]),
                    **COMPRESSION,
                )
                copied.attrs.update(dataset.attrs)
                for row in range(len(dataset)):
                    copied[row] = dataset[row]


def read_studies(file: h5py.File, where: Path) -> dict[str, Measurements]:
    """The sections of all studies in a run's file.

    Args:
        file: The open file.
        where: Its path, for messages.

    Returns:
        Sections by name; none where no study was run.

    Raises:
        ResultError: They are damaged.
    """
    try:
        return {name: _with_links(group, where) for name, group in file.get(GROUP, {}).items()}
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        raise ResultError(
            f"{where}: the results of its studies are damaged ({error})",
            "run `hessdist study` again",
        ) from error


def _with_links(group: h5py.Group, where: Path) -> Measurements:
    """A section, and where its arrays that are kept apart lie."""
    section = read_section(group)
    names = group.get(_LINKS, {})
    steps = {name: int(name.rsplit("-", 1)[-1]) for name in names}
    files = {step: (where, f"{group.name}/{_LINKS}/{name}") for name, step in steps.items()}
    return Measurements(section.variables, section.attributes, files)
