"""PyHessian: power iteration, one eigenpair after the other, the largest in magnitude first.

It has no smallest end; the pairs that it finds are sorted by their sign. Where two values are close
it needs hundreds of products for one pair, so it is given up after a time limit.
"""

from __future__ import annotations

import argparse
import importlib
import time
from typing import Any
from unittest import mock

import numpy as np
import torch
import worker
from problem import LARGEST, SMALLEST, TOLERANCE, Problem
from pyhessian import hessian
from torch import Tensor, nn


class _TimeIsUpError(Exception):
    """Ends the library's own loop."""


class PowerIteration:
    def __init__(self, problem: Problem, options: argparse.Namespace) -> None:
        self.problem, self.seed, self.limit = problem, options.seed, options.limit
        # Two iterates' Rayleigh quotients differ by one to two times the square of the residual,
        # all relative to the eigenvalue: with this tolerance the residual is small enough.
        self.tol = TOLERANCE**2
        self.notes = {"tol": self.tol, "limit": self.limit}

    def solve(self, products: worker.Products) -> worker.Pairs:
        torch.manual_seed(self.seed)
        deadline = time.perf_counter() + self.limit
        operator = hessian(
            self.problem.model, nn.CrossEntropyLoss(), dataloader=self.problem.batches, cuda=False
        )
        product = products.timed("LM", operator.dataloader_hv_product)
        vectors: list[list[Tensor]] = []
        values: dict[int, float] = {}

        def watched(v: list[Tensor]) -> tuple[float, list[Tensor]]:
            if time.perf_counter() > deadline:
                raise _TimeIsUpError
            value, image = product(v)
            values[len(vectors)] = value
            return value, image

        operator.dataloader_hv_product = watched
        finished = False
        with _shown(vectors):
            try:
                _, vectors[:] = operator.eigenvalues(
                    maxIter=10**6, tol=self.tol, top_n=LARGEST + SMALLEST
                )
                finished = True
            except _TimeIsUpError:
                pass
        self.problem.model.zero_grad()
        found = np.array([values[i] for i in range(len(vectors))])
        flat = np.empty((len(vectors), self.problem.size), np.float32)
        for row, vector in zip(flat, vectors, strict=True):
            row[:] = torch.cat([piece.reshape(-1) for piece in vector]).numpy()
        top, bottom = np.argsort(-found), np.argsort(found)
        top, bottom = top[found[top] > 0][:LARGEST], bottom[found[bottom] < 0][:SMALLEST]
        finished = finished and len(top) == LARGEST and len(bottom) == SMALLEST
        return worker.Pairs(found[top], flat[top], found[bottom], flat[bottom], finished=finished)


def _shown(vectors: list[list[Tensor]]) -> Any:
    """Have the library show the vectors that it has found, which else are lost at the limit."""
    module = importlib.import_module("pyhessian.hessian")  # hidden by the class of its name
    orthonormalise = module.orthnormal

    def shown(w: list[Tensor], found: list[list[Tensor]]) -> list[Tensor]:
        vectors[:] = found
        return orthonormalise(w, found)

    return mock.patch.object(module, "orthnormal", shown)


if __name__ == "__main__":
    worker.serve(PowerIteration, ["PyHessian"])
