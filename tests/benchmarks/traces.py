"""Products of a trace at equal error, beside the estimators of other packages, on dense matrices.

    python tests/benchmarks/traces.py [--seeds 100] [--products 24 48]

Matrices are the Hessians of a LeNet of 1,442 parameters (256 images of MNIST) and of a transformer
of 2,376 (48 sequences), both trained, and prescribed spectra in a random basis. The others are
Hutchinson's estimator and Hutch++ with random signs, and XTrace with normalised normal vectors, in
NumPy as curvlinops and hessian-eigenthings have them. For each of ours the table has the root mean
square error over the seeds, relative to the trace, and the products with which the best of the
others has the same error: between measured numbers of products by a power law, and beyond them at
the Monte Carlo rate, products ~ error⁻². The ratio is ours over that. With known pairs, LA(20) and
SA(3) to a relative residual of 1e-3, there is a second ratio that counts the products of the solve.
"After a density" the Krylov space of a probe of 60 steps is there for nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "spectrum")]

from oracles import outliers_and_bulk  # noqa: E402
from test_known_pairs import AsMatrix  # noqa: E402

from hessdist.parallel.ranks import Ranks  # noqa: E402
from hessdist.spectrum.extreme import extreme_eigenpairs  # noqa: E402
from hessdist.spectrum.known_pairs import known_pairs  # noqa: E402
from hessdist.spectrum.lanczos import quadrature_and_space  # noqa: E402
from hessdist.spectrum.shell import ShellMatrix  # noqa: E402
from hessdist.spectrum.trace import estimate_trace  # noqa: E402
from hessdist.workload.datasets import mnist  # noqa: E402

Matrix = NDArray[np.float64]
BUDGETS = (6, 12, 24, 48, 96, 192)
DENSITY = 60  # steps of the density whose last space is used

# -- the others ------------------------------------------------------------------------------


def hutchinson(matrix: Matrix, products: int, rng: np.random.Generator) -> float:
    """Girard 1989, Hutchinson 1990."""
    signs = np.sign(rng.standard_normal((len(matrix), products)))
    return float((signs * (matrix @ signs)).sum() / products)


def hutch_plus_plus(matrix: Matrix, products: int, rng: np.random.Generator) -> float:
    """Meyer, Musco, Musco and Woodruff 2021, a third of the products for each part."""
    third = products // 3
    signs = np.sign(rng.standard_normal((len(matrix), 2 * third)))
    basis, _ = np.linalg.qr(matrix @ signs[:, :third])
    rest = signs[:, third:] - basis @ (basis.T @ signs[:, third:])
    inside = float((basis * (matrix @ basis)).sum())
    return inside + float((rest * (matrix @ rest)).sum() / third)


def xtrace(matrix: Matrix, products: int, rng: np.random.Generator) -> float:
    """Epperly, Tropp and Webber 2024, with test vectors normalised in the complement."""
    size, count = len(matrix), products // 2
    test = rng.standard_normal((size, count))
    test *= np.sqrt(size) / np.linalg.norm(test, axis=0)
    basis, triangle = np.linalg.qr(matrix @ test)
    inner, overlaps = basis.T @ (matrix @ basis), basis.T @ test
    lost = np.linalg.inv(triangle).T
    lost /= np.linalg.norm(lost, axis=0)
    kept = overlaps - lost * (lost * overlaps).sum(0)
    outside = ((overlaps - 2 * kept) * triangle).sum(0) + (kept * (inner @ kept)).sum(0)
    within = np.trace(inner) - (lost * (inner @ lost)).sum(0)
    scale = (size - count + 1) / (size - (kept**2).sum(0))
    return float((within + scale * outside).mean())


OTHERS = {"Hutchinson": hutchinson, "Hutch++": hutch_plus_plus, "XTrace": xtrace}

# -- matrices --------------------------------------------------------------------------------


def matrices() -> Iterator[tuple[str, Matrix]]:
    """Names and matrices."""
    yield "LeNet", _lenet()
    yield "transformer", _transformer()
    numbers = np.arange(1.0, 601)
    spectra = {
        "outliers and bulk": outliers_and_bulk(0.3, 600),
        "power law 1/j": 1 / numbers,
        "power law j^-0.5": numbers**-0.5,
        "flat, 1 to 2": np.linspace(1, 2, 600),
    }
    basis, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((600, 600)))
    for name, values in spectra.items():
        yield name, (basis * values) @ basis.T


def _hessian(model: nn.Module, loss: Callable[[], Tensor], steps: int, rate: float) -> Matrix:
    """Train by Adam, then the Hessian, row by row."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss(), parameters, create_graph=True)
    gradient = torch.cat([piece.reshape(-1) for piece in first])
    rows = []
    for unit in torch.eye(len(gradient)).split(64):
        block = torch.autograd.grad(
            gradient, parameters, unit.double(), retain_graph=True, is_grads_batched=True
        )
        rows.append(torch.cat([piece.flatten(1) for piece in block], 1))
    whole: Matrix = torch.cat(rows).numpy()
    return (whole + whole.T) / 2


def _lenet() -> Matrix:
    torch.manual_seed(0)
    data = mnist()
    images = torch.stack([torch.as_tensor(data[i][0]) for i in range(256)]).double()
    labels = torch.tensor([int(data[i][1]) for i in range(256)])
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10)),
    ).double()
    return _hessian(model, lambda: nn.functional.cross_entropy(model(images), labels), 150, 3e-3)


class _Transformer(nn.Module):
    """One layer, one head, 24 tokens."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(24, width), nn.Parameter(torch.zeros(16, width))
        self.attend, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 36), nn.GELU(), nn.Linear(36, width))
        self.head = nn.Linear(width, 24)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places
        q, k, v = self.attend(self.first(x)).chunk(3, -1)
        later = torch.triu(torch.ones(16, 16), 1).bool()
        scores = (q @ k.transpose(1, 2) / 12**0.5).masked_fill(later, -torch.inf)
        x = x + self.out(scores.softmax(-1) @ v)
        return self.head(x + self.feed(self.second(x)))


def _transformer() -> Matrix:
    torch.manual_seed(0)
    ids = torch.randint(0, 24, (48, 17))
    for place in range(2, 17):
        told = torch.rand(48) < 0.7
        ids[told, place] = (ids[told, place - 1] + 2 * ids[told, place - 2]) % 24
    model = _Transformer().double()

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    return _hessian(model, loss, 200, 1e-2)


# -- the comparison --------------------------------------------------------------------------


def products_for(error: float, budgets: Sequence[int], errors: Sequence[float]) -> float:
    """Products until an error, by those measured at several (the module's docstring)."""
    points = list(zip(budgets, errors, strict=True))
    for (few, large), (many, small) in pairwise(points):
        if small <= error <= large and small < large:
            share = np.log(error / large) / np.log(small / large)
            return float(few * (many / few) ** share)
    end, there = points[-1] if error < errors[-1] else points[0]
    return float(end * (there / error) ** 2)


def compare(name: str, matrix: Matrix, seeds: int, budgets: Sequence[int]) -> None:
    """Print the rows of a matrix."""
    exact, ranks = float(np.trace(matrix)), Ranks()
    shell = ShellMatrix(AsMatrix(matrix), ranks)
    solved = extreme_eigenpairs(shell, 20, 3)
    ends = (solved.largest, solved.smallest)
    fields = ("values", "residuals", "vectors")
    columns = [np.concatenate([getattr(end, field) for end in ends]) for field in fields]
    known = known_pairs(ranks, *columns)

    def rms(estimate: Callable[[int], float]) -> float:
        away = [estimate(seed) / exact - 1 for seed in range(seeds)]
        return float(np.sqrt(np.mean(np.square(away))))

    there = [n for n in BUDGETS if n <= len(matrix) // 3]
    errors = {
        other: [rms(lambda s, n=n, f=f: f(matrix, n, np.random.default_rng(s))) for n in there]
        for other, f in OTHERS.items()
    }
    for other, row in errors.items():
        measured = ", ".join(f"{n}: {error:.2e}" for n, error in zip(there, row, strict=True))
        print(f"{name}: {other} {measured}", flush=True)
    _, space = quadrature_and_space(shell, probes=1, steps=DENSITY, seed=10**6)
    _, both = quadrature_and_space(shell, probes=1, steps=DENSITY, seed=10**6, known=known)
    ways = {
        "alone": (None, None),
        f"{len(known)} known pairs": (known, None),
        "after a density": (None, space),
        "both": (known, both),
    }
    for budget in budgets:
        for way, (pairs, krylov) in ways.items():
            found = [
                estimate_trace(shell, products=budget, seed=s, known=pairs, space=krylov)
                for s in range(seeds)
            ]
            away = np.array([one.value for one in found]) - exact
            error = float(np.sqrt(np.mean(away**2))) / abs(exact)
            within = np.mean(np.abs(away) <= [one.error for one in found])
            best = min(products_for(error, there, row) for row in errors.values())
            solve = f"{(budget + solved.products) / best:9.2f}" if pairs else " " * 9
            steps = np.mean([one.krylov for one in found])
            print(
                f"| {name:17} | {budget:3} | {way:16} | {error:.2e} | {steps:4.1f} | {within:.2f} "
                f"| {best:8.1f} | {budget / best:6.3f} | {solve} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--products", type=int, nargs="+", default=[24, 48])
    parser.add_argument("--matrices", nargs="+", help="only these")
    options = parser.parse_args()
    print(
        "| matrix | products | ours | error | Krylov | within 1 error | best other's products | "
        "ratio | with the solve |"
    )
    for name, matrix in matrices():
        if options.matrices is None or name in options.matrices:
            compare(name, matrix, options.seeds, options.products)


if __name__ == "__main__":
    main()
