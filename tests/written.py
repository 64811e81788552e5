"""Results as a sweep would have written them, of any size, without a solve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hessdist.results.files import replacing
from hessdist.results.schema import TABLES
from hessdist.results.writer import CheckpointFile, RunDescription, part_path, parts_of, write_index

JOB = """
name = {name}
[model]
factory = "lenet"
[data]
dataset = "mnist"
[checkpoints]
directory = "checkpoints"
[output]
path = "run.h5"
"""


def write_run(
    path: Path,
    *,
    steps: int,
    largest: int = 5,
    smallest: int = 3,
    size: int = 7,
    name: str = "written",
    eigenvectors: bool = True,
    seed: int = 0,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tables: None,
) -> Path:
    """Write a run of `steps` checkpoints, ten minibatches apart.

    Args:
        path: The run's file.
        steps: Checkpoints.
        largest: k.
        smallest: m.
        size: d.
        name: In the job.
        eigenvectors: Whether they are written.
        seed: Of the numbers.
        change: Given the tables of all steps to change them.

    Returns:
        The path.
    """
    rng = np.random.default_rng(seed)
    sizes = {"largest": largest, "smallest": smallest}
    tables: dict[str, np.ndarray] = {
        "loss": 2 * np.exp(-np.arange(steps) / 40) + 0.01,
        "gradient_norm": rng.random(steps),
        "products": rng.integers(60, 90, steps),
        "seconds": rng.random(steps) + 3,
    }
    for end, sign in (("largest", 1), ("smallest", -1)):
        values = sign * 20 * np.exp(-np.arange(sizes[end]) / 9) * (1 + 0.1 * rng.random((steps, 1)))
        tables[f"eigenvalues_{end}"] = values
        tables[f"residuals_{end}"] = 1e-3 * rng.random(values.shape)
        tables[f"converged_{end}"] = np.ones(values.shape, bool)
    change(tables)
    description = RunDescription(
        job=JOB.format(name=_quoted(name)), fingerprint="0123456789ab", num_parameters=size,
        num_samples=100, ranks=2, versions={"torch": "2.13"}, parameter_names=("layer.weight",),
        parameter_shapes=((size,),), parameter_offsets=(0, size),
    )  # fmt: skip
    for row in range(steps):
        with replacing(part_path(path, 10 * row, description.fingerprint), sealed=True) as opened:
            file = CheckpointFile(opened, description, 10 * row, sizes)
            for field in TABLES:
                file.put(field.name, tables[field.name][row])
            file.put("gradient", rng.standard_normal(size))
            for end in ("largest", "smallest") if eigenvectors else ():
                for number in range(sizes[end]):
                    vector = rng.standard_normal(size).astype(np.float32)
                    file.put_row(f"eigenvectors_{end}", number, vector / np.linalg.norm(vector))
            file.finish({"checkpoint_digest": f"{row:064x}"})
    write_index(path, parts_of(path, description.fingerprint))
    return path


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
