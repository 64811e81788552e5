"""Both ends from one Krylov space: against prescribed spectra, with nothing missed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import PrescribedSpectrum, full_lanczos, outliers_and_bulk
from precision import petsc_epsilon, within

from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.eigenpairs import Eigenpairs, Outcome
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries, starting_vector

STARTS = range(20)


def solve(
    operator: PrescribedSpectrum, largest: int, smallest: int, **options: object
) -> Eigenpairs:
    return extreme_eigenpairs(ShellMatrix(operator, Ranks()), largest, smallest, **options)  # type: ignore[arg-type]


def extremes(eigenvalues: np.ndarray, largest: int, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    ascending = np.sort(eigenvalues)
    return ascending[::-1][:largest], ascending[:smallest]


@pytest.mark.parametrize("negative", [1.0, 0.1, 0.03])
def test_no_pair_is_missed_and_products_stay_near_a_full_lanczos_run(negative: float) -> None:
    eigenvalues = outliers_and_bulk(negative)
    operator = PrescribedSpectrum(eigenvalues)
    top, bottom = extremes(eigenvalues, 20, 3)
    for seed in STARTS:
        pairs = solve(operator, 20, 3, seed=seed)
        start = random_entries(seed, 0, operator.size)
        assert pairs.converged
        assert pairs.largest.values == pytest.approx(top, rel=1e-5)
        assert pairs.smallest.values == pytest.approx(bottom, rel=1e-5)
        assert pairs.products <= 1.3 * full_lanczos(operator, start, 20, 3, 1e-3)


@pytest.mark.parametrize(("negative", "most"), [(1.0, 1.5), (0.1, 2.0), (0.03, 3.2)])
@pytest.mark.parametrize(
    ("smallest", "upside_down"), [(1, False), (3, False), (20, False), (3, True)]
)
def test_one_end_is_not_slowed_by_outliers_of_the_other(
    negative: float, most: float, smallest: int, upside_down: bool
) -> None:
    # A restart keeps the outliers of the end that is not wanted. One that drops them takes up to
    # ten times as many products here, because the space has to find them again each time.
    eigenvalues = outliers_and_bulk(negative) * (-1 if upside_down else 1)
    operator = PrescribedSpectrum(eigenvalues)
    ends = (smallest, 0) if upside_down else (0, smallest)
    # In single precision residuals end at 1e-6 to 2e-6 of the largest |λ|, which is 3,000 times the
    # smallest eigenvalue asked for here; its digits are counted from there.
    rounding = petsc_epsilon() * np.abs(eigenvalues).max()
    for seed in range(3):
        pairs = solve(operator, *ends, seed=seed)
        start = random_entries(seed, 0, operator.size)
        assert pairs.converged
        for found, known in zip(
            (pairs.largest.values, pairs.smallest.values), extremes(eigenvalues, *ends), strict=True
        ):
            assert found == pytest.approx(known, rel=1e-5, abs=rounding)
        assert pairs.products <= most * full_lanczos(operator, start, *ends, 1e-3)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4, 1e-8])
def test_the_set_found_does_not_depend_on_the_starting_vector(tolerance: float) -> None:
    eigenvalues = outliers_and_bulk(0.1)
    eigenvalues[18:21] = 0.74, 0.6826, 0.654  # neighbours at the end of the wanted ones
    operator = PrescribedSpectrum(eigenvalues)
    top, bottom = extremes(eigenvalues, 20, 3)
    for seed in STARTS:
        pairs = solve(operator, 20, 3, seed=seed, tolerance=tolerance)
        # The eigenvalue is quadratically better than the vector; neighbours differ by 4 %.
        assert pairs.largest.values == pytest.approx(top, rel=max(tolerance**2 * 10, within(1e-12)))
        assert pairs.smallest.values == pytest.approx(
            bottom, rel=max(tolerance**2 * 10, within(1e-12))
        )


@pytest.mark.parametrize(("largest", "smallest"), [(0, 4), (4, 0), (1, 1), (1, 8), (3, 3)])
def test_any_share_of_the_ends(largest: int, smallest: int) -> None:
    eigenvalues = outliers_and_bulk(0.3, size=400)
    pairs = solve(PrescribedSpectrum(eigenvalues), largest, smallest, tolerance=1e-9)
    top, bottom = extremes(eigenvalues, largest, smallest)
    assert pairs.converged
    assert pairs.largest.values == pytest.approx(top, rel=within(1e-10))
    assert pairs.smallest.values == pytest.approx(bottom, rel=within(1e-10))


@pytest.mark.parametrize("size", [1, 2, 5, 18, 40])
def test_all_eigenvalues_of_a_small_matrix_from_either_end(size: int) -> None:
    eigenvalues = np.random.default_rng(size).standard_normal(size)
    pairs = solve(PrescribedSpectrum(eigenvalues), size, size, tolerance=1e-10)
    assert pairs.converged
    assert pairs.largest.values == pytest.approx(np.sort(eigenvalues)[::-1], abs=within(1e-12))
    assert pairs.smallest.values == pytest.approx(np.sort(eigenvalues), abs=within(1e-12))


def test_one_sided_and_shifted_spectra() -> None:
    bulk = np.linspace(1, 2, 500)
    for eigenvalues in (bulk, -bulk, bulk + 1000):
        pairs = solve(PrescribedSpectrum(eigenvalues), 5, 5, tolerance=1e-6)
        top, bottom = extremes(eigenvalues, 5, 5)
        assert pairs.converged
        assert pairs.largest.values == pytest.approx(top, rel=within(1e-6))
        assert pairs.smallest.values == pytest.approx(bottom, rel=within(1e-6))


def test_multiple_eigenvalues_are_found_as_often_as_they_occur() -> None:
    eigenvalues = np.concatenate([[5.0, 5.0, 3.0], np.linspace(-1, 1, 60), [-4.0, -4.0]])
    pairs = solve(PrescribedSpectrum(eigenvalues), 3, 2, tolerance=1e-8)
    assert pairs.largest.values == pytest.approx([5, 5, 3], rel=within(1e-8))
    assert pairs.smallest.values == pytest.approx([-4, -4], rel=within(1e-8))


def test_eigenvalue_zero_counts_as_converged_at_rounding() -> None:
    eigenvalues = np.concatenate([np.geomspace(1, 10, 8), np.zeros(92)])
    pairs = solve(PrescribedSpectrum(eigenvalues), 8, 3, tolerance=1e-6)
    assert pairs.converged
    assert pairs.smallest.values == pytest.approx([0, 0, 0], abs=within(1e-12, 200))


@pytest.mark.parametrize("residuals", ["recorded", "recomputed", "sketched"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_rayleigh_quotients_and_residuals_are_true(
    residuals: str, dtype: torch.dtype
) -> None:
    operator = PrescribedSpectrum(outliers_and_bulk(0.03), dtype=dtype)
    exact = PrescribedSpectrum(outliers_and_bulk(0.03))
    pairs = solve(operator, 20, 3, residuals=residuals)
    if residuals == "sketched" and petsc_epsilon() > 1e-10:
        residuals = "recomputed"
    for end in (pairs.largest, pairs.smallest):
        for value, residual, vector in zip(end.values, end.residuals, end.vectors, strict=True):
            image = exact(torch.from_numpy(vector)).numpy()
            rounding = 1e-6 if dtype == torch.float32 else 1e-12
            assert np.linalg.norm(vector.astype(float)) == pytest.approx(1, abs=rounding)
            assert value == pytest.approx(vector @ image, rel=within(1e-6))
            true = np.linalg.norm(image - value * vector) / abs(value)
            # Of a sketch the standard error is 1.1 %.
            assert residual == pytest.approx(true, rel=0.05, abs=1e-5)
            assert residual <= 1e-3
    assert pairs.residuals_from == residuals
    assert (pairs.residual_error > 0) == (residuals == "sketched")


def test_recorded_products_cost_none_and_recomputed_ones_are_counted() -> None:
    operator = PrescribedSpectrum(outliers_and_bulk(0.1))
    recorded = solve(operator, 20, 3, residuals="recorded")
    recomputed = solve(operator, 20, 3, residuals="recomputed")
    assert recomputed.products == recorded.products + 23
    again = 23 if petsc_epsilon() > 1e-10 else 0  # in single precision they are recomputed
    assert solve(operator, 20, 3, residuals="sketched").products == recorded.products + again
    assert recomputed.largest.residuals == pytest.approx(
        recorded.largest.residuals, abs=within(1e-9)
    )


def test_recorded_products_stay_bounded_over_many_restarts() -> None:
    eigenvalues = outliers_and_bulk(0.001)  # a small negative end: slow
    shell = ShellMatrix(PrescribedSpectrum(eigenvalues), Ranks())
    most = 0

    def look(progress: object) -> None:
        nonlocal most
        most = max(most, shell.recorded)

    pairs = extreme_eigenpairs(shell, 20, 3, on_restart=look)
    top, bottom = extremes(eigenvalues, 20, 3)
    assert pairs.products > 160  # so that they were recombined
    assert most <= 160
    assert pairs.converged
    rounding = within(0, 2) * top[0]
    assert pairs.largest.values == pytest.approx(top, rel=1e-5, abs=rounding)
    assert pairs.smallest.values == pytest.approx(bottom, rel=1e-5, abs=rounding)


def test_pairs_that_did_not_converge_are_there_and_marked() -> None:
    from petsc4py import PETSc

    options = PETSc.Options()
    options["eps_max_it"] = 1
    try:
        pairs = solve(PrescribedSpectrum(outliers_and_bulk(0.003)), 20, 3)
    finally:
        options.delValue("eps_max_it")
    assert pairs.outcome is Outcome.ITERATION_LIMIT
    assert not pairs.converged
    assert not pairs.smallest.converged.all()
    assert pairs.largest.converged[0]
    assert np.isfinite(pairs.smallest.values).all()
    assert (pairs.smallest.residuals[~pairs.smallest.converged] > 1e-3).all()
    assert (pairs.smallest.residuals[pairs.smallest.converged] <= 1e-3).all()


@pytest.mark.parametrize("method", ["lobpcg", "arnoldi"])
def test_another_method_of_the_command_line_solves_each_end(method: str) -> None:
    from petsc4py import PETSc

    eigenvalues = np.concatenate([np.linspace(-1, 1, 80), [3, 4], [-2, -2.5]])
    options = PETSc.Options()
    options["eps_type"] = method
    try:
        pairs = solve(PrescribedSpectrum(eigenvalues), 2, 2, tolerance=within(1e-6, 1000))
    finally:
        options.delValue("eps_type")
    assert pairs.largest.values == pytest.approx([4, 3], rel=within(1e-6))
    assert pairs.smallest.values == pytest.approx([-2.5, -2], rel=within(1e-6))


def test_a_product_that_fails_is_an_error_not_a_crash() -> None:
    class Broken(PrescribedSpectrum):
        def __call__(self, v: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="broken on purpose"):
        solve(Broken(outliers_and_bulk(0.1)), 2, 1)


@pytest.mark.parametrize(
    ("largest", "smallest", "tolerance"), [(11, 0, 1e-3), (0, 11, 1e-3), (0, 0, 1e-3), (2, 1, 0.0)]
)
def test_impossible_wishes_are_refused(largest: int, smallest: int, tolerance: float) -> None:
    with pytest.raises(InputError):
        solve(PrescribedSpectrum(np.arange(10.0)), largest, smallest, tolerance=tolerance)


def test_the_starting_vector_does_not_depend_on_how_it_is_cut() -> None:
    whole = random_entries(3, 0, 200_000)
    pieces = [random_entries(3, a, b) for a, b in ((0, 7), (7, 131_072), (131_072, 200_000))]
    assert np.array_equal(whole, np.concatenate(pieces))
    assert not np.array_equal(whole, random_entries(4, 0, 200_000))


def test_an_error_of_a_callback_is_raised_after_the_solve() -> None:
    def break_off(progress: object) -> None:
        raise OSError("nobody reads")

    with pytest.raises(OSError, match="nobody reads"):
        solve(PrescribedSpectrum(outliers_and_bulk(0.1)), 20, 3, on_restart=break_off)


def test_guesses_are_where_the_space_starts() -> None:
    eigenvalues = outliers_and_bulk(0.1)
    operator = PrescribedSpectrum(eigenvalues)
    cold = solve(operator, 2, 1, tolerance=1e-10)
    guesses = np.concatenate([cold.largest.vectors, cold.smallest.vectors])
    start = starting_vector(Ranks(), operator.size, 0, guesses)
    inside = guesses @ (start / np.linalg.norm(start))
    assert inside @ inside == pytest.approx(1 / (1 + 0.3**2), abs=0.05)
    warm = solve(operator, 2, 1, tolerance=1e-10, guesses=guesses)
    assert warm.converged
    assert warm.largest.values == pytest.approx(cold.largest.values, rel=within(1e-10))
    assert warm.products <= cold.products

    unknown = np.full_like(guesses, np.nan)  # pairs that an earlier solve did not find
    random = starting_vector(Ranks(), operator.size, 0)
    assert np.array_equal(starting_vector(Ranks(), operator.size, 0, unknown), random)


def test_residuals_from_sketches_with_a_shift_and_a_metric() -> None:
    eigenvalues = outliers_and_bulk(0.1)
    metric = np.random.default_rng(0).uniform(0.5, 2, len(eigenvalues))
    found = {}
    for residuals in ("recorded", "sketched"):
        shell = ShellMatrix(PrescribedSpectrum(eigenvalues), Ranks(), shift=0.3, metric=metric)
        found[residuals] = extreme_eigenpairs(shell, 5, 3, tolerance=2e-3, residuals=residuals)
    for one, other in zip(
        (found["recorded"].largest, found["recorded"].smallest),
        (found["sketched"].largest, found["sketched"].smallest),
        strict=True,
    ):
        assert other.values == pytest.approx(one.values, rel=within(1e-6))
        assert other.residuals == pytest.approx(one.residuals, rel=0.05, abs=1e-6)


@pytest.mark.parametrize("wanted", [12, 120])
def test_a_spectrum_centred_at_zero_keeps_the_basis_orthonormal(wanted: int) -> None:
    half = 5 * 1.5 ** -np.arange(300.0) + 0.1 * np.linspace(0, 1, 300)
    exact = np.sort(np.concatenate([half, -half]))
    shell = ShellMatrix(PrescribedSpectrum(exact), Ranks())
    pairs = extreme_eigenpairs(shell, wanted, wanted)
    assert pairs.converged
    assert pairs.largest.values == pytest.approx(exact[::-1][:wanted], rel=1e-5)
    vectors = np.concatenate([pairs.largest.vectors, pairs.smallest.vectors])
    assert vectors @ vectors.T == pytest.approx(np.eye(2 * wanted), abs=1e-5)
