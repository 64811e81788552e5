"""The table of claims of docs/studies/negative-curvature.md, beside the stored results."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from documents.claims import RESULTS, as_printed, cells_of, numbers_in, said

import hessdist
from hessdist.results.schema import ENDS
from hessdist.results.units import Measurements

PAGE = "negative-curvature"
OTHERS = ("sgd", "adam", "tanh")
SETTINGS = ("0", *OTHERS)  # columns of the table of settings


@cache
def runs() -> list[hessdist.Run]:
    """Read the results of jobs/negative_curvature_lenet5.toml with seeds 0, 1 and 2."""
    return [stored(str(seed)) for seed in range(3)]


def trained_on() -> hessdist.Run:
    """Read the spectra of seed 0 up to step 20,000."""
    run = hessdist.open_run(RESULTS / "negative-curvature-long.h5")
    assert run.converged_largest.all()
    assert run.converged_smallest.all()
    assert list(run.steps) == [2000, 5000, 10000, 20000]
    return run


@cache
def stored(name: str) -> hessdist.Run:
    """Read one result of jobs/negative_curvature_lenet5.toml, all of whose pairs converged."""
    run = hessdist.open_run(RESULTS / f"negative-curvature-{name}.h5")
    assert run.converged_largest.all()
    assert run.converged_smallest.all()
    assert list(run.steps) == [0, 10, 20, 50, 100, 200, 500, 1000, 2000]
    return run


def step_sizes(name: str) -> np.ndarray:
    """Join a table of the study over seeds and checkpoints, (27, ...)."""
    return np.concatenate([run.studies["step_sizes"][name] for run in runs()])


def share(run: hessdist.Run) -> np.ndarray:
    """Compute λ_d in percent of λ₁ at every checkpoint; λ_d is negative."""
    return 100 * run.eigenvalues_smallest[:, 0] / run.eigenvalues_largest[:, 0]


def last_beyond(run: hessdist.Run, percent: float) -> int:
    """Return the last checkpoint at which λ_d is beyond a share of λ₁."""
    return int(np.asarray(run.steps)[share(run) < percent].max())


def ends() -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of LA(20) and of SA(3)."""
    largest = np.array([str(pair).startswith("largest") for pair in step_sizes("pair")[:23]])
    return np.flatnonzero(largest), np.flatnonzero(~largest)


def scaled_steps(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute α* λ of one result along LA(20) and along SA(3), (9, 20) and (9, 3)."""
    table = stored(name).studies["step_sizes"]
    products = table["best_step"] * table["eigenvalue"]
    largest, smallest = ends()
    return products[:, largest], products[:, smallest]


def gain_of_the_small_end(name: str) -> np.ndarray:
    """Compute how many times the mean gain along LA(20) that along SA(3) is, (9,)."""
    gains = stored(name).studies["step_sizes"]["best_loss_change"]
    largest, smallest = ends()
    return np.asarray(gains[:, smallest].mean(axis=1) / gains[:, largest].mean(axis=1))


def error_of_the_model(alpha: float) -> float:
    """Compute the median of |ΔL − ΔL_quadratic| / |ΔL_quadratic| along v_d at one α."""
    errors = []
    for run in runs():
        lines = run.studies["lines"]
        column = [str(pair) for pair in lines["pair"]].index("smallest 1")
        at, zero = (int(np.argmin(np.abs(lines["alpha"] - one))) for one in (alpha, 0.0))
        assert abs(lines["alpha"][at] - alpha) < 1e-12
        loss, model = (lines[name][:, column] for name in ("loss", "quadratic_model"))
        predicted = model[:, at] - model[:, zero]
        errors.append(np.abs(loss[:, at] - loss[:, zero] - predicted) / np.abs(predicted))
    return float(np.median(errors))


def numbers() -> dict[str, list[float]]:
    """Compute the numbers of each claim, by its first words."""
    largest, smallest = ends()
    gains, products = (
        step_sizes("best_loss_change"),
        step_sizes("best_step") * step_sizes("eigenvalue"),
    )
    ratio = gains[:, smallest].mean(axis=1) / gains[:, largest].mean(axis=1)
    upper, lower = products[:, largest], products[:, smallest]
    joint = step_sizes("scaled_joint_loss_change")[:, :, 2, 2]  # (27, scales), measured, smallest
    first = [run.eigenvalues_largest[:, 0] for run in runs()]
    last = [run.eigenvalues_smallest[:, 0] for run in runs()]
    falls = [
        (one.max() / one[-1], two.min() / two[-1]) for one, two in zip(first, last, strict=True)
    ]
    magnitudes = np.concatenate([-one[2:] / two[2:] for one, two in zip(first, last, strict=True)])
    return {
        "Close to": [100 * error_of_the_model(0.01), 100 * error_of_the_model(1.0)],
        "Directions of negative": [
            float(np.median(ratio)), ratio.min(), ratio.max(), (ratio > 1).sum(), len(ratio)
        ],
        "1/α* ≈ λ": [float(np.median(upper)), *np.quantile(upper, [0.25, 0.75])],
        "α* is much larger": [
            float(np.median(np.abs(lower))), *np.quantile(np.abs(lower), [0.25, 0.75]),
            (np.abs(lower) > 1).sum(), lower.size, (lower > 0).sum(),
        ],
        "All three": [
            (joint[:, 0] > 0).sum(), len(joint), (joint[:, 1] < 0).sum(), len(joint)
        ],
        "Both ends stabilise": [
            min(one for one, _ in falls), max(one for one, _ in falls),
            min(two for _, two in falls), max(two for _, two in falls),
        ],
        "The largest eigenvalues": [magnitudes.min(), magnitudes.max()],
        "Trained for long enough": [
            -10, *(last_beyond(run, -10) for run in runs()),
            2000, *(share(run)[-1] for run in runs()), 20000, 0, share(trained_on())[-1],
        ],
        "The same with SGD": other_settings(),
        "5 % of the samples": subsets_claimed(),
        "With an L2 penalty": [
            one for activation in ("relu", "tanh") for penalty in (False, True)
            for one in powers(activation, penalty)
        ],
    }  # fmt: skip


def subsets_of_all() -> Measurements:
    """Read the subsets of all 60,000 images at step 2,000, all of whose pairs converged."""
    run = hessdist.open_run(RESULTS / "subsets-mnist-60000.h5")
    assert run.converged_largest.all()
    assert run.converged_smallest.all()
    measured = run.studies["subsets"]
    assert list(measured["step"]) == [2000]
    assert list(measured["fraction"]) == [0.05, 0.01]
    assert list(measured["seed"]) == [0, 1, 2]
    for end in ENDS:
        assert measured[f"converged_{end}"].all()
    return measured


def of_subsets(row: int, end: str) -> list[float]:
    """Compute the numbers of a row of the table of subsets, for one fraction and end.

    They are the median and the largest of the differences of eigenvalues in percent and of the
    angles to matched vectors, and the mean over the draws of the largest principal angle.
    """
    measured = subsets_of_all()
    difference = 100 * np.abs(measured[f"relative_difference_{end}"][0, row])
    angle = measured[f"matched_angle_{end}"][0, row]
    principal = measured[f"principal_angle_{end}"][0, row].max(axis=1).mean()
    values = [np.median(difference), difference.max(), np.median(angle), angle.max(), principal]
    return [float(one) for one in values]


def subsets_claimed() -> list[float]:
    """Compute what is said of 5 %: LA(10) and SA(3), eigenvalues, their sign, and vectors."""
    largest, smallest = of_subsets(0, "largest"), of_subsets(0, "smallest")
    differences = subsets_of_all()["relative_difference_smallest"][0, 0]
    return [
        *(10, *largest[:2]),
        *(3, *smallest[:2], (differences < 0).sum(), differences.size),
        *(largest[2], smallest[2]),
    ]


def powers(activation: str, penalty: bool) -> tuple[float, float]:
    """Compute the least and the largest exponent of the loss between α = 1e5 and 1e6.

    Both pairs, both checkpoints, both sides, in results of jobs/penalty_lines_mnist.toml: three
    seeds without a penalty, one with it.
    """
    names = [f"{activation}-0-l2"] if penalty else [f"{activation}-{seed}" for seed in range(3)]
    found = np.stack([exponents(name) for name in names])
    return float(found.min()), float(found.max())


def exponents(name: str) -> np.ndarray:
    """Compute the exponents of one result, (2 sides, 2 checkpoints, 2 pairs)."""
    run = hessdist.open_run(RESULTS / f"penalty-lines-{name}.h5")
    assert run.converged_largest.all()
    assert run.converged_smallest.all()
    lines = run.studies["lines"]
    found = []
    for side in (1, -1):
        near, far = (int(np.argmin(np.abs(lines["alpha"] - side * one))) for one in (1e5, 1e6))
        assert abs(lines["alpha"][far] / lines["alpha"][near] - 10) < 1e-9
        found.append(np.log10(lines["loss"][:, :, far] / lines["loss"][:, :, near]))
    return np.stack(found)


def other_settings() -> list[float]:
    """Compute |α* λ| along SA(3) and α* λ along LA(20) for each of the other settings."""
    upper, lower = zip(*(scaled_steps(name) for name in OTHERS), strict=True)
    medians = [float(np.median(np.abs(one))) for one in lower]
    longer = [float((np.abs(one) > 1).sum()) for one in lower]
    threshold, pairs = 1.0, float(lower[0].size)
    return [3, *medians, threshold, *longer, pairs, 20, *(float(np.median(one)) for one in upper)]


def settings_table() -> dict[str, list[list[float]]]:
    """Compute the rows of the table of settings by their first words, a list for each setting."""
    rows: dict[str, list[list[float]]] = {}
    for name in SETTINGS:
        run, gains = stored(name), gain_of_the_small_end(name)
        upper, lower = scaled_steps(name)
        joint = run.studies["step_sizes"]["scaled_joint_loss_change"][:, :, 2, 2]
        at = [list(run.steps).index(step) for step in (0, 50, 2000)]
        for begin, values in {
            "loss at": [run.loss[-1]],
            "α* \\|λ\\| along": np.quantile(np.abs(lower), [0.5, 0.25, 0.75]),
            "pairs for which it is above": [(np.abs(lower) > 1).sum(), lower.size],
            "pairs whose": [(lower > 0).sum()],
            "α* λ along": np.quantile(upper, [0.5, 0.25, 0.75]),
            "pairs for which it is between": [100 * (np.abs(upper - 1) < 0.1).mean()],
            "gain of": [np.median(gains), gains.min(), gains.max()],
            "λ_d / λ₁": share(run)[at],
            "last checkpoint": [last_beyond(run, -10)],
            "checkpoints at": [(joint[:, 0] > 0).sum(), (joint[:, 1] < 0).sum(), len(joint)],
        }.items():
            rows.setdefault(begin, []).append([float(one) for one in values])
    return rows


def test_the_settings() -> None:
    for begin, columns in settings_table().items():
        cells = cells_of(PAGE, begin)[1:]
        for values, cell in zip(columns, cells, strict=True):
            printed = numbers_in(cell.replace(",", ""))
            assert as_printed(values, printed) == printed, (begin, cell)


def test_the_shares() -> None:
    for seed, run in enumerate(runs()):
        assert (run.eigenvalues_smallest < 0).all()
        printed = [numbers_in(cell)[0] for cell in cells_of(PAGE, f"seed {seed}")[1:]]
        assert as_printed([float(one) for one in share(run)], printed) == printed


def test_the_subsets() -> None:
    for row, size in enumerate(("3,000 (5 %)", "600 (1 %)")):
        for end, pairs in (("largest", "LA(10)"), ("smallest", "SA(3)")):
            cells = cells_of(PAGE, f"{size} | {pairs}")[2:]
            printed = [numbers_in(cell)[0] for cell in cells]
            assert as_printed(of_subsets(row, end), printed) == printed, (size, pairs)


def test_what_is_said_of_the_subsets() -> None:
    measured = subsets_of_all()
    largest, smallest = (measured[f"relative_difference_{end}"][0, 0] for end in ENDS)
    assert as_printed(list(100 * np.sort(largest[:, 0]))[::2], ["-2.5", "15.4"]) == ["-2.5", "15.4"]
    assert sorted((np.sign(largest).sum(axis=1) / 8).tolist())[::2] == [-1, 1]
    assert (measured["matched_angle_largest"][0, 0, :, 0] < 5.5).all()
    assert (measured["principal_angle_largest"][0, 0, :, :6] < 11).all()
    assert (measured["matched_angle_smallest"][0, 0, :, :2] < 20).all()
    assert as_printed(list(-100 * np.sort(smallest.ravel()))[::8], ["39", "12"]) == ["39", "12"]


def test_the_long_training() -> None:
    run, first = trained_on(), runs()[0]
    assert run.eigenvalues_largest[0, 0] == pytest.approx(first.eigenvalues_largest[-1, 0])
    assert (run.eigenvalues_smallest < 0).all()
    for begin, values in {
        "loss | 0": run.loss,
        "λ₁ | 9": run.eigenvalues_largest[:, 0],
        "λ_d | −0": run.eigenvalues_smallest[:, 0],
        "share of λ₁": share(run),
    }.items():
        printed = [numbers_in(cell)[0] for cell in cells_of(PAGE, begin)[1:]]
        assert as_printed([float(one) for one in values], printed) == printed, begin


def test_the_claims() -> None:
    for begin, values in numbers().items():
        printed = said(PAGE, begin)[: len(values)]
        assert as_printed([float(one) for one in values], printed) == printed, begin
