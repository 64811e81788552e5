"""curvlinops: Lanczos without orthogonalisation, and its three estimators of the trace."""

from __future__ import annotations

import argparse
import time
from typing import Any

import slq_worker
import torch
from curvlinops import HessianLinearOperator, hutchinson_trace, hutchpp_trace, xtrace
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from problem import Problem
from torch import Tensor, nn
from worker import Products

METHODS = {"xtrace": xtrace, "hutch++": hutchpp_trace, "hutchinson": hutchinson_trace}


class Counted(HessianLinearOperator):
    """The Hessian, whose products with the columns of a matrix are counted."""

    seconds: list[float]

    def __matmul__(self, X: Any) -> Any:
        columns = X.shape[1] if isinstance(X, Tensor) and X.ndim == 2 else 1
        start = time.perf_counter()
        result = super().__matmul__(X)
        self.seconds += [(time.perf_counter() - start) / columns] * columns
        return result


class Curvlinops:
    def __init__(self, problem: Problem, options: argparse.Namespace) -> None:
        self.problem = problem

    def _operator(self, products: Products) -> Counted:
        operator = Counted(
            self.problem.model,
            nn.CrossEntropyLoss(),
            self.problem.parameters,
            self.problem.batches,
            check_deterministic=False,  # a safeguard of some products, which the others go without
            num_data=len(self.problem.labels),
        )
        operator.seconds = products.seconds.setdefault("all", [])
        return operator

    def density(
        self, method: str, probes: int, steps: int, seed: int, products: Products
    ) -> tuple[list[list[float]], list[list[float]]]:
        torch.manual_seed(seed)
        operator = self._operator(products)
        rules = [fast_lanczos(operator, steps) for _ in range(probes)]
        nodes = [values.tolist() for values, _ in rules]
        return nodes, [vectors[0].square().tolist() for _, vectors in rules]

    def trace(self, method: str, count: int, seed: int, products: Products) -> float:
        torch.manual_seed(seed)
        return float(METHODS[method](self._operator(products), count))


if __name__ == "__main__":
    slq_worker.serve(Curvlinops, ["curvlinops-for-pytorch"])
