"""Tables as files: CSV by the standard library, Parquet by pyarrow."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.export.points import folder_name
from hessdist.export.tables import Table, tables_of
from hessdist.results.files import write_bytes
from hessdist.results.outputs import EXPORT_WRITER, Kind, require_output
from hessdist.workload.optional import import_library

if TYPE_CHECKING:
    from hessdist.config.job import Job
    from hessdist.results.reader import Run


def write_csv(run: Run, job: Job, folder: Path, option: str) -> Iterator[Path]:
    """Write all tables of a run as RUN-TABLE.csv.

    Args:
        run: The run.
        job: Its job.
        folder: The folder for all files.
        option: The option that names the folder, for messages.

    Yields:
        The path of each file.

    Raises:
        OutputError: A file cannot be written, or another file has its name.
    """
    yield from _write(run, job, folder, option, Kind.CSV, csv_of)


def write_parquet(run: Run, job: Job, folder: Path, option: str) -> Iterator[Path]:
    """Write all tables of a run as RUN-TABLE.parquet.

    Args:
        run: The run.
        job: Its job.
        folder: The folder for all files.
        option: The option that names the folder, for messages.

    Yields:
        The path of each file.

    Raises:
        DependencyError: pyarrow cannot be imported.
        OutputError: A file cannot be written, or another file has its name.
    """
    pyarrow = import_library("pyarrow", "parquet")
    parquet = import_library("pyarrow.parquet", "parquet")

    def parquet_of(table: Table) -> bytes:
        columns = {name: pyarrow.array(values) for name, values in table.columns.items()}
        content = pyarrow.table(columns).replace_schema_metadata({"software": EXPORT_WRITER})
        output = io.BytesIO()
        parquet.write_table(content, output)
        return output.getvalue()

    yield from _write(run, job, folder, option, Kind.PARQUET, parquet_of)


def csv_of(table: Table) -> bytes:
    """Return a table as CSV in UTF-8: floats with all their digits, NaN as an empty cell."""
    output = io.StringIO(newline="")
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(zip(*map(_cells, table.columns.values()), strict=True))
    return output.getvalue().encode()


def _cells(values: np.ndarray[Any, Any]) -> list[Any]:
    if values.dtype.kind != "f":
        return list(values.tolist())
    return ["" if np.isnan(value) else value for value in values.tolist()]


def _write(
    run: Run, job: Job, folder: Path, option: str, kind: Kind, content: Callable[[Table], bytes]
) -> Iterator[Path]:
    """Check the names of all files before the first one is written."""
    tables = list(tables_of(run, job))
    stem, suffix = folder_name(run.path), kind.name.lower()
    paths = [folder / f"{stem}-{table.name}.{suffix}" for table in tables]
    for path in paths:
        require_output(path, kind, [run.path], option)
    for path, table in zip(paths, tables, strict=True):
        write_bytes(path, content(table), option)
        yield path
