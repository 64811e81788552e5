"""hessdist beside what one would take instead: both ends of one Hessian, measured in one run.

    tests/benchmarks/peers/setup
    python tests/benchmarks/peers/compare.py [--samples 512] [--repeat 3] [--json PATH]

LA(20) and SA(3) to a relative residual of 1e-3. Every solver is a process of its own, the peers'
with the interpreter of .venv-peers; one works at a time, they take turns, and plain gradients are
measured between any two solves, so that other work on the machine meets all alike. A solve counts
in the gradients measured just before and just after it. The residuals of all pairs are checked
outside of the timed part, by one float64 product that is nobody's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import problem as problems
from residuals import ENDS, Residuals

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parents[2] / ".venv-peers" / "bin" / "python"
OURS = "hessdist"
DRIFT = 1.25  # of the gradient over a solve, which no solve causes
REPEATED = 0.5  # two vectors of one pair, as a Lanczos run without orthogonalisation gives them
SOLVERS = {
    OURS: "hessdist_both_ends.py",
    "hessian-eigenthings": "hessian_eigenthings_lanczos.py",
    "curvlinops": "curvlinops_eigsh.py",
    "PyHessian": "pyhessian_power.py",
}


class Worker:
    """A process of worker.py's protocol; started by `with`, ended by its end.

    Args:
        interpreter: The Python of its environment.
        module: The file's name.
        options: Of problem.py.
    """

    def __init__(self, interpreter: Path, module: str, options: argparse.Namespace) -> None:
        self.module = module
        arguments = [str(interpreter), str(HERE / module)]
        for name in ("samples", "batch_size", "threads", "seed", "limit", "checkpoint"):
            if (value := getattr(options, name)) is not None:
                arguments += [f"--{name.replace('_', '-')}", str(value)]
        threads = {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "OPENBLAS")}
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
        )

    def __enter__(self) -> Worker:
        self.about = self._answer()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # at which it ends by itself
        try:
            self._process.wait(0 if kind else 30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Give a command, wait for the answer."""
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.module} ended, status {self._process.wait()}")
        return json.loads(line)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was measured: about the workers, and every run."""
    runs: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = Path(sys.executable)
        unit = stack.enter_context(Worker(python, "worker.py", options))
        workers = {
            name: stack.enter_context(
                Worker(python if name == OURS else options.peers_python, SOLVERS[name], options)
            )
            for name in options.only
        }
        check = Residuals(problems.read(options))
        path = folder / "pairs.npz"

        def gradients() -> list[float]:
            return unit.ask(do="gradient", turns=options.gradients)["seconds"]

        given_up: set[str] = set()
        for turn in range(options.repeat):
            before = gradients()
            for name in workers:
                if name in given_up:
                    continue
                run = {"turn": turn, "solver": name} | workers[name].ask(do="solve", path=str(path))
                after = gradients()
                run["gradient_seconds"] = before + after
                before = after
                runs.append(run | check(path))
                path.unlink()
                if not run["finished"]:
                    given_up.add(name)
                _tell(runs[-1])
        about = {name: worker.about for name, worker in workers.items()}
    return {"unit": unit.about, "workers": about, "runs": runs}


def _tell(run: dict[str, Any]) -> None:
    print(
        f"turn {run['turn']}: {run['solver']}: {run['seconds']:.1f} s, products {run['products']}"
        + ("" if run["finished"] else ", not finished"),
        file=sys.stderr,
        flush=True,
    )


# -- the table ---------------------------------------------------------------------------------


def _unit(run: dict[str, Any]) -> float:
    return statistics.median(run["gradient_seconds"])


def _halves(values: list[float]) -> tuple[list[float], list[float]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]


def _worst(run: dict[str, Any], end: str) -> float:
    return max(run[f"residuals_{end}"], default=float("nan"))


def _away(run: dict[str, Any], ours: dict[str, Any]) -> float:
    """The largest relative difference of a value from ours."""
    both = [(run[f"values_{end}"], ours[f"values_{end}"]) for end in ENDS]
    return max(abs(a / b - 1) for here, there in both for a, b in zip(here, there, strict=True))


def spread(values: list[float], form: str) -> str:
    """A median with its smallest and largest value; the value where there is one."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}} ... {max(values):{form}})"


COLUMNS = (
    "solver",
    "products",
    "product / gradient",
    "solve, seconds",
    "solve / gradient",
    "solve / ours",
    "peak memory, MiB",
    "worst residual LA, SA",
    "values from ours",
)


def rows(runs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The table's rows, of text."""
    ours = {run["turn"]: run for run in runs if run["solver"] == OURS}
    table = []
    for name in dict.fromkeys(run["solver"] for run in runs):
        mine = [run for run in runs if run["solver"] == name]
        finished = all(run["finished"] for run in mine)
        beside = [(run, ours[run["turn"]]) for run in mine if run["turn"] in ours]

        def over(
            measured: Callable[[dict[str, Any]], float],
            form: str,
            mine: list[dict[str, Any]] = mine,
        ) -> str:
            return spread([measured(run) for run in mine], form)

        more = "" if finished else "> "
        counts = dict.fromkeys(
            " + ".join(str(count) for count in run["products"].values()) for run in mine
        )
        ratios = [run["seconds"] / other["seconds"] for run, other in beside]
        found = sum(len(mine[0][f"values_{end}"]) for end in ENDS)
        wanted = problems.LARGEST + problems.SMALLEST
        products = more + " or ".join(counts)
        table.append({
            "solver": name if finished else f"{name}, not finished: {found} of {wanted}",
            "products": products,
            "product / gradient": over(
                lambda run: statistics.median(run["product_seconds"]) / _unit(run), ".2f"
            ),
            "solve, seconds": more + over(lambda run: run["seconds"], ".1f"),
            "solve / gradient": more + over(lambda run: run["seconds"] / _unit(run), ".0f"),
            "solve / ours": more + spread(ratios, ".2f") if ratios else "",
            "peak memory, MiB": over(lambda run: run["peak_bytes"] / 2**20, ".0f"),
            "worst residual LA, SA": ", ".join(
                f"{max(_worst(run, end) for run in mine):.1e}" if mine[0][f"values_{end}"] else "-"
                for end in ENDS
            ),
            "values from ours": (
                f"{max(_away(run, other) for run, other in beside):.0e}"
                if beside and finished and name != OURS
                else ""
            ),
        })
    return table


def _print(measured: dict[str, Any], table: list[dict[str, str]]) -> None:
    settings = measured["settings"]
    units = [seconds for run in measured["runs"] for seconds in run["gradient_seconds"]]
    print(
        f"LeNet, {settings['samples']} images, batch {settings['batch_size']}, "
        f"{settings['threads']} threads each, {settings['repeat']} turns; "
        f"a gradient {spread(units, '.3f')} s\n"
    )
    widths = {name: max(len(name), *(len(row[name]) for row in table)) for name in COLUMNS}
    print("| " + " | ".join(name.ljust(width) for name, width in widths.items()) + " |")
    print("| " + " | ".join("-" * width for width in widths.values()) + " |")
    for row in table:
        print("| " + " | ".join(row[name].ljust(width) for name, width in widths.items()) + " |")
    print()
    for name, about in measured["workers"].items():
        versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
        notes = ", ".join(f"{what} {value}" for what, value in about["notes"].items())
        print(f"{name}: {versions}; {notes}")
    for run in measured["runs"]:
        before, after = (statistics.median(part) for part in _halves(run["gradient_seconds"]))
        if max(before, after) > DRIFT * min(before, after):
            print(
                f"BEWARE: turn {run['turn']}: {run['solver']}: other work on the machine: a "
                f"gradient took {before:.3f} s before it and {after:.3f} s after"
            )
        worst = max((_worst(run, end) for end in ENDS if run[f"values_{end}"]), default=0)
        overlap = max(run[f"overlap_{end}"][0] for end in ENDS)
        if worst > problems.TOLERANCE or overlap > REPEATED:
            print(
                f"BEWARE: turn {run['turn']}: {run['solver']}: residual {worst:.1e}, "
                f"largest product of two unit vectors {overlap:.1e}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    problems.add_options(parser)
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    parser.add_argument("--gradients", type=int, default=5, help="measured between any two solves")
    parser.add_argument("--only", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON)
    parser.add_argument("--json", type=Path, help="where everything measured is written")
    options = parser.parse_args()
    if set(options.only) - {OURS} and not options.peers_python.is_file():
        raise SystemExit(f"there is no {options.peers_python}: run tests/benchmarks/peers/setup")
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    measured = {"settings": json.loads(json.dumps(settings, default=str))} | measure(options)
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    _print(measured, rows(measured["runs"]))


if __name__ == "__main__":
    main()
