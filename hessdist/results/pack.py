"""Packing a run into one file without external links, such as to carry it to a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from hessdist.results.files import replacing
from hessdist.results.outputs import Kind, require_output
from hessdist.results.reader import CheckpointResult, Run
from hessdist.results.schema import TABLES, VECTORS, group_name
from hessdist.results.units import COMPRESSION, copy_linked_arrays, write_studies
from hessdist.results.untrusted import CheckedGroup
from hessdist.results.writer import make_dimension, write_parameters, write_tables


def pack(run: Run, path: Path, eigenvectors: bool = True) -> None:
    """Write a run with everything that belongs to it into one file.

    It is read by `open_run`, h5py and xarray as the run's own file is; eigenvectors and gradients
    are compressed. Only one vector is in memory at a time.

    Args:
        run: The result.
        path: The path of the packed file.
        eigenvectors: Whether to include eigenvectors and gradients; tables and studies always are.

    Raises:
        OutputError: The file cannot be written, or it would overwrite a file that is no packed
            result, or the result itself.
        ResultError: A checkpoint's file is missing or damaged.
    """
    require_output(path, Kind.PACK, [run.path], "-o")
    with replacing(path) as file:
        file.attrs.update(run.attributes)
        file.attrs["packed"] = True
        write_tables(file, run.steps, {field.name: getattr(run, field.name) for field in TABLES})
        write_parameters(
            file,
            [tensor.name for tensor in run.parameters],
            [",".join(map(str, tensor.shape)) for tensor in run.parameters],
            [tensor.offset for tensor in run.parameters],
        )
        if eigenvectors:
            make_dimension(file, "parameter", run.num_parameters)
        group = file.create_group("checkpoints")
        for step in map(int, run.steps):
            with run[step].opened() as source:
                _copy(run[step], source, group.create_group(group_name(step)), file, eigenvectors)
        write_studies(file, run.studies)
        for name, measurements in run.studies.items() if eigenvectors else ():
            copy_linked_arrays(file, name, measurements)


def _copy(
    result: CheckpointResult,
    source: CheckedGroup,
    target: h5py.Group,
    file: h5py.File,
    eigenvectors: bool,
) -> None:
    """Copy the arrays of a checkpoint, with the dimension scales of the packed file."""
    for name, value in source.attrs.items():
        if name not in file.attrs and name != "complete":  # what describes the run is there once
            target.attrs[name] = value
    for field in (*TABLES, *(VECTORS if eigenvectors else ())):
        if field.name not in source:
            continue
        dataset = result.array(source, field)
        vectors = "parameter" in field.dimensions
        options: dict[str, Any] = dict(COMPRESSION) if vectors else {}
        if vectors:
            options["chunks"] = (*(1,) * (dataset.ndim - 1), min(dataset.shape[-1], 1 << 18))
        copied = target.create_dataset(field.name, dataset.shape, dataset.dtype, **options)
        for row in range(dataset.shape[0]) if dataset.ndim == 2 else [()]:
            copied[row] = dataset[row]
        copied.attrs["units"] = field.units
        copied.attrs["long_name"] = field.meaning(str(file.attrs.get("metric", "none")))
        for axis, dimension in enumerate(field.dimensions):
            if dimension in file:
                copied.dims[axis].attach_scale(file[dimension])
