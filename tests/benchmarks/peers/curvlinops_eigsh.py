"""curvlinops: its Hessian as SciPy's operator, and ARPACK (`eigsh`) for each end.

ARPACK looks at the residuals only when it restarts, and stops at the first restart at which its
bound on them, relative to the eigenvalue, is below `tol`: no other `tol` gets there earlier. The
size of the space is SciPy's default.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import worker
from curvlinops import HessianLinearOperator
from problem import LARGEST, SMALLEST, TOLERANCE, Problem
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn


class Eigsh:
    def __init__(self, problem: Problem, options: argparse.Namespace) -> None:
        self.problem, self.seed = problem, options.seed
        self.notes = {"tol": TOLERANCE}

    def solve(self, products: worker.Products) -> worker.Pairs:
        hessian = HessianLinearOperator(
            self.problem.model,
            nn.CrossEntropyLoss(),
            self.problem.parameters,
            self.problem.batches,
            check_deterministic=False,  # a safeguard of some products, which the others go without
            num_data=len(self.problem.labels),
        ).to_scipy(np.float32)
        start = np.random.default_rng(self.seed).standard_normal(self.problem.size, np.float32)
        found: list[Any] = []
        for which, wanted in (("LA", LARGEST), ("SA", SMALLEST)):
            operator = LinearOperator(
                hessian.shape, matvec=products.timed(which, hessian.matvec), dtype=np.float32
            )
            values, vectors = eigsh(operator, wanted, which=which, v0=start, tol=TOLERANCE)
            order = np.argsort(values if which == "SA" else -values)
            found += [values[order], vectors.T[order]]
        return worker.Pairs(*found)


if __name__ == "__main__":
    worker.serve(Eigsh, ["curvlinops-for-pytorch", "scipy"])
