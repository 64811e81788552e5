"""The shell matrix: what a product is, and what it costs in messages."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import PrescribedSpectrum

from hessdist.ranks import Ranks, shard_bounds
from hessdist.spectrum.shell import ShellMatrix


def whole(shell: ShellMatrix, coefficients: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    parts = list(shell.products_of(coefficients, vectors))
    return np.concatenate([images for _, images in parts], axis=1)


def test_scale_and_shift() -> None:
    operator = PrescribedSpectrum(np.arange(30.0))
    shell = ShellMatrix(operator, Ranks(), scale=0.5, shift=2.0)
    x = np.random.default_rng(0).standard_normal(30)
    expected = 0.5 * operator(torch.from_numpy(x)).numpy() + 2 * x
    assert shell.apply(x) == pytest.approx(expected, rel=1e-12)


def test_products_of_combinations_are_combinations_of_products() -> None:
    shell = ShellMatrix(PrescribedSpectrum(np.arange(30.0)), Ranks(), scale=0.5, shift=2.0)
    rng = np.random.default_rng(0)
    made, coefficients = rng.standard_normal((4, 30)), rng.standard_normal((4, 2))
    shell.record()
    for x in made:
        shell.apply(x)
    vectors = coefficients.T @ made
    combined = whole(shell, coefficients, vectors)
    shell.forget()
    assert combined == pytest.approx(np.stack([shell.apply(v) for v in vectors]), rel=1e-10)
    assert shell.recorded == 0


def test_recombining_keeps_the_products() -> None:
    shell = ShellMatrix(PrescribedSpectrum(np.arange(30.0)), Ranks())
    rng = np.random.default_rng(0)
    made, coefficients = rng.standard_normal((5, 30)), rng.standard_normal((5, 3))
    shell.record()
    for x in made:
        shell.apply(x)
    shell.recombine(coefficients)
    assert shell.recorded == 3
    vectors = coefficients.T @ made
    combined = whole(shell, np.eye(3), vectors)
    assert combined == pytest.approx(np.stack([shell.apply(v) for v in vectors]), rel=1e-10)


@pytest.mark.parametrize(("total", "parts"), [(10, 3), (2, 5), (0, 2), (7, 7), (100, 1)])
def test_shards_are_contiguous_and_balanced(total: int, parts: int) -> None:
    bounds = [shard_bounds(total, parts, part) for part in range(parts)]
    sizes = [end - begin for begin, end in bounds]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == total
    assert all(one[1] == other[0] for one, other in pairwise(bounds))
    assert max(sizes) - min(sizes) <= 1
