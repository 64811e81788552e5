"""The time of a solve by samples, parameters, ranks and network: fitted, checked, and foretold.

    for p in 1 2 4 3; do
        OMP_NUM_THREADS=1 mpirun -n $p hessdist bench JOB --json bench-$p.json
    done
    python tests/benchmarks/cost_model.py bench-1.json bench-2.json bench-4.json \\
        --check bench-3.json --cores 2

A product on P ranks, of a model of d parameters over N samples, in seconds:

    product      s N / C                     s: a sample on one core; C: cores at work
    gather and   2 a log2 P + 8 d (P-1)/P / B + c d      a: latency, B: bandwidth a rank,
    reduction                                            c: copies of a vector
    algebra      w 8 d n / C + 3 a log2 P    n: vectors that orthogonalisation and restarts read
                                             a step; w: seconds a byte on one core

Each of s, B, c, w is a least-squares fit without negative values (SciPy's nnls) over the runs
given; a is given. The forecast takes the same formulas with the numbers of a machine with GPUs,
which are assumptions and are printed with it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Machine:
    """What the formulas take of a machine."""

    sample: float  # s: seconds a product takes for one sample on one worker
    byte: float  # w: seconds to read one byte of a basis vector on one worker
    copy: float  # c: seconds a parameter for copies and conversions
    bandwidth: float  # B: bytes a second between ranks
    latency: float  # a: seconds a message
    workers: int  # that really work at the same time; ranks beyond share them


@dataclass(frozen=True)
class Problem:
    """What they take of a problem."""

    parameters: int
    samples: int
    products: int = 64
    vectors: float = 140.0  # n: reads of basis vectors a step, as measured with 70 columns


def product_seconds(machine: Machine, problem: Problem, ranks: int) -> dict[str, float]:
    """Seconds of one step on some ranks, by part."""
    workers = min(ranks, machine.workers)
    hops = log2(ranks) if ranks > 1 else 0.0
    d = problem.parameters
    return {
        "product": machine.sample * problem.samples / workers,
        "communication": 2 * machine.latency * hops
        + 8 * d * (ranks - 1) / ranks / machine.bandwidth
        + machine.copy * d,
        "algebra": machine.byte * 8 * d * problem.vectors / workers + 3 * machine.latency * hops,
    }


def solve_seconds(machine: Machine, problem: Problem, ranks: int) -> float:
    """Seconds of a solve on some ranks."""
    return problem.products * sum(product_seconds(machine, problem, ranks).values())


def fit(runs: list[dict[str, Any]], cores: int, latency: float) -> Machine:
    """The machine whose formulas come nearest to measured runs."""
    rows = [_measured(run) for run in runs]
    base = Machine(0, 0, 0, np.inf, latency, cores)

    def solved(columns: list[list[float]], values: list[float]) -> np.ndarray:
        matrix, right = np.array(columns), np.array(values)
        return nnls(matrix / right[:, None], np.ones_like(right))[0]  # relative errors

    def workers(run: dict[str, Any]) -> int:
        return min(run["ranks"] * run["threads"], cores)

    (sample,) = solved(
        [[run["num_samples"] / workers(run)] for run in runs], [r["product"] for r in rows]
    )
    hops = [log2(run["ranks"]) if run["ranks"] > 1 else 0.0 for run in runs]
    (byte,) = solved(
        [[8 * run["num_parameters"] * Problem(0, 0).vectors / workers(run)] for run in runs],
        [r["algebra"] - 3 * latency * h for r, h in zip(rows, hops, strict=True)],
    )
    inverse, copy = solved(
        [
            [8 * run["num_parameters"] * (run["ranks"] - 1) / run["ranks"], run["num_parameters"]]
            for run in runs
        ],
        [r["communication"] - 2 * latency * h for r, h in zip(rows, hops, strict=True)],
    )
    bandwidth = 1 / inverse if inverse else np.inf
    return replace(base, sample=sample, byte=byte, copy=copy, bandwidth=bandwidth)


def _measured(run: dict[str, Any]) -> dict[str, float]:
    """Seconds a product, by part, of one run of `hessdist bench`."""
    solve = run["solve"]
    parts = {
        "product": solve["seconds_product"],
        "communication": solve["seconds_gather"] + solve["seconds_reduction"],
        "algebra": solve["seconds_algebra"],
    }
    return {name: seconds / solve["products"] for name, seconds in parts.items()}


def _problem(run: dict[str, Any]) -> Problem:
    return Problem(run["num_parameters"], run["num_samples"], run["solve"]["products"])


def forecast(tflops: float, bandwidth: float, memory: float, latency: float) -> None:
    """Print what the formulas say for machines with many GPUs."""
    print(
        f"\nassumed of a GPU: {tflops:g} TFLOP/s of float32 in products, {memory / 1e12:g} TB/s of "
        f"memory, {bandwidth / 1e9:g} GB/s to the network, {latency * 1e6:g} us a message"
    )
    print("model | samples | GPUs | product | communication | algebra | solve | efficiency")
    models = {  # parameters, samples, multiplications and additions of a product for one sample
        "LeNet, MNIST": (Problem(3_274_634, 60_000), 1.7e8),
        "25 M, 1.28 M images": (Problem(25_557_032, 1_281_167), 4.9e10),
        "1 B, 1 M sequences": (Problem(1_000_000_000, 1_000_000), 1.2e13),
    }
    for name, (problem, operations) in models.items():
        machine = Machine(
            sample=operations / (tflops * 1e12),
            byte=1 / memory,
            copy=16 / memory,
            bandwidth=bandwidth,
            latency=latency,
            workers=1 << 30,
        )
        base = 8 * solve_seconds(machine, problem, 8)
        for gpus in (8, 64, 512, 4096):
            parts = product_seconds(machine, problem, gpus)
            whole = solve_seconds(machine, problem, gpus)
            print(
                f"{name} | {problem.samples:,} | {gpus} | "
                + " | ".join(f"{1e3 * part:.3g} ms" for part in parts.values())
                + f" | {whole:.3g} s | {base / (gpus * whole):.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="JSON files that the fit takes")
    parser.add_argument("--check", type=Path, nargs="+", default=[], help="and those it does not")
    parser.add_argument("--cores", type=int, required=True, help="of the machine of the runs")
    parser.add_argument("--latency", type=float, default=2e-6, help="seconds a message there")
    parser.add_argument("--gpu-tflops", type=float, default=20.0)
    parser.add_argument("--gpu-bandwidth", type=float, default=25e9)
    parser.add_argument("--gpu-memory", type=float, default=2.5e12)
    parser.add_argument("--gpu-latency", type=float, default=5e-6)
    options = parser.parse_args()
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.runs]
    checks = [json.loads(path.read_text(encoding="utf-8")) for path in options.check]
    machine = fit(runs, options.cores, options.latency)
    print(
        f"a sample {machine.sample * 1e3:.3g} ms on a core, a byte of the basis "
        f"{machine.byte * 1e9:.3g} ns, between ranks {machine.bandwidth / 1e9:.3g} GB/s, copies "
        f"{machine.copy * 1e9:.3g} ns a parameter"
    )
    print("ranks | samples | used in the fit | measured a step | formulas | error")
    for run in [*runs, *checks]:
        measured = sum(_measured(run).values())
        said = sum(product_seconds(machine, _problem(run), run["ranks"]).values())
        print(
            f"{run['ranks']} | {run['num_samples']:,} | {'yes' if run in runs else 'no'} | "
            f"{measured:.4g} s | {said:.4g} s | {said / measured - 1:+.0%}"
        )
    forecast(options.gpu_tflops, options.gpu_bandwidth, options.gpu_memory, options.gpu_latency)


if __name__ == "__main__":
    main()
