"""The formats of `hessdist export`, each with the library that writes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hessdist.errors import InputError, OutputError
from hessdist.export.table_files import write_csv, write_parquet
from hessdist.export.tensorboard import write_tensorboard
from hessdist.export.trackers import write_mlflow, write_wandb
from hessdist.workload.optional import import_library

if TYPE_CHECKING:
    from hessdist.config.job import Job
    from hessdist.results.reader import Run

Writer = Callable[["Run", "Job", Path, str], Iterator[Path]]


@dataclass(frozen=True)
class Format:
    """A format: the function that writes it, and the library that it needs."""

    write: Writer
    library: str = ""
    extra: str = ""  # of hessdist, which installs the library
    environment: tuple[tuple[str, str], ...] = ()  # variables that the library reads, where unset


FORMATS = {
    "csv": Format(write_csv),
    "parquet": Format(write_parquet, "pyarrow", "parquet"),
    "tensorboard": Format(write_tensorboard, "tensorboard", "tensorboard"),
    "wandb": Format(write_wandb, "wandb", environment=(("WANDB_ERROR_REPORTING", "false"),)),
    "mlflow": Format(
        write_mlflow,
        "mlflow",
        environment=(
            ("MLFLOW_ALLOW_FILE_STORE", "true"),  # newer versions ask for it
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ),
    ),
}
"""The formats by name."""


def export(
    run: Run, job: Job, folder: Path, formats: Sequence[str], option: str = "--to"
) -> Iterator[Path]:
    """Write a run in other formats.

    Args:
        run: The run.
        job: Its job.
        folder: The folder for all files; it is made if it is missing.
        formats: Names of `FORMATS`.
        option: The option that names the folder, for messages.

    Yields:
        The path of each file that was written.

    Raises:
        InputError: There is no such format, or its library is missing. Nothing is written then.
        OutputError: A file cannot be written, or another file has its name.
    """
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"results have no format '{name}'", f"use {', '.join(FORMATS)}")
        for variable, value in FORMATS[name].environment:
            os.environ.setdefault(variable, value)
        if FORMATS[name].library:
            import_library(FORMATS[name].library, FORMATS[name].extra)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is no folder", f"name a folder by {option}")
    for name in dict.fromkeys(formats):
        yield from FORMATS[name].write(run, job, folder, option)
