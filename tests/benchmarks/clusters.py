"""Products to eigenpairs whose last wanted value lies in a cluster, by several methods.

    python tests/benchmarks/clusters.py [--lenet5 256]

LA(20) and SA(3) to relative residuals of 1e-3. Prescribed spectra have a cluster of eigenvalues
around the 20th value: `size` values within a relative `width`. With --lenet5 it is the Hessian of
LeNet-5 at its initial parameters, over that many images of MNIST. The columns:

* ours: one Krylov space, whose basis grows from 46 to 69 vectors.
* larger: the same with a basis that grows to 92, to 138 and to 276 vectors (ncv).
* full: one Lanczos run that is never restarted, the fewest that one starting vector allows.
* block p: a block Krylov space of p random vectors that is never restarted; its products can be
  made p at a time.
* gd p: SLEPc's generalised Davidson with blocks of p, for LA(20) alone; "fails" is not converged
  after 500 restarts.

A star marks a method with a value that is wrong by more than 2e-3: it has missed some of the
cluster. (The values of `full` are not compared.)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from oracles import PrescribedSpectrum, full_lanczos

from hessdist.errors import HessdistError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import krylov_schur, petsc
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.ritz_space import orthonormalised
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

LARGEST, SMALLEST, TOLERANCE = 20, 3, 1e-3
Make = Callable[[], ShellMatrix]


def clustered(size: int, width: float, dimension: int = 3000) -> NDArray[np.float64]:
    """Outliers, `size` values around the 20th within a relative width, and a decaying bulk."""
    values = np.geomspace(17.5, 0.7, 20)
    below = LARGEST - size // 2
    cluster = 0.7 * np.linspace(1 + width / 2, 1 - width / 2, size)
    count = (dimension - below - size) // 2
    positive = 0.68 * np.arange(1, count + 1) ** -0.2  # slow, as at initial parameters
    rest = dimension - below - size - count
    negative = -0.4 * np.arange(1, rest + 1) ** -0.2
    return np.concatenate([np.maximum(values[:below], 0.72), cluster, positive, negative])


def with_basis(make: Make, most: int) -> tuple[int, NDArray[np.float64]]:
    """Products and values with a basis that grows up to `most` vectors."""
    before = krylov_schur.basis_sizes

    def sizes(wanted: int, dimension: int) -> tuple[int, int]:
        first, _ = before(wanted, dimension)
        return first, min(dimension, most)

    krylov_schur.basis_sizes = sizes
    try:
        found = extreme_eigenpairs(make(), LARGEST, SMALLEST, tolerance=TOLERANCE)
        return found.products, found.largest.values
    finally:
        krylov_schur.basis_sizes = before


def by_blocks(make: Make, width: int) -> tuple[int, NDArray[np.float64]]:
    """Products and values of a block Krylov space, until all pairs are within the tolerance."""
    shell, ranks = make(), Ranks()
    start = np.stack([random_entries(seed, 0, shell.size) for seed in range(width)])
    basis = last = orthonormalised(ranks, start, start[:0])
    images = np.empty((0, shell.size))
    while len(basis) < 400:
        images = np.concatenate([images, np.stack([shell.apply(v) for v in last])])
        projected = basis @ images.T
        values, turned = np.linalg.eigh((projected + projected.T) / 2)
        if len(values) > LARGEST + SMALLEST:
            rows = np.r_[:SMALLEST, len(values) - LARGEST : len(values)]
            rest = turned[:, rows].T @ images - values[rows, None] * (turned[:, rows].T @ basis)
            if (np.linalg.norm(rest, axis=1) <= TOLERANCE * np.abs(values[rows])).all():
                break
        last = orthonormalised(ranks, images[-len(last) :].copy(), basis)
        basis = np.concatenate([basis, last])
    return shell.products, values[: -LARGEST - 1 : -1]


def by_davidson(make: Make, width: int) -> int | str:
    """Products of SLEPc's generalised Davidson method, for the upper end alone."""
    PETSc, _ = petsc.initialise()
    options = PETSc.Options()
    given = {"eps_type": "gd", "eps_gd_blocksize": width, "eps_ncv": 69}
    for name, value in given.items():
        options.setValue(name, value)
    try:
        found = extreme_eigenpairs(make(), LARGEST, 0, tolerance=TOLERANCE)
        return found.products if found.converged else "fails"
    except HessdistError as error:
        return f"({type(error).__name__})"
    finally:
        for name in given:
            options.delValue(name)


def line(name: str, make: Make, multiply: Any) -> None:
    """Print the products of every method, with a star if a value is wrong."""
    pairs = extreme_eigenpairs(make(), LARGEST, SMALLEST, tolerance=TOLERANCE)
    found = [(pairs.products, pairs.largest.values)]
    found += [with_basis(make, most) for most in (92, 138, 276)]
    start = random_entries(0, 0, make().size)
    full = full_lanczos(multiply, start, LARGEST, SMALLEST, TOLERANCE)
    found += [by_blocks(make, width) for width in (2, 4, 8)]
    known = getattr(multiply, "eigenvalues", None)
    # The best values of all methods, where the exact ones are not known.
    exact = np.sort(known)[::-1] if known is not None else np.max([v for _, v in found], axis=0)
    wrong = [np.abs(v / exact[:LARGEST] - 1).max() > 2 * TOLERANCE for _, v in found]
    cells = [f"{count}{'*' * bool(bad)}" for (count, _), bad in zip(found, wrong, strict=True)]
    cells.insert(4, f"{full}")
    cells += [str(by_davidson(make, width)) for width in (1, 4)]
    print(f"{name:26}" + "".join(f"{cell:>8}" for cell in cells), flush=True)


def lenet5(images: int) -> ShellMatrix:
    """Make the Hessian of LeNet-5 at its initial parameters."""
    from torch import nn

    from hessdist.objective import Workload
    from hessdist.spectrum.shell import curvature_matrix
    from hessdist.workload.datasets import mnist
    from hessdist.workload.models import lenet5 as network

    torch.manual_seed(0)
    workload = Workload(network(), nn.CrossEntropyLoss(), mnist(), np.arange(images))
    objective = workload.on(Ranks())
    return curvature_matrix(objective, "hessian", objective.weight())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lenet5", type=int, default=0, metavar="IMAGES")
    images = parser.parse_args().lenet5
    heads = ["ours", "ncv 92", "138", "276", "full", "block 2", "4", "8", "gd 1", "4"]
    print(" " * 26 + "".join(f"{head:>8}" for head in heads))
    for size, width in ((1, 0.0), (4, 1e-2), (4, 1e-3), (4, 0.0), (8, 1e-2), (8, 1e-3), (16, 1e-2)):
        operator = PrescribedSpectrum(clustered(size, width))
        name = f"{size} values within {width:g}" if size > 1 else "no cluster"
        line(name, lambda operator=operator: ShellMatrix(operator, Ranks()), operator)  # type: ignore[misc]
    if images:
        shell = lenet5(images)

        def fresh() -> ShellMatrix:
            shell.products = 0
            return shell

        def multiply(v: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(shell.apply(v.numpy()))

        line(f"LeNet-5, {images} images", fresh, multiply)


if __name__ == "__main__":
    main()
