"""What docs/studies/eigenspaces.md says of constants and bounds is what the packed result says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conftest import ROOT
from documents.claims import RESULTS, as_printed, claim, said
from numpy.typing import NDArray

import hessdist
from hessdist.results.units import Measurements
from hessdist.studies.eigenspaces.curves import exponents

PAGE = (ROOT / "docs/studies/eigenspaces.md").read_text(encoding="utf-8").replace("−", "-")


@pytest.fixture(scope="module")
def found() -> Measurements:
    return hessdist.open_run(RESULTS / "convergence-digits.h5").studies["convergence"]


def three(values: NDArray[np.float64]) -> list[float]:
    """The median, and the least and the most."""
    return [float(np.median(values)), float(values.min()), float(values.max())]


def spread(values: NDArray[np.float64]) -> str:
    middle, least, most = (f"{value:#.3g}" for value in three(values))
    return f"{middle} ({least} to {most})"


def rows_of_constants(found: Measurements) -> Iterator[str]:
    """The rows of the table of the section, as they are printed."""
    slopes = exponents(found)
    for row, penalty in enumerate(found["penalty"]):
        largest = found["eigenvalue_largest"][row]
        distance = found["distance"][row]
        cells = [
            f"{penalty:g}",
            f"{found['smoothness'][row]:.3f}",
            spread(largest[:, 0]),
            spread(largest[:, -1]),
            "none" if np.isnan(distance).all() else spread(distance),
            spread(found["most_of_bound"][row]),
            ", ".join(f"{x:.2f}" for x in np.median(slopes[row], axis=0) if np.isfinite(x)),
        ]
        yield f"| {' | '.join(cells)} |"


def rows_of_quadratics(found: Measurements) -> Iterator[str]:
    for column, name in enumerate(found["optimizer"]):
        needed = found["quadratic_needed"][:, column]
        cells = [f"{n:,.0f}" if np.isfinite(n) else "never" for n in needed]
        yield f"| {' | '.join([str(name), *cells])} |"


def test_the_tables_of_the_section(found: Measurements) -> None:
    for row in (*rows_of_constants(found), *rows_of_quadratics(found)):
        assert row in PAGE


def test_the_claim_on_the_rate(found: Measurements) -> None:
    printed = said("eigenspaces", "Gradient descent has a rate")
    mild, strong = (three(found["most_of_bound"][row]) for row in (1, 2))
    # 10⁻³ and 10⁻² are printed with the superscripts, which count as no digits.
    values = [*mild, 10, *strong, 10]
    assert printed == as_printed(values, printed)
    assert found["penalty"].tolist() == [0, 1e-3, 1e-2]
    assert (found["most_of_bound"] < 1).all()
    assert (found["most_of_linear_bound"][1:] < 1).all()
    assert found["iteration"][-1] == 10_000
    assert found["separated"][0].all()
    excess, bound, at = found["excess"], found["bound"], found["iteration"]
    assert f"{np.median(excess[0, :, -1] / bound[0, :, -1]):.2f} of that bound" in PAGE
    shares = np.median(excess[1:, :, 1:] / bound[1:, :, 1:], axis=1)
    assert [at[1:][row.argmax()] for row in shares] == [158, 50]
    assert "(near k = 158)" in PAGE
    assert "(near k = 50)" in PAGE


def test_which_bound_is_the_lower_one(found: Measurements) -> None:
    k = np.arange(1, 10_001)
    for row, first, last in ((1, 360, 10_000), (2, 155, 1430)):
        constant, penalty = (found[name][row] for name in ("smoothness", "penalty"))
        for column, distance in enumerate(found["distance"][row]):
            linear = found["linear_bound"][row, column, 0] * (1 - penalty / constant) ** k
            lower = k[constant * distance**2 / (2 * k) < linear]
            assert lower[0] == pytest.approx(first, rel=0.02)
            assert lower[-1] == pytest.approx(last, rel=0.02)
            assert np.array_equal(lower, np.arange(lower[0], lower[-1] + 1))


def test_the_claim_on_the_lipschitz_constant(found: Measurements) -> None:
    largest = found["eigenvalue_largest"][1]
    values = [found["smoothness"][1], *three(largest[:, 0]), *three(largest[:, -1])]
    printed = said("eigenspaces", "The gradient is Lipschitz")
    assert printed == as_printed(values, printed)
    assert (found["eigenvalue_largest"] < found["smoothness"][:, None, None]).all()
    ratio = found["smoothness"][:, None, None] / found["eigenvalue_largest"]
    assert f"{ratio[1].min():.1f} times the largest" in PAGE
    assert f"{ratio.min():.0f} to {ratio.max():.0f} times shorter" in PAGE
    assert (found["secant"] < found["smoothness"][:, None]).all()
    assert (
        f"between successive iterates is {found['secant'].min():.2f} to {found['secant'].max():.2f}"
        in PAGE
    )
    states = found["network_largest"]
    for column in (0, 2, -1):
        assert f"{states[:, column].min():.2f} to {states[:, column].max():.2f}" in PAGE


def test_the_claim_on_strong_convexity(found: Measurements) -> None:
    ends = found["network_smallest"]
    values = [*three(ends[:, 0]), *three(ends[:, -1])]
    printed = said("eigenspaces", "The loss is strongly convex")
    assert printed == as_printed(values, printed)
    assert found["network_reached"].all()
    assert (ends[:, :-1] < 0).all()
    assert (ends[:, -1] > 0).all()
    share = found["network_penalty"] / ends[:, -1]
    assert f"{share.min():.0f} to {share.max():.0f} times smaller" in PAGE
    away = found["eigenvalue_smallest"] - found["penalty"][:, None, None]
    assert np.abs(away).max() < 1e-15
    losses = found["network_loss"][:, -2]
    assert f"the loss is {losses.min():.4f} to {losses.max():.4f}" in PAGE


def test_the_claims_on_quadratics(found: Measurements) -> None:
    needed = found["quadratic_needed"]
    assert np.array_equal(needed, found["quadratic_predicted"], equal_nan=True)
    assert found["quadratic_rounding"].max() < 1e-13
    small, _, best, large, momentum, newton = needed.T
    number = claim("eigenspaces", "On a quadratic a large step")
    assert f"{small[0]:.0f} with a small step, {best[0]:.0f} with the best one" in number
    assert np.isnan(large).all()

    def listed(values: NDArray[np.float64]) -> str:
        first, second, third = (f"{value:,.0f}" for value in values)
        return f"{first}, {second} and {third}"

    number = claim("eigenspaces", "Gradient descent struggles")
    expected = (
        f"best step {listed(best)}, best momentum {listed(momentum)}, Newton {listed(newton)}"
    )
    assert expected.replace("Newton 1, 1 and 1", "Newton 1 each") in number
