"""Language models beside hessian-eigenthings: a whole solve, and single products of H and G.

    tests/benchmarks/peers/setup
    python tests/benchmarks/peers/language.py [--turns 3] [--peers-python PATH]

A solve is LA(20) and SA(3) of H to a relative residual of 1e-3, of a network like GPT-2 with 1.24 M
parameters after 100 steps of AdamW, over 24 sequences of 128 tokens. A product is that of a network
with a vocabulary of 32,768, over 1,024 tokens. Each is a process of its own with one thread, and
they take turns. CPU seconds begin with the network and the tokens in memory; those of the process
have its imports as well. The residuals of all pairs are checked by a product in float64 that is
nobody's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import language_problem
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE.parents[2] / ".venv-peers" / "bin" / "python"
OURS, THEIRS = "hessdist", "hessian-eigenthings"
MODULES = {OURS: "language_hessdist.py", THEIRS: "language_hessian_eigenthings.py"}
TASKS = ("solve", "hessian", "gauss_newton")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--steps", type=int, nargs=2, help="of LA and SA for the peer; found if they are not given"
    )
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON)
    options = parser.parse_args()
    pythons = {OURS: Path(sys.executable)}
    if missing := _missing(options.peers_python):
        print(f"{THEIRS} is skipped: {missing}; run tests/benchmarks/peers/setup")
    else:
        pythons[THEIRS] = options.peers_python
    with tempfile.TemporaryDirectory() as folder:
        language_problem.write(Path(folder), options.tasks)
        for task in options.tasks:
            rows = _turns(pythons, Path(folder), task, options.turns, options.steps)
            _print_solve(rows, Path(folder)) if task == "solve" else _print_products(rows, task)


def _missing(python: Path) -> str:
    """Say what the peer lacks; empty if it can be measured."""
    if not python.is_file():
        return f"there is no {python.name} in {python.parent.parent.name}"
    imports = "import hessian_eigenthings, transformers"
    done = subprocess.run([python, "-c", imports], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def _turns(
    pythons: dict[str, Path], folder: Path, task: str, turns: int, known: list[int] | None
) -> dict[str, list[dict[str, Any]]]:
    """Let the solvers take turns, each time in a new process."""
    steps: list[str] = []
    if task == "solve" and THEIRS in pythons:
        found = known or _one(pythons[THEIRS], THEIRS, folder, "steps")
        steps = ["--steps", *map(str, found)]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for turn in range(turns):
        for name, python in pythons.items():
            rows[name].append(_one(python, name, folder, task, *(steps if name == THEIRS else ())))
            print(f"turn {turn}: {name}: {rows[name][-1]}", file=sys.stderr, flush=True)
    return rows


def _one(python: Path, name: str, folder: Path, task: str, *words: str) -> Any:
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    done = subprocess.run(
        [str(python), str(HERE / MODULES[name]), str(folder), task, *words],
        env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def _spread(rows: list[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{statistics.median(values):.2f} ({min(values):.2f} ... {max(values):.2f})"


def _print_solve(rows: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    form = "{:<21}{:>10}  {:>26}{:>20}{:>10}{:>11}"
    print("\nLA(20) and SA(3) of H, 1.24 M parameters, 24 sequences of 128 tokens")
    print(
        form.format("", "products", "CPU s of the solve", "of the process", "peak MiB", "residual")
    )
    for name, mine in rows.items():
        worst = _worst_residual(folder, folder / f"{Path(MODULES[name]).stem}.npz")
        print(
            form.format(
                name, mine[0]["products"], _spread(mine, "cpu"), f"{_median(mine, 'process'):.1f}",
                f"{_median(mine, 'peak') / 2**20:.0f}", f"{worst:.1e}",
            )
        )  # fmt: skip
    _print_ratio(rows, "cpu")


def _print_products(rows: dict[str, list[dict[str, Any]]], task: str) -> None:
    form = "{:<21}{:>26}{:>18}{:>10}{:>12}   {}"
    print(f"\nOne product ({task}), 1.08 M parameters, 32,768 words, 8 sequences of 128 tokens")
    print(form.format("", "CPU s of the first", "of each next", "peak MiB", "above start", "‖Av‖"))
    for name, mine in rows.items():
        print(
            form.format(
                name, _spread(mine, "cpu"), f"{_median(mine, 'next'):.2f}",
                f"{_median(mine, 'peak') / 2**20:.0f}", f"{_median(mine, 'above') / 2**20:.0f}",
                f"{mine[0]['norm']:.6g}",
            )
        )  # fmt: skip
    _print_ratio(rows, "cpu")


def _print_ratio(rows: dict[str, list[dict[str, Any]]], name: str) -> None:
    if THEIRS in rows:
        print(f"theirs / ours: {_median(rows[THEIRS], name) / _median(rows[OURS], name):.2f}")


def _worst_residual(folder: Path, path: Path) -> float:
    """‖Hv − λv‖ / |λ| of the worst pair, by double backward in float64."""
    model, ids = language_problem.read(folder, "solve")
    parameters = list(model.double().parameters())
    loss = model(input_ids=ids, labels=ids).loss
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([piece.reshape(-1) for piece in gradient])
    worst = 0.0
    pairs = np.load(path)
    for end in ("largest", "smallest"):
        for value, vector in zip(pairs[f"values_{end}"], pairs[f"vectors_{end}"], strict=True):
            v = torch.from_numpy(vector.astype(np.float64))
            v /= v.norm()
            pieces = torch.autograd.grad(flat @ v, parameters, retain_graph=True)
            image = torch.cat([piece.reshape(-1) for piece in pieces])
            worst = max(worst, float((image - value * v).norm()) / abs(float(value)))
    return worst


if __name__ == "__main__":
    main()
