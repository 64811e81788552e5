"""Products of a sweep with and without a warm start: does the checkpoint before help?

python tests/benchmarks/warm_start.py jobs/demo.toml [--set section.key=value]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hessdist.config.loader import load_job
from hessdist.parallel.ranks import Ranks
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import curvature_matrix
from hessdist.workload.checkpoints import load_into, read_state
from hessdist.workload.steps import find_checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    job, _ = load_job(options.job, options.overrides)
    wanted = job.spectrum
    petsc.initialise()
    workload = workload_of(job)
    objective = workload.on(Ranks())
    guesses = None
    sums = np.zeros(2, int)
    print("    step |  cold |  warm", flush=True)
    for checkpoint in find_checkpoints(job.checkpoints.directory):
        state = read_state(checkpoint.path)
        objective.load(lambda model, state=state, at=checkpoint: load_into(model, state, at.path))
        objective.evaluate()
        counts = []
        for known in (None, guesses):
            shell = curvature_matrix(objective, wanted.operator, len(workload.indices))
            pairs = extreme_eigenpairs(
                shell,
                wanted.largest,
                wanted.smallest,
                tolerance=wanted.tolerance,
                seed=wanted.seed,
                guesses=known,
            )
            assert pairs.converged
            counts.append(pairs.products)
        if guesses is not None:
            sums += counts
        guesses = np.concatenate([pairs.largest.vectors, pairs.smallest.vectors])
        print(f"{checkpoint.step:8} | {counts[0]:5} | {counts[1]:5}", flush=True)
    print(f"after the first: {sums[0]} products cold, {sums[1]} warm")


if __name__ == "__main__":
    main()
