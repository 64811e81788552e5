"""Memory that the Krylov basis takes on each rank, by what the process has before and after.

for p in 1 2 4; do mpirun -n $p --oversubscribe python tests/benchmarks/memory.py JOB; done
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hessdist.config.loader import load_job
from hessdist.parallel.ranks import Ranks
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.spectrum.krylov_schur import Solver
from hessdist.spectrum.shell import curvature_matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    job, _ = load_job(options.job, options.overrides)
    petsc.initialise()
    ranks, workload = Ranks(), workload_of(job)
    objective = workload.on(ranks)
    shell = curvature_matrix(objective, job.spectrum.operator, len(workload.indices))
    before = _resident()
    with Solver(shell, job.spectrum.largest, job.spectrum.smallest, 1e-3, 0) as solver:
        solver.eps.setUp()
        columns = solver.eps.getDimensions()[1] + 1
        taken = ranks.collect(_resident() - before)
    if ranks.is_root:
        share = objective.layout.size * petsc.scalar_bytes() * columns / ranks.size
        print(
            f"{ranks.size} ranks: {columns} vectors, d (ncv + 1) / P scalars are "
            f"{share / 2**20:.0f} MiB; the processes grew by "
            f"{', '.join(f'{size / 2**20:.0f}' for size in taken)} MiB"
        )


def _resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
