"""Products to both ends of prescribed spectra, beside one Lanczos run that is never restarted.

    python tests/benchmarks/both_ends.py

LA(20) and SA(3) to a relative residual of 1e-3, of spectra with 20 outliers and a decaying bulk,
the negative end scaled down, as it is late in training. 20 starting vectors each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from oracles import PrescribedSpectrum, full_lanczos, outliers_and_bulk

from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries

STARTS = range(20)


def _range(counts: list[int]) -> str:
    return f"{min(counts)}-{max(counts)}"


def main() -> None:
    print("negative end | both ends | full Lanczos | largest ratio | largest error | two solves")
    for negative in (1.0, 0.1, 0.03, 0.01):
        eigenvalues = outliers_and_bulk(negative)
        exact = np.sort(eigenvalues)
        operator = PrescribedSpectrum(eigenvalues)
        ours, full, apart, errors = [], [], [], []
        for seed in STARTS:
            pairs = extreme_eigenpairs(ShellMatrix(operator, Ranks()), 20, 3, seed=seed)
            assert pairs.converged
            found = np.concatenate([pairs.smallest.values, pairs.largest.values[::-1]])
            errors.append(np.abs(found / np.concatenate([exact[:3], exact[-20:]]) - 1).max())
            ours.append(pairs.products)
            full.append(full_lanczos(operator, random_entries(seed, 0, operator.size), 20, 3, 1e-3))
            ends = ((20, 0), (0, 3))
            apart.append(
                sum(
                    extreme_eigenpairs(ShellMatrix(operator, Ranks()), *end, seed=seed).products
                    for end in ends
                )
            )
        ratio = max(o / f for o, f in zip(ours, full, strict=True))
        print(
            f"{negative:12g} | {_range(ours):9} | {_range(full):12} | "
            f"{ratio:13.2f} | {max(errors):13.1e} | {_range(apart)}"
        )


if __name__ == "__main__":
    main()
