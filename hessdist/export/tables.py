"""The tables of a result, one row a value, with the columns that say what the value is of.

Every table begins with the name and the fingerprint of the job, so that tables of several results
can be put together, and a file of ours is known by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hessdist.config.studies import registry
from hessdist.errors import UntrustedError
from hessdist.present.labels import file_part
from hessdist.printable import printable
from hessdist.results.outputs import TABLE_COLUMNS
from hessdist.results.schema import ENDS, STEP, TABLES
from hessdist.results.units import Measurements, fitting

if TYPE_CHECKING:
    from hessdist.config.job import Job
    from hessdist.results.reader import Run


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of the same length, by name: numbers, booleans, or text as objects."""

    name: str  # as a part of a file's name
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values())))


def tables_of(run: Run, job: Job) -> Iterator[Table]:
    """Yield all tables of a run: of the run, of its checkpoints, of its pairs, and of its studies.

    Args:
        run: The run.
        job: Its job.

    Yields:
        The tables. Arrays of a study that have the same dimensions are columns of one table.

    Raises:
        UntrustedError: The arrays of a study do not fit together.
    """
    names = set()
    for name, columns in _columns(run, job):
        if name in names:
            raise UntrustedError(
                f"{run.path}: two tables would be called '{name}'",
                "run `hessdist study --overwrite` again",
            )
        names.add(name)
        length = len(next(iter(columns.values())))
        whose = (job.name, run.fingerprint)
        first = {
            column: np.full(length, value, dtype=object)
            for column, value in zip(TABLE_COLUMNS, whose, strict=True)
        }
        table = {printable(column): _plain(values) for column, values in columns.items()}
        yield Table(name, {**{key: _plain(values) for key, values in first.items()}, **table})


def _columns(run: Run, job: Job) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    yield "result", _of_result(run, job)
    yield "checkpoints", _of_checkpoints(run)
    yield "eigenvalues", _of_pairs(run)
    for name in registry():
        if name in run.studies:
            with fitting(run.path, name):
                yield from _of_study(name, run.studies[name])


def _of_result(run: Run, job: Job) -> dict[str, NDArray[Any]]:
    """Return one row that says what the result is of."""
    facts = {
        "operator": job.spectrum.operator,
        "metric": run.metric,
        "checkpoints": len(run),
        "num_parameters": run.num_parameters,
        "num_samples": run.num_samples,
        "weight": run.weight,
        "ranks": int(run.attributes["ranks"]),
        "created": str(run.attributes.get("created", "")),
    }
    versions = sorted(name for name in run.attributes if name.endswith("_version"))
    facts |= {name: str(run.attributes[name]) for name in versions}
    return {
        name: np.array([fact], dtype=object if isinstance(fact, str) else None)
        for name, fact in facts.items()
    }


def _of_checkpoints(run: Run) -> dict[str, NDArray[Any]]:
    """Return a row for each checkpoint."""
    single = [field.name for field in TABLES if not field.dimensions]
    return {STEP.name: run.steps, **{name: getattr(run, name) for name in single}}


def _of_pairs(run: Run) -> dict[str, NDArray[Any]]:
    """Return a row for each eigenpair, by step, end and rank."""
    counts = [getattr(run, f"eigenvalues_{end}").shape[1] for end in ENDS]
    names = np.repeat(np.array(ENDS, dtype=object), counts)
    ranks = np.concatenate([np.arange(1, count + 1) for count in counts])
    rows = {
        STEP.name: np.repeat(run.steps, sum(counts)),
        "end": np.tile(names, len(run)),
        "rank": np.tile(ranks, len(run)),
    }
    for column, table in (
        ("eigenvalue", "eigenvalues"),
        ("residual", "residuals"),
        ("converged", "converged"),
    ):
        both = np.concatenate([getattr(run, f"{table}_{end}") for end in ENDS], axis=1)
        rows[column] = both.ravel()
    return rows


def _of_study(name: str, measured: Measurements) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Yield a table for all arrays of a study with the same dimensions."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for variable, content in measured.variables.items():
        if content.dimensions != (variable,):
            groups.setdefault(content.dimensions, []).append(variable)
    for dimensions, variables in groups.items():
        shape = measured[variables[0]].shape
        grid = np.indices(shape).reshape(len(shape), math.prod(shape))
        columns = {
            dimension: measured[dimension][places] if dimension in measured else places + 1
            for dimension, places in zip(dimensions, grid, strict=True)
        }
        if clash := set(columns) & {*variables, *TABLE_COLUMNS}:
            raise ValueError(f"the dimension {min(clash)} is an array of others")
        columns |= {variable: measured[variable].reshape(-1) for variable in variables}
        by = "-".join(dimensions)
        yield file_part(f"{name}-by-{by}" if by else name), columns


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return text in which nothing controls a terminal, or is a formula of a spreadsheet."""
    if values.dtype.kind not in "OSU":
        return values
    return np.array([_text(value) for value in values.tolist()], dtype=object)


def _text(value: object) -> str:
    text = printable(value.decode(errors="replace") if isinstance(value, bytes) else value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
