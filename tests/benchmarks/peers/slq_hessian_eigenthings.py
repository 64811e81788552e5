"""hessian-eigenthings: Lanczos with full orthogonalisation, and its two estimators of the trace."""

from __future__ import annotations

import argparse

import slq_worker
from hessian_eigenthings import HessianOperator
from hessian_eigenthings.algorithms.spectral_density import spectral_density
from hessian_eigenthings.algorithms.trace import trace
from problem import Problem
from torch import Tensor, nn
from worker import Products


class HessianEigenthings:
    def __init__(self, problem: Problem, options: argparse.Namespace) -> None:
        self.problem = problem

    def _operator(self, products: Products) -> HessianOperator:
        batches = self.problem.batches
        # It averages over batches, whatever their size; so weighted, that is the mean over samples.
        weight = len(batches) / len(self.problem.labels)

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            images, labels = batch
            return weight * nn.functional.cross_entropy(model(images), labels, reduction="sum")

        operator = HessianOperator(self.problem.model, batches, loss)
        operator.matvec = products.timed("all", operator.matvec)
        return operator

    def density(
        self, method: str, probes: int, steps: int, seed: int, products: Products
    ) -> tuple[list[list[float]], list[list[float]]]:
        found = spectral_density(
            self._operator(products),
            num_runs=probes,
            lanczos_steps=steps,
            num_grid_points=2,  # the grid is drawn by whoever asks
            seed=seed,
        )
        return found.raw_eigenvalues.tolist(), found.raw_weights.tolist()

    def trace(self, method: str, count: int, seed: int, products: Products) -> float:
        return trace(self._operator(products), num_matvecs=count, method=method, seed=seed).estimate


if __name__ == "__main__":
    slq_worker.serve(HessianEigenthings, ["hessian-eigenthings"])
