"""A warm start changes what a sweep costs, and not what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Run

import hessdist


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_warm_start_finds_the_same_eigenvalues(run: Run, job: Path, ranks: int) -> None:
    assert run("train", str(job)).returncode == 0
    for name in ("cold", "warm"):
        done = run(
            "spectrum", str(job), "--set", f"output.path={name}.h5",
            "--set", f"spectrum.warm_start={str(name == 'warm').lower()}", ranks=ranks,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    cold, warm = (hessdist.open_run(job.parent / f"{name}.h5") for name in ("cold", "warm"))
    assert warm.fingerprint == cold.fingerprint
    for name in ("eigenvalues_largest", "eigenvalues_smallest"):
        # Within what the tolerance leaves: its square.
        assert getattr(warm, name) == pytest.approx(getattr(cold, name), rel=1e-5)
    first = (warm[0].eigenvalues_largest, cold[0].eigenvalues_largest)
    assert np.array_equal(*first)  # nothing to start from yet
    assert not np.array_equal(warm[40].eigenvalues_largest, cold[40].eigenvalues_largest)
