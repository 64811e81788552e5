"""What docs/studies/eigenspaces.md says of three full-batch methods from five starts."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from documents.claims import (
    RESULTS,
    as_printed,
    cells_of,
    check_after,
    ends,
    joined,
    middle,
    said,
)
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements

PAGE = "eigenspaces"
check = partial(check_after, PAGE)
TEXT = joined(PAGE)
METHODS = ["gradient_descent", "lbfgs", "newton_cg"]
DESCENT, LBFGS, NEWTON = range(3)
Numbers = NDArray[np.float64]


@pytest.fixture(scope="module")
def found() -> Measurements:
    """The result of jobs/minimize_digits.toml."""
    measured = hessdist.open_run(RESULTS / "minimize-digits.h5").studies["minimizers"]
    assert measured["method"].tolist() == METHODS
    assert measured["seed"].tolist() == [0, 1, 2, 3, 4]
    return measured


def lasts(found: Measurements, name: str) -> Numbers:
    """The value of a table at the last iteration of each run, (methods, starts)."""
    last = np.isfinite(found["loss"]).sum(axis=2) - 1
    return np.asarray(np.take_along_axis(found[name], last[..., None], axis=2)[..., 0])


def iterations(found: Measurements) -> Numbers:
    """The number of iterations of each run, (methods, starts)."""
    return np.isfinite(found["loss"]).sum(axis=2) - 1.0


def below(found: Measurements, loss: float) -> tuple[Numbers, Numbers]:
    """Iterations and work until the loss is below a value, NaN if never, (methods, starts)."""
    reached = found["loss"] < loss
    first = reached.argmax(axis=2)
    work = np.take_along_axis(found["cost"], first[..., None], axis=2)[..., 0]
    some = reached.any(axis=2)
    return np.where(some, first, np.nan), np.where(some, work, np.nan)


def spread(values: Numbers) -> str:
    """A range of whole numbers, or the number that all of them are."""
    low, high = (f"{one:,.0f}" for one in ends(values))
    return low if low == high else f"{low} to {high}"


def last_norms(found: Measurements) -> Numbers:
    """The last three norms of the gradient of Newton-CG, (starts, 3)."""
    norms = found["gradient_norm"][NEWTON]
    return np.array([row[np.isfinite(row)][-3:] for row in norms])


def excess(found: Measurements) -> Numbers:
    """L(θ_k) − L* of gradient descent, L* being the lowest loss from the same start."""
    lowest = np.nanmin(found["loss"], axis=(0, 2))
    return np.asarray(found["loss"][DESCENT] - lowest[:, None])


def slopes(found: Measurements, first: int, last: int) -> Numbers:
    """The exponents of k between two iterations, by least squares, (starts,)."""
    k, above = np.arange(first, last + 1), excess(found)[:, first : last + 1]
    return np.array([np.polyfit(np.log(k), np.log(row), 1)[0] for row in above])


@pytest.mark.parametrize("loss", ["1.0", "0.7", "0.6", "0.59"])
def test_the_table_of_losses(found: Measurements, loss: str) -> None:
    first, work = below(found, float(loss))
    cells = cells_of(PAGE, f"{loss} |")[1:]
    for method, cell in enumerate(cells):
        known = np.isfinite(first[method])
        if known.all():
            assert cell == f"{spread(first[method])} ({spread(work[method])})"
        else:
            reached = sorted(first[method][known])
            names = {2: "two", 3: "three"}
            assert cell == (
                f"{' and '.join(f'{one:,.0f}' for one in reached)} in {names[len(reached)]} runs, "
                f"not reached in {names[5 - len(reached)]}"
            )


def test_the_ends_of_the_runs(found: Measurements) -> None:
    cells = cells_of(PAGE, "end |")[1:]
    loss, norm, work = (lasts(found, one) for one in ("loss", "gradient_norm", "cost"))
    count, reached = iterations(found), found["reached"]
    low, high = (f"{one:.4f}" for one in ends(loss[DESCENT]))
    norms = " to ".join(power(one, 1) for one in ends(norm[DESCENT]))
    assert cells[0] == f"{low} to {high}, ‖g‖ {norms} at 3,000 gradients"
    assert reached[LBFGS].all()
    assert cells[1] == f"‖g‖ ≤ 10⁻⁸ after {spread(count[LBFGS])} ({spread(work[LBFGS])})"
    arrived = reached[NEWTON]
    assert arrived.sum() == 3
    assert cells[2].startswith(
        f"‖g‖ ≤ 10⁻⁸ in three runs after {spread(count[NEWTON][arrived])} "
        f"({spread(work[NEWTON][arrived])}), "
    )
    left = [power(one, 0) for one in sorted(norm[NEWTON][~arrived])]
    assert cells[2].endswith(f"{' and '.join(left)} at 3,000 gradients")
    check("the loss goes from", float(np.median(found["loss"][:, :, 0])), loss[LBFGS].min())


def test_the_claims(found: Measurements) -> None:
    first, work = below(found, 0.6)
    factors = last_norms(found)[:, :-1] / last_norms(found)[:, 1:]
    for begin, values in {
        "L-BFGS takes fewer": [0.6, *middle(first[LBFGS]), *middle(first[DESCENT])],
        "Newton-CG converges": [*middle(factors[:, 1]), *middle(factors[:, 0])],
        "Newton-CG performs": [
            0.6,
            *middle(first[NEWTON]),
            *middle(work[NEWTON]),
            *middle(work[LBFGS]),
        ],
        "The same on the loss": [*middle(slopes(found, 50, 500)), 50, 500],
    }.items():
        printed = said(PAGE, begin)
        assert as_printed(values, printed) == printed, begin
    assert (first[LBFGS] < first[DESCENT]).all()
    assert (work[LBFGS] < work[DESCENT]).all()
    assert (first[NEWTON] < first[LBFGS]).all()
    assert (work[NEWTON] > work[LBFGS]).all()


def power(value: float, digits: int) -> str:
    """Print a number as the page does, such as 9.5·10⁻⁶."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return f"{mantissa}·10{exponent.replace('-0', '-').translate(SUPERSCRIPTS)}"


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def test_the_last_norms_of_newton_cg(found: Measurements) -> None:
    norms = last_norms(found)
    factors = norms[:, :-1] / norms[:, 1:]
    assert (factors[:, 1] > factors[:, 0]).all()
    for start in range(5):
        printed = ", ".join(power(one, 1) for one in norms[start])
        ratio = ", ".join(f"{one:.0f}" for one in factors[start])
        assert f"| {start} | {printed} | {ratio} |" in TEXT
    steps = found["step_length"][NEWTON]
    assert all((row[np.isfinite(row)][-2:] == 1).all() for row in steps)
    negative = np.nansum(found["negative_curvature"][NEWTON], axis=1)
    check("wanders, down to 10⁻⁴ or so,", *ends(negative))


def test_what_is_said_of_the_methods(found: Measurements) -> None:
    count, loss = iterations(found), lasts(found, "loss")
    check("Newton-CG takes", *ends(count[NEWTON]))
    check("iterations where L-BFGS takes", *ends(count[LBFGS]))
    lower = loss[LBFGS] - loss[NEWTON]
    assert (lower > 0).sum() == 3
    assert "Newton-CG's is lower from three of the five starts" in TEXT
    check("from three of the five starts, by up to", round(lower.max() * 1e4))
    check("L-BFGS takes α = 1 at once (", np.nanmean(found["trials"][LBFGS][:, 1:]))
    check("this one", count[LBFGS, 0], loss[LBFGS, 0])
    products = np.nansum(found["cg_iterations"][NEWTON, 0])
    check("on digits: exact products", count[NEWTON, 0], products, loss[NEWTON, 0])
    ahead = {value: below(found, value)[1] for value in (0.7, 0.6)}
    assert (ahead[0.7][NEWTON] > ahead[0.7][DESCENT]).all()
    assert (ahead[0.6][NEWTON] < ahead[0.6][DESCENT]).all()


def test_the_rate_of_gradient_descent(found: Measurements) -> None:
    assert (
        f"{powers_of(slopes(found, 50, 500))} between iterations 50 and 500 (least squares)" in TEXT
    )
    assert f"From 500 to 2,000 it falls like {powers_of(slopes(found, 500, 2000))}" in TEXT
    above = excess(found)
    at = [k * above[:, k] for k in (50, 500)]
    check("k (L(θ_k) − L*) grows from", *ends(at[0]), 50, *ends(at[1]), 500)


def powers_of(exponents: Numbers) -> str:
    """Print the range of exponents of k as the page does, the slowest first."""
    fastest, slowest = (f"{one:.2f}".replace("-", "−") for one in ends(exponents))
    return f"k^{slowest} to k^{fastest}"
