"""Products to one end of a job's spectra, by which Ritz values a restart keeps.

    python tests/benchmarks/one_end.py jobs/negative_curvature_lenet5.toml [--steps 0,100,2000]

A restart keeps the wanted Ritz values and then those that are farthest from a point c. In the
program c is the median of all, so that the outliers of both ends are kept. The other column has c
beyond the end that is not wanted, or halfway between two wanted ends: it keeps what lies nearest to
the wanted values, as a solver for one end does. Both have bases of the same size.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from checkpoint_matrices import checkpoint_matrices
from numpy.typing import NDArray

from hessdist.config.loader import load_job
from hessdist.parallel.ranks import Ranks
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.ritz import Ends
from hessdist.spectrum.shell import ShellMatrix

WANTED = ((0, 1), (0, 3), (0, 20), (1, 1), (3, 3), (3, 0), (20, 0), (20, 3))


def beyond(ends: Ends, values: NDArray[np.float64]) -> float:
    """Compute c outside the spectrum for one wanted end, halfway between two."""
    ascending = np.sort(values)
    low, high, n = ascending[0], ascending[-1], len(ascending)
    if ends.smallest == 0 or ends.largest == 0:
        reach = 2 * (high - low) + 1
        return float(low - reach if ends.smallest == 0 else high + reach)
    if ends.largest + ends.smallest >= n:
        return float((low + high) / 2)
    return float((ascending[n - ends.largest] + ascending[ends.smallest - 1]) / 2)


def products(shell: ShellMatrix, wanted: tuple[int, int], tolerance: float) -> tuple[int, int]:
    """Count the products with c in the bulk and with c outside of it."""
    with mock.patch.object(Ends, "bulk", beyond):
        outside = extreme_eigenpairs(shell, *wanted, tolerance=tolerance).products
    return extreme_eigenpairs(shell, *wanted, tolerance=tolerance).products, outside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--steps", help="checkpoints, separated by commas; default: all")
    options = parser.parse_args()
    job, _ = load_job(options.job)
    petsc.initialise()
    workload = workload_of(job)
    objective = workload.on(Ranks(), workload.indices)
    titles = [f"({k}, {m})" for k, m in WANTED]
    print(
        f"{job.name}: products to LA(k) and SA(m), (k, m); c in the bulk / outside\n    step",
        end="",
    )
    print("".join(f" | {title:>10}" for title in titles), flush=True)
    for step, shell in checkpoint_matrices(job, objective, len(workload.indices), options.steps):
        counts = [products(shell, wanted, job.spectrum.tolerance) for wanted in WANTED]
        cells = "".join(f" | {f'{one} / {two}':>10}" for one, two in counts)
        print(f"{step:8d}{cells}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
