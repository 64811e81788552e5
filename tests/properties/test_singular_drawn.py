"""Both ends of matrices of low rank, whose Krylov spaces end early."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PrescribedSpectrum
from properties.test_losses_drawn import fixed

from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix


@settings(fixed, max_examples=150)
@given(
    size=st.integers(20, 60),
    rank=st.integers(1, 20),
    largest=st.integers(1, 4),
    single=st.booleans(),
    recomputed=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_the_largest_of_a_matrix_of_low_rank(
    size: int, rank: int, largest: int, single: bool, recomputed: bool, seed: int
) -> None:
    """Of a multiple eigenvalue one Krylov space owes one: zero is asked for once."""
    eigenvalues = np.zeros(size)
    eigenvalues[:rank] = np.random.default_rng(seed).uniform(0.05, 1, rank)
    exact, wanted = np.sort(eigenvalues)[::-1], min(largest, rank)
    dtype = torch.float32 if single else torch.float64
    shell = ShellMatrix(PrescribedSpectrum(eigenvalues, 1.0, dtype), Ranks(None))
    found = extreme_eigenpairs(
        shell,
        wanted,
        1,
        tolerance=1e-4 if single else 1e-6,
        residuals="recomputed" if recomputed else "recorded",
    )
    close = 2e-4 if single else 1e-6
    assert found.largest.values == pytest.approx(exact[:wanted], abs=close)
    assert found.smallest.values == pytest.approx(exact[-1:], abs=close)


@settings(fixed, max_examples=100)
@given(
    copies_below=st.integers(1, 12),
    copies_above=st.integers(1, 12),
    between=st.integers(0, 12),
    largest=st.integers(1, 3),
    smallest=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_copies_at_both_ends(
    copies_below: int, copies_above: int, between: int, largest: int, smallest: int, seed: int
) -> None:
    """A pair that is said to have converged is the one of its place, or a copy beside it."""
    inner = np.random.default_rng(seed).uniform(-0.8, 0.8, between)
    eigenvalues = np.concatenate([np.full(copies_below, -1.0), inner, np.full(copies_above, 1.0)])
    if largest + smallest > len(eigenvalues):
        return
    distinct = np.unique(eigenvalues)
    found = extreme_eigenpairs(
        ShellMatrix(PrescribedSpectrum(eigenvalues), Ranks(None)), largest, smallest, tolerance=1e-6
    )
    for end, outermost in ((found.largest, distinct[::-1]), (found.smallest, distinct)):
        values = end.values[end.converged]
        if len(values):
            assert values[0] == pytest.approx(outermost[0], abs=1e-6)
        # No distinct eigenvalue is passed over.
        for value in values[1:]:
            place = int(np.argmin(np.abs(outermost - value)))
            assert np.abs(values - outermost[max(place - 1, 0)]).min() < 1e-6
