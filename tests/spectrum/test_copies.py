"""Repeated eigenvalues: all copies are found, at both ends, on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from oracles import PrescribedSpectrum
from torch import nn
from torch.utils.data import TensorDataset

import hessdist
from hessdist.objective import _has_equal_rows
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix


def repeated(seed: int) -> np.ndarray:
    """Draw a spectrum of 500 values, those of both ends repeated."""
    rng = np.random.default_rng(seed)
    ends = rng.uniform(2, 9, 6) * np.array([1, 1, 1, 1, -1, -1])
    copies = np.repeat(ends, rng.integers(1, 5, 6))
    return np.concatenate([copies, rng.uniform(-1, 1, 500 - len(copies))])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_copies_are_found(seed: int, dtype: torch.dtype) -> None:
    exact = np.sort(repeated(seed))
    shell = ShellMatrix(PrescribedSpectrum(exact, dtype=dtype), Ranks())
    shell.repeats = True
    pairs = extreme_eigenpairs(shell, 8, 3, seed=seed, tolerance=1e-4)
    assert pairs.converged
    assert pairs.largest.values == pytest.approx(exact[::-1][:8], rel=1e-5)
    assert pairs.smallest.values == pytest.approx(exact[:3], rel=1e-5)
    vectors = np.concatenate([pairs.largest.vectors, pairs.smallest.vectors])
    assert vectors @ vectors.T == pytest.approx(np.eye(11), abs=1e-3)


@pytest.mark.mpi(ranks=[2, 3], timeout=60, unit="s")
def test_copies_on_several_ranks(mpi_ranks: int, comm: Any) -> None:
    exact = np.sort(repeated(1))
    shell = ShellMatrix(PrescribedSpectrum(exact, share=1 / mpi_ranks), Ranks(comm))
    shell.repeats = True
    pairs = extreme_eigenpairs(shell, 8, 3)
    assert pairs.converged
    assert pairs.largest.values == pytest.approx(exact[::-1][:8], rel=1e-5)
    assert pairs.smallest.values == pytest.approx(exact[:3], rel=1e-5)


def test_a_spectrum_without_copies_takes_no_more_products() -> None:
    exact = np.concatenate([[9, 8, 7, -3], np.linspace(-1, 1, 400)])
    shell = ShellMatrix(PrescribedSpectrum(exact), Ranks())
    pairs = extreme_eigenpairs(shell, 3, 1)
    assert pairs.copies == 0
    assert pairs.products == shell.products < 40


@pytest.mark.parametrize(("classes", "features"), [(5, 30), (3, 4), (10, 12)])
def test_a_linear_model_that_starts_at_zero(classes: int, features: int) -> None:
    torch.manual_seed(classes)
    inputs, targets = torch.randn(200, features), torch.randint(0, classes, (200,))
    model = nn.Linear(features, classes)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = hessdist.extreme_eigenpairs(
        model, nn.CrossEntropyLoss(), TensorDataset(inputs, targets), largest=8, smallest=0
    )
    # H = (1 / C) (I − 11ᵀ / C) ⊗ Σ, with Σ the mean of xxᵀ, x with a 1 for the bias
    extended = torch.cat([inputs, torch.ones(200, 1)], 1).double()
    moments = torch.linalg.eigvalsh(extended.T @ extended / 200).flip(0) / classes
    exact = moments.repeat_interleave(classes - 1)[:8].numpy()
    assert found.converged
    assert found.eigenvalues_largest == pytest.approx(exact, rel=1e-5)


MODEL = """
from torch import nn


def build():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model
"""

JOB = """
name = "zero"
[model]
factory = "zero_model:build"
[data]
dataset = "digits"
samples = 200
[spectrum]
largest = 12
smallest = 3
[checkpoints]
directory = "checkpoints"
[output]
path = "zero.h5"
[study.exact]
"""


def test_a_layer_that_starts_at_zero_by_the_command_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "zero_model.py").write_text(MODEL, encoding="utf-8")
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    scope: dict[str, object] = {}
    exec(MODEL, scope)
    torch.manual_seed(0)
    (tmp_path / "checkpoints").mkdir()
    torch.save(scope["build"]().state_dict(), tmp_path / "checkpoints" / "step-00000000.pt")
    done = run("spectrum", "job.toml", ranks=2)
    assert done.returncode == 0, done.stderr
    done = run("study", "job.toml", "--only", "exact")
    assert done.returncode == 0, done.stderr
    result = hessdist.open_run(tmp_path / "zero.h5")
    exact = np.sort(result.studies["exact"]["eigenvalues"][0, 0])
    assert result.eigenvalues_largest[0] == pytest.approx(exact[::-1][:12], rel=1e-4)
    assert result.eigenvalues_smallest[0] == pytest.approx(exact[:3], rel=1e-4, abs=1e-7)


def test_rows_that_are_equal() -> None:
    weights = torch.randn(200, 30)
    assert not _has_equal_rows(weights)
    weights[150] = weights[3]
    assert _has_equal_rows(weights)
    assert _has_equal_rows(torch.zeros(4, 1, 3, 3))
    assert not _has_equal_rows(torch.ones(3, 1))
    assert not _has_equal_rows(torch.zeros(0, 5))
    assert not _has_equal_rows(torch.randn(50_000, 64))
