"""hessdist: stochastic Lanczos quadrature and traces, one process.

Timed from the model and the data set: the loss and its gradient, the check that they are
deterministic, the kept graphs, the products. The methods "known" use LA(20) and SA(3), which the
command `solve` computes and keeps.
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
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.known_pairs import KnownPairs, known_pairs
from hessdist.spectrum.lanczos import lanczos_quadrature
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.trace import estimate_trace


class Hessdist:
    def __init__(self, problem: Problem, options: argparse.Namespace) -> None:
        self.problem = problem
        self.compute = Compute(device="cpu", batch_size=problem.batch_size)
        self.dataset = TensorDataset(problem.images, problem.labels)
        self.known: KnownPairs | None = None

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

    def solve(self, products: Products) -> None:
        shell = self._shell(products)
        solved = extreme_eigenpairs(shell, 20, 3)
        ends = (solved.largest, solved.smallest)
        values, residuals, vectors = (
            np.concatenate([getattr(end, name) for end in ends])
            for name in ("values", "residuals", "vectors")
        )
        self.known = known_pairs(shell.ranks, values, residuals, vectors)

    def density(
        self, method: str, probes: int, steps: int, seed: int, products: Products
    ) -> tuple[list[list[float]], list[list[float]]]:
        known = self.known if method == "known" else None
        shell = self._shell(products)
        found = lanczos_quadrature(shell, probes=probes, steps=steps, seed=seed, known=known)
        return found.nodes.tolist(), found.weights.tolist()

    def trace(self, method: str, count: int, seed: int, products: Products) -> float:
        known = self.known if method == "known" else None
        return estimate_trace(self._shell(products), products=count, seed=seed, known=known).value


if __name__ == "__main__":
    slq_worker.serve(Hessdist, ["mpi4py"])
