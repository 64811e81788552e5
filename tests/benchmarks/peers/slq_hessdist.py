"""hessdist: stochastic Lanczos quadrature and XTrace, one process.

Timed from the model and the data set: the loss and its gradient, the check that they are
deterministic, the kept graphs, the products.
"""

from __future__ import annotations

import argparse

import numpy as np
import slq_worker
from problem import Problem
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from worker import Products

from hessdist.objective import Compute, Objective
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.lanczos import lanczos_quadrature
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.trace import xtrace


class Hessdist:
    def __init__(self, problem: Problem, options: argparse.Namespace) -> None:
        self.problem = problem
        self.compute = Compute(device="cpu", batch_size=problem.batch_size)
        self.dataset = TensorDataset(problem.images, problem.labels)

    def _shell(self, products: Products) -> ShellMatrix:
        objective = Objective(
            Ranks(),
            self.problem.model,
            cross_entropy,
            self.dataset,
            np.arange(len(self.dataset)),
            compute=self.compute,
        )
        seconds = products.seconds.setdefault("all", [])
        shell = curvature_matrix(
            objective,
            "hessian",
            objective.evaluate().num_samples,
            # The shell adds its seconds up; what was added last is the latest product's.
            lambda count: seconds.append(sum(shell.seconds.values()) - sum(seconds)),
        )
        return shell

    def density(
        self, probes: int, steps: int, seed: int, products: Products
    ) -> tuple[list[list[float]], list[list[float]]]:
        found = lanczos_quadrature(self._shell(products), probes=probes, steps=steps, seed=seed)
        return found.nodes.tolist(), found.weights.tolist()

    def trace(self, method: str, count: int, seed: int, products: Products) -> float:
        return xtrace(self._shell(products), products=count, seed=seed).value


if __name__ == "__main__":
    slq_worker.serve(Hessdist, ["mpi4py"])
