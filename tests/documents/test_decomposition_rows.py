"""What docs/studies/eigenspaces.md says of H = G + S in the training of LeNet-5."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from conftest import ROOT
from documents.claims import (
    RESULTS,
    as_printed,
    check_after,
    ends,
    middle,
    numbers_in,
    said,
)
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

PAGE = "eigenspaces"
check = partial(check_after, PAGE)
TEXT = (ROOT / "docs/studies/eigenspaces.md").read_text(encoding="utf-8")
STEPS = [0, 30, 100, 300, 1000, 3000]
H, G, S, F = range(4)
Numbers = NDArray[np.float64]


@pytest.fixture(scope="module")
def found() -> Measurements:
    """The result of jobs/decomposition_mnist.toml."""
    measured = hessdist.open_run(RESULTS / "decomposition-mnist.h5").studies["decomposition"]
    assert measured["step"].tolist() == STEPS
    assert measured["operator"].tolist() == [
        "hessian",
        "gauss_newton",
        "residual",
        "empirical_fisher",
    ]
    for end in ("largest", "smallest"):
        assert measured[f"converged_{end}"].all()
    return measured


def norm_of_s(found: Measurements) -> Numbers:
    """‖S‖₂, (checkpoints,)."""
    ends = [np.abs(found[f"eigenvalues_{end}"][:, S, 0]) for end in ("largest", "smallest")]
    return np.asarray(np.maximum(*ends))


def first(found: Measurements, operator: int) -> Numbers:
    """λ₁ of a matrix, (checkpoints,)."""
    return np.asarray(found["eigenvalues_largest"][:, operator, 0])


@pytest.mark.parametrize("row", range(6))
def test_the_table(found: Measurements, row: int) -> None:
    line = next(
        one for one in TEXT.splitlines() if one.startswith(f"| {STEPS[row]} | ") and "±" in one
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
    sizes = [found["loss"][row], found["misfit"][row]]
    sizes += [first(found, operator)[row] for operator in (H, G, F)] + [norm_of_s(found)[row]]
    for cell, value in zip(cells, sizes, strict=False):
        assert as_printed([float(value)], [cell]) == [cell]
    totals = [("trace", H), ("trace", G), ("frobenius_norm", G), ("frobenius_norm", S)]
    for cell, (name, operator) in zip(cells[6:], totals, strict=True):
        values = [found[name][row, operator], found[f"{name}_error"][row, operator]]
        printed = numbers_in(cell)
        assert as_printed([float(one) for one in values], printed) == printed, cell


def test_the_claim_over_three_seeds(found: Measurements) -> None:
    others = [
        hessdist.open_run(RESULTS / f"decomposition-mnist-{seed}.h5").studies["decomposition"]
        for seed in (1, 2)
    ]
    wanted, peaks = [], []
    for operator in (G, H):
        curves = [first(one, operator) for one in (found, *others)]
        peaks += [STEPS[int(curve.argmax())] for curve in curves]
        grown = [curve.max() / curve[0] for curve in curves]
        left = [100 * curve[-1] / curve.max() for curve in curves]
        wanted.append([*middle(grown), *middle(left)])
    (g_grown, h_grown), (g_left, h_left) = [[row[i : i + 3] for row in wanted] for i in (0, 3)]
    printed = said(PAGE, "The eigenvalues of G grow")
    numbers = [*g_grown, *h_grown, *g_left, *h_left]
    # After the factors stand the steps of the peaks, and the step at the end.
    told = printed[:6] + printed[9:15]
    assert as_printed(numbers, told) == told
    assert [float(step) for step in printed[6:9]] == [min(peaks), max(peaks), STEPS[-1]]
    late = [np.abs(first(one, G) / first(one, H) - 1)[3:].max() for one in (found, *others)]
    assert 0.04 < max(late) < 0.05  # "by at most 5 %"


def test_the_growth_of_the_first_run(found: Measurements) -> None:
    peak, last = STEPS.index(300), STEPS.index(3000)
    grown = [first(found, operator)[peak] / first(found, operator)[0] for operator in (G, H)]
    left = [
        100 * first(found, operator)[last] / first(found, operator)[peak] for operator in (H, G)
    ]
    assert round(left[0]) == round(left[1])
    check("While the network learns, λ₁ of G grows", *grown[:1])
    check("and that of H", grown[1])
    check("Then both *fall*, to", left[0], 3000)
    apart = np.abs(first(found, G) / first(found, H) - 1)[peak:]
    assert 100 * apart.max() < 2.05
    check(
        "At the start H is not G at all: ‖S‖_F is",
        found["frobenius_norm"][0, S] / found["frobenius_norm"][0, G],
    )
    check("and the most negative eigenvalue of H (", found["eigenvalues_smallest"][0, H, 0])
    check("is as large as the largest (", first(found, H)[0])
    assert found["disagreement"].max() < 1e-7


def test_the_outliers(found: Measurements) -> None:
    angles, outliers = found["angle_to_gauss_newton"], found["outliers"]
    peak, last = STEPS.index(300), STEPS.index(3000)
    assert outliers[0, G] == outliers[0, F] == 9
    check("each of F's nine is within", *ends(angles[0, F, :9]))
    check("H has none of them then: its largest eigenvectors are", *ends(angles[0, H]))
    assert outliers[peak, H] == outliers[peak, G] == 8
    check("**all eight outliers of H are G's**,", *ends(angles[peak, H, :8]))
    check("the first 20 vectors of H are all within", angles[last, H].max())
    check("and the first ten within", angles[last, H, :10].max())
    check(
        "as the loss falls (the first is",
        angles[last, F, 0],
        STEPS[last],
        first(found, F)[last] / first(found, G)[last],
    )


def test_the_trace_of_s_and_the_residuals(found: Measurements) -> None:
    values = zip(found["trace"][:, S], found["trace_error"][:, S], strict=True)
    check("LeNet-5 shows tr S =", *[one for pair in values for one in pair])
    check("by XTrace, while ‖S‖_F is", *ends(found["frobenius_norm"][:, S]))
    residuals, norm = found["misfit"], norm_of_s(found)
    check("until step 100 while ‖S‖₂ grows from", norm[0], norm[2])
    check("and they fall to", residuals[3], 300)
    check("while ‖S‖₂ grows on, to", norm[3])
    check("both fall, the residuals by a factor of", residuals[3] / residuals[5])
    check("and ‖S‖₂ by", norm[3] / norm[5])
