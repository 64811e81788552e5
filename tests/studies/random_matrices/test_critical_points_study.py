"""Sections on critical points and on Hessians of two-layer networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from shown import figures_of, tables_of
from torch.func import functional_call, hessian, jacrev

from hessdist.config.studies import registry
from hessdist.errors import InputError, Stopped
from hessdist.landscape.index_energy import fit_three_halves
from hessdist.parallel import memory
from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements
from hessdist.studies.context import Context
from hessdist.studies.random_matrices import two_layer as of_two_layers
from hessdist.studies.random_matrices.critical_points import critical_points
from hessdist.studies.random_matrices.predictions import predicted_indices
from hessdist.studies.random_matrices.settings import CriticalPointsSection, TwoLayerSection
from hessdist.studies.random_matrices.two_layer import two_layer
from hessdist.theory.laws import Semicircle
from hessdist.theory.loss_model import LossModel
from hessdist.workload.models import mlp


def experiment(ranks: Ranks | None = None, **given: Any) -> Context:
    """All that the two sections use of one."""
    objective = SimpleNamespace(ranks=Ranks() if ranks is None else ranks)
    return Context(cast(Any, None), cast(Any, None), cast(Any, objective), **given)


@pytest.fixture(scope="module")
def points() -> Measurements:
    settings = CriticalPointsSection(
        width=3,
        ratios=[0.5, 1.0],
        networks=25,
        descent_steps=20,
        follow_steps=60,
        steps=40,
        fit_below=0.3,
    )
    return critical_points(experiment(), settings)


@pytest.fixture(scope="module")
def layers() -> Measurements:
    return two_layer(experiment(), TwoLayerSection(sizes=[3, 4], ratios=[0.5], networks=2))


# -- critical points -------------------------------------------------------------------------


def test_what_is_found(points: Measurements) -> None:
    assert list(points["activation"]) == ["tanh", "identity"]
    assert points["ratio"].tolist() == [0.5, 1.0]
    assert points["samples"].tolist() == [12, 6]
    found = points["found"]
    assert found.shape == (2, 2, 25)
    assert found[1].mean() > 0.8
    assert found[0].any()
    within = np.minimum(1e-6, 1e-4 * points["start_gradient_norm"])
    assert (points["gradient_norm"][found] <= within[found]).all()
    assert points["index"] == pytest.approx(points["negative"] / 18)
    assert (points["negative"] + points["zero"] <= 18).all()
    trivial = points["trivial"]
    assert (points["energy"][trivial] == pytest.approx(0.5)) or not trivial.any()
    assert (points["negative"][trivial] == 9).all()  # of 18: W1 and W2 move together


def test_linear_networks_against_the_closed_form(points: Measurements) -> None:
    found = points["found"][1]
    assert (points["closed_distance"][1][found] < 1e-6).all()
    same = points["closed_negative"][1][found] == points["negative"][1][found]
    assert same.mean() > 0.85
    assert np.isnan(points["closed_distance"][0]).all()
    isolated = points["zero"][1] == 0
    assert (isolated & found).sum() <= points["trivial"][1].sum()  # else by GL(h), or idle units


def test_scales_and_predictions_are_of_the_points(points: Measurements) -> None:
    """σ, norms and the laws' indices, against the points' own θ where it is known."""
    used = points["found"] & ~points["trivial"]
    most = np.maximum(points["norm_first"], points["norm_second"])
    assert (most >= points["largest_weights"] * (1 - 1e-12)).all()
    assert (points["mean_positive"][used] > 0).all()
    for law in ("wigner", "bilinear"):
        predicted, critical = points[f"index_{law}"], points[f"wishart_{law}"][:1]
        assert np.isnan(predicted[~used]).all()
        half = used[:, 0]  # φ = ½: there is a critical energy
        scaled = points["energy"][:, 0][half] / points["mean_positive"][:, 0][half] ** 2
        below = scaled <= critical[0]
        assert below.any()
        assert not below.all()
        assert (predicted[:, 0][half][below] == 0).all()
        assert (np.nan_to_num(predicted[:, 0][half][~below], nan=1.0) > 0).all()
    assert points["wishart_wigner"][1] == points["wishart_bilinear"][1] == 0  # φ = 1
    one = np.flatnonzero(used[0, 0])[0]
    law = LossModel(
        float(points["energy"][0, 0, one]), 0.5, scale=float(points["mean_positive"][0, 0, one])
    )
    assert points["index_wigner"][0, 0, one] == pytest.approx(law.index(), abs=1e-3)


def test_predictions_that_are_not_numbers() -> None:
    """No energy, or no scale, is no prediction and no error."""
    energies = np.array([np.nan, 0.3, 0.3])
    found = predicted_indices(energies, np.array([1.0, 0.0, 1.0]), 0.5, bilinear=False)
    assert np.isnan(found[:2]).all()
    assert 0 < found[2] < 0.5


def test_minima_are_stored_beside_the_fit(points: Measurements) -> None:
    for place in np.ndindex(2, 2):
        lowest = points["found"][place] & ~points["trivial"][place] & (points["index"][place] == 0)
        assert points["minima"][place] == lowest.sum()
        if lowest.any():
            mean = points["energy"][place][lowest].mean()
            assert points["minima_energy"][place] == pytest.approx(mean)
    names = [name for name, _ in figures_of({"critical_points": points}, "points")]
    assert names == ["critical-points", "critical-points-energy", "critical-points-units"]
    assert [table.row_count for table in tables_of({"critical_points": points})] == [4, 8]


def test_the_stored_fit_is_of_the_stored_points(points: Measurements) -> None:
    for place in np.ndindex(2, 2):
        used = points["found"][place] & ~points["trivial"][place]
        fit = fit_three_halves(points["index"][place][used], points["energy"][place][used], 0.3)
        for name in ("critical_energy", "coefficient", "exponent", "misfit"):
            assert points[name][place] == pytest.approx(getattr(fit, name), nan_ok=True)
        assert points["fitted_points"][place] == fit.points


def test_too_few_points_are_said() -> None:
    settings = CriticalPointsSection(
        width=3, activations=["identity"], ratios=[0.5], networks=3, descent_steps=1
    )
    section = critical_points(experiment(), settings)
    assert np.isnan(section["critical_energy"]).all()
    (line,) = registry()["critical_points"].remarks_on(section)
    assert "3 of 3 searches found a point" in line
    assert "too few for a fit" in line
    table, in_units = tables_of({"critical_points": section})
    assert (table.row_count, in_units.row_count) == (1, 2)
    for _, figure in figures_of({"critical_points": section}, "few"):
        assert figure.axes


def test_a_ratio_beyond_the_inputs_is_refused() -> None:
    with pytest.raises(InputError, match="at ratio 3 there are 2 samples of 3 inputs"):
        critical_points(experiment(), CriticalPointsSection(width=3, ratios=[3.0]))


def test_zero_is_told_from_small_starts() -> None:
    """The search promises a gradient, not how small θ is beside the start."""
    settings = CriticalPointsSection(
        width=3,
        ratios=[0.5],
        networks=10,
        scales=[1e-4, 1e-3],
        descent_steps=1,
        relative_tolerance=1e-3,
    )
    section = critical_points(experiment(), settings)
    found, trivial = section["found"], section["trivial"]
    assert (found & (np.abs(section["energy"] - 0.5) < 1e-6)).sum() >= 15
    assert np.array_equal(trivial, found & (np.abs(section["energy"] - 0.5) < 1e-6))


def test_searches_that_do_not_fit_are_refused() -> None:
    """Before anything is drawn: twelve million samples, and Hessians of a million parameters."""
    for settings in (
        CriticalPointsSection(ratios=[1e-6]),
        CriticalPointsSection(width=700, networks=1, ratios=[1.0]),
    ):
        with pytest.raises(InputError, match=r"study.critical_points: .* GiB are free; lower"):
            critical_points(experiment(), settings)


@pytest.mark.parametrize(
    ("section", "given", "told"),
    [
        (CriticalPointsSection, {"ratios": [1e-320]}, "equal to 0.000001"),
        (CriticalPointsSection, {"activations": ["tanh", "tanh"]}, "activations has a value twice"),
        (TwoLayerSection, {"sizes": [10, 8]}, "sizes do not increase"),
        (TwoLayerSection, {"ratios": [0.5, 0.5]}, "ratios has a value twice"),
    ],
)
def test_settings_that_are_refused(section: type[Any], given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        section(**given)


@pytest.mark.parametrize("which", ["critical_points", "two_layer"])
def test_a_signal_stops_the_work_between_steps(which: str) -> None:
    told: list[str] = []
    here = experiment(note=told.append, is_stopped=lambda: len(told) > 3)
    run: dict[str, Callable[[], Measurements]] = {
        "critical_points": partial(
            critical_points, here, CriticalPointsSection(width=3, ratios=[0.5])
        ),
        "two_layer": partial(two_layer, here, TwoLayerSection(sizes=[4])),
    }
    with pytest.raises(Stopped):
        run[which]()
    assert len(told) == 4


# -- Hessians at random weights --------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_two_parts_against_autograd(activation: str) -> None:
    """H₀ = J Jᵀ / m, and H₀ + H₁ the Hessian of Σ ‖ŷ − y‖² / (2m)."""
    rng = np.random.default_rng(0)
    n, m = 3, 5
    model = of_two_layers._network(rng, n, activation)
    inputs, targets = (torch.from_numpy(rng.standard_normal((m, n))) for _ in range(2))
    positive, residual = of_two_layers._parts(experiment(), model, inputs, targets, "here")
    theta = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    fresh = mlp([n, n, n], activation, bias=False).double()

    def outputs(row: torch.Tensor) -> torch.Tensor:
        pieces = {"fc1.weight": row[: n * n].view(n, n), "fc2.weight": row[n * n :].view(n, n)}
        return functional_call(fresh, pieces, (inputs,))

    def loss(row: torch.Tensor) -> torch.Tensor:
        return (outputs(row) - targets).square().sum() / (2 * m)

    jacobian = jacrev(outputs)(theta).reshape(m * n, -1).numpy()
    assert positive == pytest.approx(jacobian.T @ jacobian / m, abs=1e-12)
    assert positive + residual == pytest.approx(hessian(loss)(theta).numpy(), abs=1e-12)


def test_what_is_stored_of_two_layers(layers: Measurements) -> None:
    assert layers["energy"].shape == (2, 2, 2, 1, 2)
    assert list(layers["moment"]) == ["AB", "A²B", "AB²", "A²B²", "ABAB"]
    values = layers["eigenvalues"]
    assert values.shape == (2, 2, 2, 1, 4, 32)
    assert np.isnan(values[:, :, 0, :, :, 18:]).all()
    assert np.isfinite(values[:, :, 1]).all()
    trace = np.nansum(values, axis=-1)
    assert trace[..., 2] == pytest.approx(trace[..., 0] + trace[..., 1], abs=1e-9)
    assert trace[..., 3] == pytest.approx(trace[..., 2], abs=1e-9)
    squares = np.nansum(values**2, axis=-1)[..., 1] / np.array([18, 32])[:, None]
    assert layers["variance_residual"][..., 0] == pytest.approx(squares, rel=1e-9)
    # A linear network's n² directions of W₂ C, C⁻¹ W₁ do not move the outputs.
    zeros = (values[0, :, :, 0, 0] == 0).sum(axis=-1)
    assert (zeros == np.array([9, 16])).all()
    # As the parts of a linear network's H₁ lie beside the diagonal, λ and −λ come in pairs.
    pairs = values[0, :, 1, 0, 1]
    assert pairs == pytest.approx(-pairs[:, ::-1], abs=1e-12)
    assert (layers["distance_positive"] > 0).all()


def test_scales_in_the_mean_over_networks() -> None:
    """H₀ has mean 1, and H₁ of drawn residuals the variance εφ, by half with a ReLU."""
    settings = TwoLayerSection(sizes=[6], ratios=[0.5], residuals=["drawn"], networks=4)
    section = two_layer(experiment(), settings)
    for row, share in ((0, 1.0), (1, 0.5)):
        for name, expected in (
            ("mean_positive", 1.0),
            ("energy", 0.25),
            ("variance_residual", share * 0.25 * 0.5),
        ):
            values = section[name][row].ravel()
            error = values.std() / 4**0.5 + 0.02 * expected
            assert values.mean() == pytest.approx(expected, abs=4 * error), name
    assert section["variance_law"][0] == pytest.approx(2 * section["energy"][0])
    # Turned matrices are freer than the network's own.
    own, turned = (np.abs(section[name][..., 3] - 1).mean() for name in ("mixed", "mixed_rotated"))
    assert turned < own
    (table,) = tables_of({"two_layer": section})
    assert table.row_count == 2
    assert len(list(registry()["two_layer"].remarks_on(section))) == 2
    names = [name for name, _ in figures_of({"two_layer": section}, "small")]
    assert names == [
        "two-layer-identity-drawn",
        "two-layer-relu-drawn",
        "two-layer-distances",
        "two-layer-freeness",
    ]


def test_the_gradient_of_independent_residuals() -> None:
    """Its entries fall as 1/√n, its norm grows as √n: E ‖∇L‖² = 2εφnσ."""
    settings = TwoLayerSection(
        sizes=[4, 16], ratios=[0.5], activations=["identity"], residuals=["drawn"], networks=4
    )
    section = two_layer(experiment(), settings)
    norms = section["gradient_norm"][0, 0, :, 0]
    law = section["gradient_norm_law"][0, 0, :, 0]
    assert (norms / law).mean(axis=1) == pytest.approx([1.0, 1.0], abs=0.25)
    assert norms[1].mean() > 1.5 * norms[0].mean()
    sizes = np.array([32, 512])[:, None] ** 0.5
    assert (norms / sizes)[1].mean() < 0.7 * (norms / sizes)[0].mean()


def test_a_law_that_cannot_be_computed_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from hessdist.theory.transforms import ToleranceError

    def refuse(self: Semicircle, points: object) -> None:
        raise ToleranceError("not to 1e-10", "move the parameters")

    monkeypatch.setattr(Semicircle, "cumulative", refuse)
    settings = TwoLayerSection(
        sizes=[3], ratios=[0.5], activations=["identity"], residuals=["drawn"], networks=1
    )
    section = two_layer(experiment(), settings)
    assert np.isnan(section["distance_residual"]).all()
    assert np.isfinite(section["distance_positive"]).all()
    assert any(
        "H1 not to be computed" in line for line in registry()["two_layer"].remarks_on(section)
    )


def test_matrices_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"of 20,000,000 samples, .* lower"):
        two_layer(experiment(), TwoLayerSection(sizes=[10], ratios=[1e-6]))
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**6)
    with pytest.raises(InputError, match=r"dense matrices of 2,048 parameters, .* lower"):
        two_layer(experiment(), TwoLayerSection())


def test_the_ratio_is_that_of_whole_numbers_of_samples(layers: Measurements) -> None:
    assert layers["actual_ratio"].tolist() == [[0.5], [0.5]]
    settings = TwoLayerSection(
        sizes=[2, 3], ratios=[0.29], activations=["identity"], residuals=["drawn"], networks=1
    )
    assert two_layer(experiment(), settings)["actual_ratio"][:, 0] == pytest.approx([
        4 / 14,
        6 / 21,
    ])
    with pytest.raises(InputError, match="with 10 units and 1 samples the ratio is 20, not 1000"):
        two_layer(experiment(), TwoLayerSection(sizes=[10], ratios=[1000.0]))


@pytest.mark.parametrize(("ratio", "energy"), [(2.0, 0.25), (0.5, 1e6), (0.5, 1e-6)])
def test_a_pole_and_extreme_energies(ratio: float, energy: float) -> None:
    """At φ = 2 the law of independent residuals has a pole at zero: said, not left out."""
    settings = TwoLayerSection(
        sizes=[3],
        ratios=[ratio],
        activations=["identity"],
        residuals=["drawn"],
        networks=1,
        energy=energy,
    )
    section = two_layer(experiment(), settings)
    assert np.isfinite(section["distance_positive"]).all()
    assert np.isnan(section["distance_bilinear"]).all() == (ratio == 2)
    told = " ".join(registry()["two_layer"].remarks_on(section))
    assert ("has a pole at zero" in told) == (ratio == 2)
    drawn = dict(figures_of({"two_layer": section}, "a pole"))
    words = [text.get_text() for text in drawn["two-layer-distances"].axes[0].texts]
    assert words == ["not to be computed"] * (ratio == 2)


# -- over ranks ------------------------------------------------------------------------------


@pytest.mark.mpi(ranks=[1, 3], timeout=120, unit="s")
def test_the_same_numbers_on_any_number_of_ranks(mpi_ranks: int, comm: Any) -> None:
    """Batches and networks are dealt out to ranks, and nothing else depends on them."""
    settings = CriticalPointsSection(
        width=2,
        activations=["tanh"],
        ratios=[0.5],
        networks=45,
        descent_steps=10,
        follow_steps=20,
        steps=10,
    )
    found = critical_points(experiment(ranks=Ranks(comm)), settings)
    assert found["index"].shape == (1, 1, 45)
    alone = critical_points(experiment(ranks=Ranks(comm.Split(comm.rank))), settings)
    for name in found:
        assert np.array_equal(found[name], alone[name], equal_nan=found[name].dtype.kind == "f"), (
            name
        )
    of_layers = TwoLayerSection(sizes=[2], ratios=[0.5], activations=["identity"], networks=2)
    layers = two_layer(experiment(ranks=Ranks(comm)), of_layers)
    mine = two_layer(experiment(ranks=Ranks(comm.Split(comm.rank))), of_layers)
    for name in ("eigenvalues", "mixed", "distance_sum", "negative_law"):
        assert np.array_equal(layers[name], mine[name], equal_nan=True), name
