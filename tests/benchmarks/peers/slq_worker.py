"""A process that estimates densities and traces when it is told to: JSON lines in and out.

A peer's module hands its estimator to `serve` and is run with the interpreter of the peer's
environment. Commands:

    {"do": "density", "method": "", "probes": 2, "steps": 40, "seed": 0}    {"nodes": [...], ...}
    {"do": "trace", "method": "xtrace", "products": 24, "seed": 0}    {"value": ..., ...}
    {"do": "solve", "seed": 0}    {"seconds": ..., ...}, of estimators that have eigenpairs
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, Protocol

import problem as problems
from problem import Problem
from worker import Products


class Estimator(Protocol):
    """What a peer's module makes of its library. Making it is not timed; the rest is."""

    def density(
        self, method: str, probes: int, steps: int, seed: int, products: Products
    ) -> tuple[list[list[float]], list[list[float]]]:
        """Nodes and weights, from the model and the samples in memory, (probes, steps) each."""

    def trace(self, method: str, count: int, seed: int, products: Products) -> float:
        """The trace by a method and a number of products, likewise."""


def serve(
    make: Callable[[Problem, argparse.Namespace], Estimator], packages: Sequence[str] = ()
) -> None:
    """Answer commands until the input ends.

    Args:
        make: Makes the estimator.
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
    estimator = make(problem, options)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    versions = {name: metadata.version(name) for name in ("torch", "numpy", *packages)}
    answer({"versions": versions})
    for line in sys.stdin:
        answer(_carried_out(estimator, json.loads(line)))


def _carried_out(estimator: Estimator, command: dict[str, Any]) -> dict[str, Any]:
    products = Products()
    seed, found = command["seed"], {}
    start = time.perf_counter()
    if command["do"] == "density":
        how = command["method"], command["probes"], command["steps"]
        nodes, weights = estimator.density(*how, seed, products)
        found = {"nodes": nodes, "weights": weights}
    elif command["do"] == "solve":
        estimator.solve(products)  # type: ignore[attr-defined]
    else:
        value = estimator.trace(command["method"], command["products"], seed, products)
        found = {"value": value}
    seconds = time.perf_counter() - start
    each = [s for part in products.seconds.values() for s in part]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found | {"seconds": seconds, "product_seconds": each, "peak_bytes": peak}
