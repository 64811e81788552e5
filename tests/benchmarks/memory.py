"""The memory of a solve on each rank: what was planned, and the peak of the process.

for p in 1 2 4; do mpirun -n $p --oversubscribe python tests/benchmarks/memory.py JOB; done
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hessdist.config.loader import load_job
from hessdist.parallel.memory import keep_freed_memory, peak_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.spectrum.memory_plan import gib, plan_solve, reserved_bytes
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import eigenpairs_as


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    job, _ = load_job(options.job, options.overrides)
    keep_freed_memory()
    petsc.initialise()
    ranks, workload, wanted = Ranks(), workload_of(job), job.spectrum
    objective = workload.on(ranks)
    objective.load(lambda model: None)  # the initial parameters of rank 0
    weight = objective.evaluate().weight
    reserved = reserved_bytes(objective, wanted.largest + wanted.smallest)
    shell = curvature_matrix(objective, wanted.operator, weight, reserved=reserved)
    plan = plan_solve(shell, wanted.largest, wanted.smallest, wanted.residuals)
    pairs = eigenpairs_as(wanted, shell, plan=plan)
    peaks = ranks.collect(peak_bytes())
    if ranks.is_root:
        vectors = f"{pairs.basis + 1} of {plan.most + 1} vectors, residuals {plan.residuals}"
        print(
            f"{ranks.size} ranks: {vectors}, {pairs.products} products; planned "
            f"{gib(plan.total(pairs.basis, pairs.products))} GiB a rank, at most "
            f"{gib(plan.total())}; peaks {', '.join(map(gib, peaks))} GiB"
        )


if __name__ == "__main__":
    main()
