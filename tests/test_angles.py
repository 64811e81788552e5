"""Angles between eigenspaces: against SciPy's, and on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.angles import angles_between, principal_angles


def orthonormal(seed: int, count: int, size: int = 40) -> np.ndarray:
    draw = np.random.default_rng(seed).standard_normal((size, count))
    return np.linalg.qr(draw)[0].T


@pytest.mark.mpi(ranks=[1, 2, 3], timeout=60)
def test_principal_angles() -> None:
    for tilt in (0.0, 1e-9, 1e-5, 0.1, 10.0):
        check_principal_angles(tilt)


def check_principal_angles(tilt: float) -> None:
    one = orthonormal(0, 4)
    other = np.linalg.qr((one + tilt * orthonormal(1, 4))[:3].T)[0].T
    ranks = Ranks()
    begin, end = ranks.shard(40)
    found = principal_angles(one[:, begin:end], other[:, begin:end], ranks.sum)
    assert found == pytest.approx(np.sort(subspace_angles(one.T, other.T)), rel=1e-6, abs=3e-8)
    swapped = principal_angles(other[:, begin:end], one[:, begin:end], ranks.sum)
    assert swapped == pytest.approx(found, rel=1e-6, abs=3e-8)


@pytest.mark.mpi(ranks=[1, 3], timeout=60)
def test_angles_between_vectors() -> None:
    one, ranks = orthonormal(0, 3), Ranks()
    other = np.stack([2 * one[1], one[0] + one[2], -one[0], np.zeros(40)])
    begin, end = ranks.shard(40)
    found = np.degrees(angles_between(one[:, begin:end], other[:, begin:end], ranks.sum))
    nowhere = np.nan
    expected = [[90, 45, 0, nowhere], [0, 90, 90, nowhere], [90, 45, 90, nowhere]]
    assert found == pytest.approx(np.array(expected), abs=1e-5, nan_ok=True)
