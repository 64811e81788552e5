"""What exact spectra cost: seconds of products and of the dense solver, and memory.

    python tests/benchmarks/exact.py [--solver lapack] 1000 5000 15000
    OMP_NUM_THREADS=1 mpirun -n 2 python tests/benchmarks/exact.py 1000 5000

A fully connected network with one hidden layer on 1,000 random patterns, in float64; its width is
what comes nearest to each number of parameters. Memory is the peak of the fullest rank, PyTorch
and PETSc (about 450 MiB) included, so give sizes in increasing order.
"""

from __future__ import annotations

import argparse

import numpy as np

from hessdist.config.loader import parse_job
from hessdist.optimizers.training import initialise
from hessdist.parallel.memory import peak_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.service.workload import workload_of
from hessdist.spectrum.dense import exact_spectrum, plan
from hessdist.spectrum.shell import curvature_matrix

JOB = """
[model]
factory = "mlp"
arguments = {{ widths = [784, {width}, 10] }}
[data]
dataset = "random"
[compute]
dtype = "float64"
[checkpoints]
directory = "checkpoints"
[output]
path = "run.h5"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--solver", choices=("lapack", "scalapack"))
    parser.add_argument("--eigenvectors", action="store_true")
    options = parser.parse_args()
    ranks = Ranks()
    for wanted in options.sizes:
        width = max(1, round((wanted - 10) / (784 + 1 + 10)))
        job, _ = parse_job(JOB.format(width=width), "the benchmark")
        initialise(0)
        objective = workload_of(job).on(ranks)
        shell = curvature_matrix(objective, "hessian", 1000)
        planned = plan(shell, eigenvectors=options.eigenvectors, solver=options.solver)
        found = exact_spectrum(shell, planned)
        peak = max(ranks.collect(peak_bytes()))
        if ranks.is_root:
            print(f"d = {shell.size:,}, {ranks.size} ranks; said: {planned}")
            print(
                f"    products {found.seconds_products:.1f} s, {planned.solver} "
                f"{found.seconds_eigenvalues:.1f} s, {peak / 2**20:.0f} MiB on the fullest rank; "
                f"λ from {found.values[0]:.4g} to {found.values[-1]:.4g}, "
                f"{int((np.abs(found.values) < 1e-3 * found.values[-1]).sum()):,} near zero",
                flush=True,
            )


if __name__ == "__main__":
    main()
