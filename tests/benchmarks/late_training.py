"""Products to both ends at every checkpoint of a job, beside a Lanczos run never restarted.

    python tests/benchmarks/late_training.py jobs/lenet_mnist.toml [--samples 512] [--steps 50,2000]

Both start from the same vector and multiply by the same matrix, to the same relative residuals. The
run beside us orthogonalises against every vector and keeps them all: no method of Lanczos's kind
needs fewer products from that start. It takes d times 8 bytes for every product.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from checkpoint_matrices import checkpoint_matrices
from oracles import full_lanczos

from hessdist.config.loader import load_job
from hessdist.parallel.ranks import Ranks
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.start import random_entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--samples", type=int, default=512, help="of the job's; 0: all")
    parser.add_argument("--steps", help="checkpoints, separated by commas; default: all")
    options = parser.parse_args()
    job, _ = load_job(options.job)
    wanted = job.spectrum
    petsc.initialise()
    workload = workload_of(job)
    indices = workload.indices[: options.samples or None]
    objective = workload.on(Ranks(), indices)
    print(
        f"{job.name}, {len(indices)} samples, LA({wanted.largest}) and SA({wanted.smallest}) to "
        f"{wanted.tolerance:g}\n    step | products | full Lanczos | ratio | restarts",
        flush=True,
    )
    for step, shell in checkpoint_matrices(job, objective, len(indices), options.steps):
        ends = (wanted.largest, wanted.smallest)
        pairs = extreme_eigenpairs(shell, *ends, tolerance=wanted.tolerance, seed=wanted.seed)
        full = full_lanczos(
            lambda v, shell=shell: torch.from_numpy(shell.apply(v.numpy())),
            random_entries(wanted.seed, 0, shell.size),
            *ends,
            wanted.tolerance,
        )
        short = "" if pairs.converged else "   not converged"
        print(
            f"{step:8} | {pairs.products:8} | {full:12} | {pairs.products / full:5.2f}"
            f" | {pairs.restarts:8}{short}",
            flush=True,
        )


if __name__ == "__main__":
    main()
