"""How far the diagonal blocks of a language model are from the whole Hessian, at checkpoints.

python tests/benchmarks/block_diagonal.py jobs/gpt_text.toml --steps 0 1000 --set data.samples=16

H is the Hessian, D has its blocks by depth and kind on the diagonal, and E = H - D is the rest. A
row has the largest and the smallest eigenvalue of each, and |E| / |H| in the Frobenius norm, by
random vectors that all three share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

from hessdist.config.loader import load_job
from hessdist.objective import Objective
from hessdist.parallel.ranks import Ranks
from hessdist.service.workload import workload_of
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.negative_curvature.kinds import by_depth_and_kind
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import find_checkpoints

Product = Callable[[NDArray[Any]], NDArray[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--lanczos-steps", type=int, default=25)
    options = parser.parse_args()
    job, _ = load_job(options.job, options.overrides)
    workload = workload_of(job)
    print("step    blocks   H                    D                    E                  |E|/|H|")
    for checkpoint in find_checkpoints(job.checkpoints.directory):
        if checkpoint.step in options.steps:
            load_into(workload.model, read_whole(checkpoint.path), checkpoint.path)
            print(_row(checkpoint.step, workload.on(Ranks()), options), flush=True)


def _row(step: int, objective: Objective, options: argparse.Namespace) -> str:
    """Compute a row of the table."""
    layout = objective.layout
    weight = objective.evaluate().weight
    whole = _product(objective, weight)
    places = by_depth_and_kind(layout.names)
    offsets = dict(zip(layout.names, layout.offsets[:-1], strict=True))
    parts = []
    for names in places.values():
        part = objective.of_layers(names)
        sizes = np.diff(part.layout.offsets)
        entries = [
            np.arange(offsets[name], offsets[name] + size)
            for name, size in zip(part.layout.names, sizes, strict=True)
        ]
        parts.append((np.concatenate(entries), _product(part, weight)))

    def diagonal(v: NDArray[Any]) -> NDArray[np.float64]:
        image = np.zeros(layout.size)
        for entries, product in parts:
            image[entries] = product(v[entries])
        return image

    def rest(v: NDArray[Any]) -> NDArray[np.float64]:
        return whole(v) - diagonal(v)

    rng = np.random.default_rng(0)
    squares = np.zeros(2)
    for _ in range(options.probes):
        z = rng.choice([-1.0, 1.0], layout.size)
        image, own = whole(z), diagonal(z)
        squares += [image @ image, (image - own) @ (image - own)]
    ends = "".join(
        f"{_ends(product, layout.size, options.lanczos_steps):<21}"
        for product in (whole, diagonal, rest)
    )
    return f"{step:<8}{len(parts):<9}{ends}{np.sqrt(squares[1] / squares[0]):.3f}"


def _product(objective: Objective, weight: float) -> Product:
    shell = curvature_matrix(objective, "hessian", weight)
    return lambda v: np.asarray(shell.apply(np.asarray(v, np.float64).ravel()), np.float64)


def _ends(product: Product, size: int, steps: int) -> str:
    """Return the extreme Ritz values of a Lanczos run with full orthogonalisation."""
    basis = np.zeros((steps + 1, size))
    diagonal, beside = np.zeros(steps), np.zeros(steps)
    basis[0] = np.random.default_rng(1).standard_normal(size)
    basis[0] /= np.linalg.norm(basis[0])
    for i in range(steps):
        image = product(basis[i])
        diagonal[i] = image @ basis[i]
        for _ in range(2):
            image = image - basis[: i + 1].T @ (basis[: i + 1] @ image)
        beside[i] = np.linalg.norm(image)
        basis[i + 1] = image / beside[i]
    found = eigh_tridiagonal(diagonal, beside[:-1], eigvals_only=True)
    return f"{found[0]:.4g} ... {found[-1]:.4g}"


if __name__ == "__main__":
    main()
