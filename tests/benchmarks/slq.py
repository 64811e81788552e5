"""Spectral densities and traces beside curvlinops and hessian-eigenthings, measured in one run.

    tests/benchmarks/peers/setup
    python tests/benchmarks/slq.py [--samples 512] [--repeat 5] [--products 12 24 48]

LeNet on MNIST. Every library is a process of its own (peers/slq_*.py), the peers' with the
interpreter of .venv-peers; one works at a time, they take turns, and plain gradients are measured
around each, so that other work on the machine meets all alike.

The trace is known exactly, in plain torch: of a network that is linear in every single parameter,
pieces apart, tr H = tr G, and G's trace is the mean squared norm of the gradients of log p_c with
labels c of the network's own distribution. The density's reference is ours, with many more probes
and steps; its error is the distance in L2 of the smoothed densities outside the peak at zero,
relative to the reference there. "known" has LA(20) and SA(3) of a solve as known pairs. Its seconds
are those after the solve, whose own seconds and products are printed.

Columns at equal error: the seconds until a method has the error that ours has at the middle number
of products, between its own numbers by a power law, beyond them at the Monte Carlo rate, seconds ~
error⁻².
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))

import problem as problems  # noqa: E402
from compare import PEERS_PYTHON, Worker  # noqa: E402
from problem import Problem  # noqa: E402
from torch.func import functional_call, jacrev  # noqa: E402

from hessdist.spectrum.densities import SpectralDensity  # noqa: E402

OURS = "hessdist"
ALONE = ""  # our way without known pairs
LIBRARIES = {
    OURS: ("slq_hessdist.py", (ALONE, "known")),
    "curvlinops": ("slq_curvlinops.py", ("xtrace", "hutch++", "hutchinson")),
    "hessian-eigenthings": ("slq_hessian_eigenthings.py", ("hutch++", "hutchinson")),
}
WIDTHS = 100  # of the smoothing, over the range of the spectrum
PEAK = 7  # widths around zero that do not count: beyond, the peak is less than an eigenvalue
REFERENCE_SEED = 10**6


def exact_trace(problem: Problem) -> float:
    """The trace of the Hessian of the mean loss, one sample after the other, in float64."""
    model = problem.model
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    total = 0.0
    for image in problem.images:

        def outputs(given: dict[str, torch.Tensor], image: torch.Tensor = image) -> torch.Tensor:
            return functional_call(model, given, (image[None],))[0]

        shares = outputs(parameters).softmax(0)
        for jacobian in jacrev(outputs)(parameters).values():
            rows = jacobian.flatten(1)
            rows = rows - shares @ rows
            total += float(shares.double() @ rows.double().square().sum(1))
    return total / len(problem.images)


class Measured:
    """Everything that was measured.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.runs: list[dict[str, Any]] = []
        with ExitStack() as stack:
            python = Path(sys.executable)
            self.unit = stack.enter_context(Worker(python, "worker.py", options))
            workers = {
                name: stack.enter_context(
                    Worker(python if name == OURS else options.peers_python, module, options)
                )
                for name, (module, _) in LIBRARIES.items()
            }
            self.about = {name: worker.about["versions"] for name, worker in workers.items()}
            self.solve = workers[OURS].ask(do="solve", seed=0)
            found = workers[OURS].ask(
                do="density",
                method="known",
                probes=options.reference_probes,
                steps=options.reference_steps,
                seed=REFERENCE_SEED,
            )
            self.reference = self._density(found)
            for turn in range(options.repeat):
                for name, worker in workers.items():
                    self._turn(turn, name, worker)

    def _turn(self, turn: int, name: str, worker: Worker) -> None:
        """A library's share of a turn: a density, and traces by all its methods."""
        options = self.options
        shape = {"probes": options.probes, "steps": options.steps}
        ways = LIBRARIES[OURS][1] if name == OURS else (ALONE,)
        commands = [{"do": "density", "method": way, **shape} for way in ways]
        for method in LIBRARIES[name][1]:
            commands += [{"do": "trace", "method": method, "products": p} for p in options.products]
        for command in commands:
            before = self.unit.ask(do="gradient", turns=options.gradients)["seconds"]
            run = worker.ask(
                **command, seed=100 * turn
            )  # of the probes of a run: seed, seed + 1 ...
            after = self.unit.ask(do="gradient", turns=options.gradients)["seconds"]
            self.runs.append(run | command | {"library": name, "gradients": before + after})
        print(f"turn {turn}: {name}", file=sys.stderr, flush=True)

    def _density(self, run: dict[str, Any]) -> SpectralDensity:
        return SpectralDensity(1, np.array(run["nodes"], float), np.array(run["weights"], float))

    def density_error(self, runs: list[dict[str, Any]]) -> float:
        """Of a run: that of all its library's probes, one by one, as so many probes have it."""
        low, high = self.reference.range()
        width = (high - low) / WIDTHS
        grid = np.linspace(low - 3 * width, high + 3 * width, 5 * WIDTHS)
        grid = grid[np.abs(grid) > PEAK * width]
        known, _ = self.reference.smoothed(grid, width)
        squares = []
        for density in map(self._density, runs):
            for nodes, weights in zip(density.nodes, density.weights, strict=True):
                alone, _ = SpectralDensity(1, nodes[None], weights[None]).smoothed(grid, width)
                squares.append(((alone - known) ** 2).sum() / (known**2).sum())
        return float(np.sqrt(np.mean(squares) / self.options.probes))


def seconds_for(error: float, errors: list[float], seconds: list[float]) -> float:
    """Seconds until an error, by those measured at several errors (the module's docstring)."""
    points = sorted(zip(errors, seconds, strict=True))
    for (small, slow), (large, fast) in pairwise(points):
        if small <= error <= large and small < large:
            share = np.log(error / large) / np.log(small / large)
            return float(fast * (slow / fast) ** share)
    near, there = min(points, key=lambda point: abs(np.log(point[0] / error)))
    return there * (near / error) ** 2


def _row(label: str, runs: list[dict[str, Any]], error: float) -> dict[str, str]:
    units = [statistics.median(run["gradients"]) for run in runs]
    gradients = [run["seconds"] / unit for run, unit in zip(runs, units, strict=True)]
    each = [statistics.median(run["product_seconds"]) for run in runs]
    counts = dict.fromkeys(str(len(run["product_seconds"])) for run in runs)
    return {
        "method": label,
        "products": " or ".join(counts),
        "product / gradient": f"{np.median(np.divide(each, units)):.2f}",
        "seconds": f"{statistics.median(run['seconds'] for run in runs):.1f}",
        "gradients": f"{statistics.median(gradients):.0f}",
        "peak, MiB": f"{max(run['peak_bytes'] for run in runs) / 2**20:.0f}",
        "relative error": f"{error:.1e}",
    }


def _over_ours(mine: list[dict[str, Any]], ours: list[dict[str, Any]]) -> float:
    """The median ratio of the seconds of runs of the same turn."""
    return statistics.median(a["seconds"] / b["seconds"] for a, b in zip(mine, ours, strict=True))


def density_rows(measured: Measured) -> list[dict[str, str]]:
    """The table of densities."""
    keys = [(OURS, "known"), *((name, ALONE) for name in LIBRARIES)]
    runs = {
        f"{name}, {way}".rstrip(", "): [
            run
            for run in measured.runs
            if run["do"] == "density" and (run["library"], run["method"]) == (name, way)
        ]
        for name, way in keys
    }
    errors = {name: measured.density_error(mine) for name, mine in runs.items()}
    table = []
    for name, mine in runs.items():
        ratio = _over_ours(mine, runs[OURS])
        equal = ratio * (errors[name] / errors[OURS]) ** 2
        more = {"seconds over ours": f"{ratio:.2f}", "at equal error": f"{equal:.2f}"}
        table.append(_row(name, mine, errors[name]) | more)
    return table


def trace_rows(measured: Measured, exact: float) -> list[dict[str, str]]:
    """The table of traces."""
    budgets = measured.options.products
    runs = {
        (name, method, p): [
            r
            for r in measured.runs
            if r["library"] == name and r["method"] == method and r.get("products") == p
        ]
        for name, (_, methods) in LIBRARIES.items()
        for method in methods
        for p in budgets
    }
    errors = {
        key: float(np.sqrt(np.mean([(r["value"] / exact - 1) ** 2 for r in mine])))
        for key, mine in runs.items()
    }
    middle = (OURS, ALONE, budgets[len(budgets) // 2])
    table = []
    for (name, method, p), mine in runs.items():
        ratio = _over_ours(mine, runs[OURS, ALONE, p])
        more = {"seconds over ours": f"{ratio:.2f}", "at equal error": ""}
        if p == middle[2]:
            keys = [(name, method, q) for q in budgets]
            seconds = [statistics.median(r["seconds"] for r in runs[key]) for key in keys]
            needed = seconds_for(errors[middle], [errors[key] for key in keys], seconds)
            own = statistics.median(r["seconds"] for r in runs[middle])
            more["at equal error"] = f"{needed / own:.2f}"
        table.append(_row(f"{name}, {method}".rstrip(", "), mine, errors[name, method, p]) | more)
    return table


def _print(title: str, table: list[dict[str, str]]) -> None:
    print(f"\n{title}\n")
    widths = {name: max(len(name), *(len(row[name]) for row in table)) for name in table[0]}
    print("| " + " | ".join(name.ljust(width) for name, width in widths.items()) + " |")
    print("| " + " | ".join("-" * width for width in widths.values()) + " |")
    for row in table:
        print("| " + " | ".join(row[name].ljust(width) for name, width in widths.items()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    problems.add_options(parser)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--reference-probes", type=int, default=60)
    parser.add_argument("--reference-steps", type=int, default=60)
    parser.add_argument("--products", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--repeat", type=int, default=5, help="turns")
    parser.add_argument("--gradients", type=int, default=3, help="measured around each run")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON)
    options = parser.parse_args()
    if any(count % 6 for count in options.products):
        raise SystemExit("--products: methods take halves and thirds of them, so multiples of 6")
    if not options.peers_python.is_file():
        raise SystemExit(f"there is no {options.peers_python}: run tests/benchmarks/peers/setup")
    exact = exact_trace(problems.read(options))
    measured = Measured(options)
    unit = statistics.median(s for run in measured.runs for s in run["gradients"])
    print(
        f"LeNet, {options.samples} images, batch {options.batch_size}, {options.threads} threads "
        f"each, {options.repeat} turns; a gradient {unit:.3f} s; the trace is {exact:.6g}"
    )
    print(
        f"the solve of the known pairs: {len(measured.solve['product_seconds'])} products, "
        f"{measured.solve['seconds']:.1f} s"
    )
    _print(
        f"Density, {options.probes} probes of {options.steps} steps; the reference has "
        f"{options.reference_probes} of {options.reference_steps}",
        density_rows(measured),
    )
    _print("Trace", trace_rows(measured, exact))
    print()
    for name, versions in measured.about.items():
        print(f"{name}: " + ", ".join(f"{what} {number}" for what, number in versions.items()))


if __name__ == "__main__":
    main()
