"""What is read from a projected problem: which values are wanted, and when they will be there."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import PrescribedSpectrum, full_lanczos, lanczos, outliers_and_bulk

from hessdist.spectrum.ritz import Ends, Ritz, steps_to_go
from hessdist.spectrum.start import random_entries

ENDS = Ends(largest=20, smallest=3, aim=1e-3)


def ritz_after(steps: int, operator: PrescribedSpectrum, start: np.ndarray) -> Ritz:
    matrix, below = lanczos(operator, start, steps)
    values, rotation = np.linalg.eigh(matrix)
    return Ritz(values, np.abs(below * rotation[-1]), rotation)


@pytest.mark.parametrize("seed", range(5))
def test_the_wanted_values_come_first_and_then_the_farthest_from_the_bulk(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bulk, outliers = rng.standard_normal(31), [40.0, 50.0, 60.0, -8.0]
    values = rng.permutation(np.concatenate([bulk, outliers]))
    ascending = np.sort(values)
    for largest, smallest in ((5, 3), (0, 2), (4, 0), (1, 1), (30, 5), (0, 0)):
        ends = Ends(largest, smallest, 1e-3)
        ranked = np.array(sorted(values, key=ends.ranking(values)))
        wanted = largest + smallest
        expected = np.concatenate([ascending[:smallest], ascending[35 - largest :]])
        assert np.sort(ranked[:wanted]) == pytest.approx(np.sort(expected))
        distances = np.abs(ranked[wanted:] - np.median(values))
        assert (np.diff(distances) <= 0).all()
        # A restart that keeps a third has all outliers, whichever end is wanted.
        assert set(outliers) <= set(ranked[: max(12, wanted + 4)].tolist())
        assert set(ends.chosen(np.arange(35)).tolist()) == {
            *range(smallest),
            *range(35 - largest, 35),
        }


def test_the_excess_is_one_when_the_last_pair_arrives() -> None:
    operator = PrescribedSpectrum(outliers_and_bulk(0.1))
    start = random_entries(0, 0, operator.size)
    needed = full_lanczos(operator, start, 20, 3, 1e-3)
    before, then = (ritz_after(steps, operator, start) for steps in (needed - 1, needed))
    assert ENDS.excess(before.values, before.relative(1e-12)) > 1
    assert ENDS.excess(then.values, then.relative(1e-12)) <= 1


def test_an_unsettled_neighbour_keeps_a_solve_going() -> None:
    values, relative = np.arange(1.0, 31.0), np.zeros(30)
    ends = Ends(largest=3, smallest=2, aim=1e-3)
    assert ends.excess(values, relative) == 0
    relative[26] = 0.6  # the fourth largest
    assert ends.excess(values, relative) > 1
    relative[26], relative[15] = 0.4, 1.0  # settled; far inside does not matter
    assert ends.excess(values, relative) <= 1


@pytest.mark.parametrize("negative", [1.0, 0.1, 0.03])
@pytest.mark.parametrize("short", [3, 6, 10])
def test_steps_to_go_are_about_those_that_it_takes(negative: float, short: int) -> None:
    operator = PrescribedSpectrum(outliers_and_bulk(negative))
    found = []
    for seed in range(10):
        start = random_entries(seed, 0, operator.size)
        needed = full_lanczos(operator, start, 20, 3, 1e-3)
        steps = steps_to_go(ritz_after(needed - short, operator, start), 0, ENDS, 1e-12)
        if steps is not None:  # the excess may just have gone up
            found.append(steps)
    assert len(found) >= 7
    assert short / 2 <= np.median(found) <= 2 * short


def test_no_rate_is_told_from_too_few_steps() -> None:
    operator = PrescribedSpectrum(outliers_and_bulk(1.0))
    ritz = ritz_after(24, operator, random_entries(0, 0, operator.size))
    assert steps_to_go(ritz, 0, ENDS, 1e-12) is None
