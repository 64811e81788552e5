"""A process that solves when it is told to: JSON lines in, JSON lines out.

Run by itself it has no solver and measures the unit, the plain gradient. A peer's module hands its
solver to `serve` and is run with the interpreter of the peer's environment. Commands:

    {"do": "gradient", "turns": 5}           {"seconds": [...]}
    {"do": "solve", "path": "pairs.npz"}     {"seconds": ..., "products": {...}, ...}
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import problem as problems
from problem import Problem


@dataclass(frozen=True)
class Pairs:
    """Eigenpairs as a solver gives them; fewer than wanted where it was given up."""

    values_largest: np.ndarray  # (k,) descending
    vectors_largest: np.ndarray  # (k, d)
    values_smallest: np.ndarray  # (m,) ascending
    vectors_smallest: np.ndarray  # (m, d)
    finished: bool = True


class Products:
    """Seconds of every product of a solve, by the part of the solve that made it."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, part: str, product: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The product, which from now on is counted and timed."""
        seconds = self.seconds.setdefault(part, [])

        def multiply(vector: Any) -> Any:
            start = time.perf_counter()
            result = product(vector)
            seconds.append(time.perf_counter() - start)
            return result

        return multiply


class Solver(Protocol):
    """What a peer's module makes of its library. Making it is not timed."""

    notes: dict[str, Any]  # what the table cannot show: step counts, tolerances

    def solve(self, products: Products) -> Pairs:
        """From the model and the samples in memory to both ends; the whole of it is timed."""


def serve(
    make: Callable[[Problem, argparse.Namespace], Solver] | None = None,
    packages: Sequence[str] = (),
) -> None:
    """Answer commands until the input ends.

    Args:
        make: Makes the solver.
        packages: Distributions whose versions matter, besides torch's.
    """
    # Libraries print; what they print must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    parser = argparse.ArgumentParser()
    problems.add_options(parser)
    options = parser.parse_args()
    problem = problems.read(options)
    problems.gradient(problem)  # warms up
    solver = None if make is None else make(problem, options)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    versions = {name: metadata.version(name) for name in ("torch", "numpy", *packages)}
    answer({"versions": versions, "notes": {} if solver is None else solver.notes})
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "gradient":
            answer({"seconds": [_seconds(problem) for _ in range(command["turns"])]})
        elif solver is not None:
            answer(_solve(solver, Path(command["path"])))


def _seconds(problem: Problem) -> float:
    start = time.perf_counter()
    problems.gradient(problem)
    return time.perf_counter() - start


def _solve(solver: Solver, path: Path) -> dict[str, Any]:
    products = Products()
    start = time.perf_counter()
    pairs = solver.solve(products)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez(
        path,
        values_largest=pairs.values_largest,
        vectors_largest=pairs.vectors_largest,
        values_smallest=pairs.values_smallest,
        vectors_smallest=pairs.vectors_smallest,
    )
    return {
        "seconds": seconds,
        "finished": pairs.finished,
        "products": {part: len(each) for part, each in products.seconds.items()},
        "product_seconds": [s for each in products.seconds.values() for s in each],
        "peak_bytes": peak,
    }


if __name__ == "__main__":
    serve()
