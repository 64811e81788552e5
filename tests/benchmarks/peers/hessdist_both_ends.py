"""hessdist: both ends of one Krylov space, one process.

Timed from the model and the data set to eigenpairs with measured residuals: the loss and its
gradient, the check that they are deterministic, the kept graphs, the solve.
"""

from __future__ import annotations

import argparse

import numpy as np
import worker
from problem import LARGEST, SMALLEST, TOLERANCE, Problem
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from hessdist.objective import Compute, Objective
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import petsc
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import curvature_matrix


class BothEnds:
    def __init__(self, problem: Problem, options: argparse.Namespace) -> None:
        self.problem, self.seed = problem, options.seed
        self.compute = Compute(device="cpu", batch_size=problem.batch_size)
        self.dataset = TensorDataset(problem.images, problem.labels)
        self.notes = {"tolerance": TOLERANCE}
        petsc.initialise()  # an import, as those of the peers are

    def solve(self, products: worker.Products) -> worker.Pairs:
        objective = Objective(
            Ranks(),
            self.problem.model,
            cross_entropy,
            self.dataset,
            np.arange(len(self.dataset)),
            compute=self.compute,
        )
        seconds = products.seconds.setdefault("both", [])
        shell = curvature_matrix(
            objective,
            "hessian",
            objective.evaluate().num_samples,
            # The shell adds its seconds up; what was added last is the latest product's.
            lambda count: seconds.append(sum(shell.seconds.values()) - sum(seconds)),
        )
        pairs = extreme_eigenpairs(shell, LARGEST, SMALLEST, tolerance=TOLERANCE, seed=self.seed)
        return worker.Pairs(
            pairs.largest.values,
            pairs.largest.vectors,
            pairs.smallest.values,
            pairs.smallest.vectors,
            finished=pairs.converged,
        )


if __name__ == "__main__":
    worker.serve(BothEnds, ["mpi4py", "petsc4py", "slepc4py"])
