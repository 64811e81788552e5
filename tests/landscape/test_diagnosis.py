"""What numbers mean: kinds of points, counts, and the note's words, without any solve."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from hessdist.landscape.diagnosis import Point, PointKind, findings, note


def point(largest: list[float], smallest: list[float], norm: float = 0.0, **more: object) -> Point:
    """A point of 100 parameters; a gradient lies along the first largest and smallest vectors."""
    part = norm / 2**0.5
    sides = {"largest": np.array(largest, float), "smallest": np.array(smallest, float)}
    slopes = {end: np.zeros(len(values)) for end, values in sides.items()}
    for end in slopes.values():
        end[:1] = part
    values: dict[str, object] = {
        "num_parameters": 100,
        "loss": 2.0,
        "rounding": 1e-12,
        "gradient_norm": norm,
        "gradient_curvature": part**2 * sum(v[0] for v in sides.values() if len(v)),
        **{f"eigenvalues_{end}": values for end, values in sides.items()},
        **{f"converged_{end}": np.ones(len(values), bool) for end, values in sides.items()},
        **{f"slopes_{end}": values for end, values in slopes.items()},
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.0,
        "gradient_tolerance": 1e-3,
        "curvature_tolerance": 1e-3,
        "loss_change": -0.5,
        "best_loss_change": -0.6,
        "escape_distance": 10.0,
        "escape_best_distance": 2.0,
        "escape_loss_change": -0.25,
        "escape_at_edge": False,
        "layer": np.array(["conv", "fc"], dtype=object),
        "escape_share": np.array([0.25, 0.75]),
    }
    return Point(**{**values, **more})  # type: ignore[arg-type]


def said(p: Point, topic: str) -> str:
    (text,) = [finding.text for finding in findings(p) if finding.topic == topic]
    return text


@pytest.mark.parametrize(
    ("largest", "smallest", "norm", "kind"),
    [
        ([4, 1], [0.1, 0.2], 0, PointKind.MINIMUM),
        ([4, 1], [0.1, 0.2], 1e-3, PointKind.MINIMUM),
        ([4, 1], [0.1, 0.2], 1.001e-3, PointKind.FAR),
        ([4, 1], [-0.1, 0.2], 0, PointKind.SADDLE),
        ([4, 1], [-0.1, 0.2], 1, PointKind.FAR),
        ([4, 1], [-0.004, 0.2], 0, PointKind.TO_TOLERANCE),  # a thousandth of 4 is zero
        ([4, 1], [0.004, 0.2], 0, PointKind.TO_TOLERANCE),
        ([4, 1], [-0.0041, 0.2], 0, PointKind.SADDLE),
        ([-1, -2], [-4, -3], 0, PointKind.MAXIMUM),
        ([-1, -2], [], 0, PointKind.MAXIMUM),
        ([0, -2], [-4, -3], 0, PointKind.NO_MINIMUM),
        ([], [-4, -3], 0, PointKind.NO_MINIMUM),
        ([4, 1], [], 0, PointKind.UNKNOWN),
        ([], [0.5], 0, PointKind.MINIMUM),
        ([0], [0], 0, PointKind.TO_TOLERANCE),
    ],
)
def test_the_second_derivative_test(
    largest: list[float], smallest: list[float], norm: float, kind: PointKind
) -> None:
    p = point(largest, smallest, norm)
    assert p.kind == kind
    lines = note(p, "step 7")
    assert lines[0] == f"step 7: loss 2, {kind}"
    assert all(line.startswith("  ") and line.endswith("]") for line in lines[1:])
    assert not any("nan" in line for line in lines)


@pytest.mark.parametrize(
    ("norm", "gradient", "kind"),
    [
        (2e-3, "2 times gradient_tolerance", "with these eigenvalues would be: strict saddle"),
        (0.5, "500 times gradient_tolerance", "far from any critical point"),
    ],
)
def test_far_and_not_quite_there(norm: float, gradient: str, kind: str) -> None:
    p = point([4, 1], [-0.1, 0.2], norm)
    assert gradient in said(p, "gradient")
    assert kind in said(p, "point")


@pytest.mark.parametrize(
    ("largest", "smallest", "count", "more"),
    [
        ([4, 1], [-2, -1, 0.5], 2, False),  # there is one that is not: all are known
        ([4, 1], [-2, -1], 2, True),
        ([4, 1], [], 0, True),
        ([4, 1, -1], [-2], 98, False),  # the largest know it: two of a hundred are not negative
        ([-1, -2], [], 100, False),
        ([4], [0.5], 0, False),
    ],
)
def test_negative_directions_are_counted(
    largest: list[float], smallest: list[float], count: int, more: bool
) -> None:
    p = point(largest, smallest)
    assert p.negative_directions == (count, more)
    if smallest:
        assert ("at least" in said(p, "negative")) == (more and count > 0)


def test_unconverged_pairs_are_said() -> None:
    p = replace(point([4, 1], [0.1, 0.2]), converged_smallest=np.array([True, False]))
    assert "1 of 4 eigenpairs have not converged" in said(p, "eigenpairs")
    assert "not sure" in said(p, "point")
    assert p.negative_directions == (0, True)
    lost = replace(point([4, 1], [-2.0, np.nan]), converged_smallest=np.array([True, False]))
    assert lost.kind == PointKind.SADDLE
    assert lost.negative_directions == (1, True)
    assert "some were not found" in said(lost, "eigenpairs")
    assert lost.condition_number == 4


def test_a_gradient_step() -> None:
    """g = (1, 1) along eigenvalues 6 and 2: gᵀg = 2, gᵀHg = 8."""
    p = point([6], [2], 2**0.5)
    assert p.rayleigh_quotient == pytest.approx(4)
    assert p.best_rate == pytest.approx(1 / 4)
    assert p.stable_rate == pytest.approx(1 / 3)
    assert p.predicted_loss_change == pytest.approx(-0.1 * 2 + 0.01 * 4)
    assert p.predicted_best_loss_change == pytest.approx(-(2**2) / (2 * 8))
    assert p.share_largest == pytest.approx(0.5)
    assert p.share_negative == 0
    assert "lower the loss by 0.16 (ε gᵀg = 0.2 > ½ ε² gᵀHg = 0.04)" in said(p, "step")
    assert "within it (0.3 of it)" in said(p, "stable rate")
    long = replace(p, learning_rate=0.6, loss_change=0.3)
    assert "raise the loss by 0.24 (ε gᵀg = 1.2 < ½ ε² gᵀHg = 1.44)" in said(long, "step")
    assert "measured to raise the loss by 0.3" in said(long, "step")
    assert "beyond it (1.8 of it)" in said(long, "stable rate")
    lost = replace(p, loss_change=np.inf, best_loss_change=np.nan)
    assert "not finite" in said(lost, "step")
    assert "not finite" in said(lost, "best rate")
    assert "within rounding" in said(replace(p, loss_change=-1e-13), "step")


def test_no_best_rate_where_the_loss_curves_down_along_the_gradient() -> None:
    p = point([1], [-3], 1.0)
    assert p.gradient_curvature == pytest.approx(-1)
    assert np.isnan(p.best_rate)
    assert "longer is better" in said(p, "best rate")
    assert "not positive" in said(p, "curvature")
    assert p.share_negative == pytest.approx(0.5)
    assert "50.00%" in said(p, "negative space")


def test_a_zero_gradient_leaves_rates_undefined() -> None:
    p = point([4], [-1])
    assert [np.isnan(x) for x in (p.rayleigh_quotient, p.best_rate, p.share_largest)] == [True] * 3
    assert "does nothing" in said(p, "curvature")
    assert "exactly" in said(p, "gradient")
    topics = {finding.topic for finding in findings(p)}
    assert not topics & {"step", "best rate", "top space"}
    assert {"stable rate", "escape"} <= topics


def test_without_the_largest_eigenvalues() -> None:
    p = point([], [-1.0], 1.0)
    assert np.isnan(p.stable_rate)
    assert "spectrum.largest" in said(p, "stable rate")
    assert "unknown" in said(p, "top space")
    assert "none is too large" in said(point([-1], [-2], 1.0), "stable rate")


def test_without_the_smallest_eigenvalues() -> None:
    p = point([1.0], [])
    assert "cannot be told" in said(p, "point")
    assert "spectrum.smallest" in said(p, "convexity")
    assert not {finding.topic for finding in findings(p)} & {"negative", "escape"}


def test_the_way_out() -> None:
    p = point([4], [-1], 1.0)
    assert "falls by 0.25 (12.50% of it) at a distance of 2, downhill" in said(p, "escape")
    assert "fc 75.0%, conv 25.0%" in said(p, "escape is of")
    assert "uphill at first" in said(replace(p, escape_best_distance=-2.0), "escape")
    assert "still falls there" in said(replace(p, escape_at_edge=True), "escape")
    assert "no lower loss" in said(replace(p, escape_loss_change=-1e-13), "escape")
    many = replace(
        p, layer=np.array(list("abcde"), object), escape_share=np.array([0.1, 0.4, 0.2, 0.2, 0.1])
    )
    assert said(many, "escape is of").endswith("b 40.0%, c 20.0%, d 20.0%, others 20.0%")


@pytest.mark.parametrize(
    ("optimizer", "momentum", "words"),
    [
        ("sgd", 0.0, "minibatches"),
        ("sgd", 0.9, "2 (1 + β) / λ_max = 0.95"),
        ("noisy_sgd", 0.0, "those of noisy_sgd, by minibatches"),
        ("rmsprop", 0.0, "rmsprop, which scales every entry"),
        ("adam", 0.0, "no advice for it"),
    ],
)
def test_the_optimiser_matters(optimizer: str, momentum: float, words: str) -> None:
    p = replace(point([4], [1], 1.0), optimizer=optimizer, momentum=momentum)
    assert words in said(p, "optimiser")


def test_the_note_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['mpi4py'] = sys.modules['petsc4py'] = None\n"
        "import hessdist.landscape.diagnosis\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
