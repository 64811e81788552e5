"""Tables of random matrices and measured spectra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from hessdist.landscape.index_energy import (
    law_against_points,
    linear_energy,
    minima,
    tanh_energy,
)
from hessdist.present.cells import cut, new_list, new_table, number, percent
from hessdist.theory.shortcomings import LAWS, is_measured, parameters_of, where_it_fails

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def laws_summary(run: Run) -> Iterator[Table]:
    """Show the parameters and distances of fitted laws."""
    measured = run.studies["laws"]
    columns = ["step", "spectrum", "law", "parameters", "KS", "Wasserstein"]
    columns += ["near zero", "measured", "negative", "measured"]
    table = new_table(columns, "\nlaws of random matrices, fitted to measured spectra")
    for at in _fits(measured):
        shares = [
            percent(share)
            for name in ("spike", "negative")
            for share in (measured[f"law_{name}"][at], measured[name][at[:-1]])
        ]
        table.add_row(
            str(measured["step"][at[0]]),
            cut(str(measured["spectrum"][at[1]]), 24),
            LAWS[str(measured["law"][at[2]])],
            parameters_of(measured, at),
            *(number(measured[n][at]) for n in ("kolmogorov_smirnov", "wasserstein")),
            *shares,
        )
    yield table


def law_failures(run: Run) -> Iterator[Table]:
    """Describe where fitted laws fail."""
    measured = run.studies["laws"]
    table = new_list("\nwhere fitted laws fail")
    for at in _fits(measured):
        spectrum, law = cut(str(measured["spectrum"][at[1]]), 24), LAWS[str(measured["law"][at[2]])]
        name = f"{measured['step'][at[0]]}: {spectrum}, {law}"
        table.add_row(name, where_it_fails(measured, at))
    yield table


def _fits(measured: Measurements) -> Iterator[tuple[int, ...]]:
    """Return the indices of fits: a step, a spectrum that was measured there, and a law."""
    return (at for at in np.ndindex(measured["misfit"].shape) if is_measured(measured, at[:-1]))


def critical_points(run: Run) -> Iterator[Table]:
    """Show critical points of two-layer networks, the fitted 3/2 law, and the laws' own ε_c."""
    yield from critical_energies(run)
    yield from laws_of_points(run)


def critical_energies(run: Run) -> Iterator[Table]:
    """Show critical points of two-layer networks, and the 3/2 law fitted to them."""
    measured = run.studies["critical_points"]
    columns = [
        "units",
        "φ",
        "found",
        "θ = 0",
        "index 0",
        "their ε",
        "ε_c",
        "α₀",
        "exponent",
        "χ²/ν",
    ]
    columns += ["points", "½(1 − φ)²", "½(1 − φ)"]
    table = new_table(columns, "\ncritical points")

    def fitted(name: str, place: tuple[int, ...]) -> str:
        value, error = measured[name][place], measured[f"{name}_error"][place]
        return f"{value:.3g} ± {error:.2g}" if np.isfinite(value) else ""

    for place in np.ndindex(measured["critical_energy"].shape):
        row, column = place
        ratio = measured["ratio"][column]
        found, trivial = measured["found"][place], measured["trivial"][place]
        used = found & ~trivial
        lowest = minima(measured["index"][place][used], measured["energy"][place][used])
        table.add_row(
            str(measured["activation"][row]),
            f"{ratio:.4g}",
            f"{found.sum()}/{len(found)}",
            str(trivial.sum()),
            str(lowest.points),
            f"{lowest.energy:.3f} ± {lowest.error:.1g}" if lowest.points else "",
            *(fitted(name, place) for name in ("critical_energy", "coefficient", "exponent")),
            f"{measured['misfit'][place]:.2g}",
            str(measured["fitted_points"][place]),
            f"{tanh_energy(ratio):.3f}",
            f"{linear_energy(ratio):.3f}",
        )
    yield table


def laws_of_points(run: Run) -> Iterator[Table]:
    """Compare critical energies and indices of two laws with the points, in units of σ²."""
    measured = run.studies["critical_points"]
    if "mean_positive" not in measured:  # of an earlier version
        return
    columns = ["units", "φ", "law of H₁", "median σ", "ε / σ²", "ε_c / σ²", "index 0 above ε_c"]
    columns += ["saddles below ε_c", "mean α", "by the law"]
    table = new_table(columns, "\ncritical points in the units of their H₀, and the laws")
    for place in np.ndindex(measured["critical_energy"].shape):
        used = measured["found"][place] & ~measured["trivial"][place]
        index, energy, scale = (
            measured[name][place][used] for name in ("index", "energy", "mean_positive")
        )
        for law in ("wigner", "bilinear"):
            critical = float(measured[f"wishart_{law}"][place[1]])
            predicted = measured[f"index_{law}"][place][used]
            found = law_against_points(index, energy, scale, critical, predicted)
            table.add_row(
                str(measured["activation"][place[0]]),
                f"{measured['ratio'][place[1]]:.4g}",
                "Wigner" if law == "wigner" else "independent",
                number(float(np.median(scale))) if used.any() else "",
                number(found.energy),
                number(critical),
                f"{found.minima_above}/{found.minima}",
                f"{found.saddles_below}/{found.saddles}",
                number(found.index),
                number(found.predicted),
            )
    yield table


def two_layer(run: Run) -> Iterator[Table]:
    """Compare Hessians of two-layer networks with the laws, and show their moments."""
    measured = run.studies["two_layer"]
    columns = ["units", "residuals", "φ", "n", "ε", "H0", "H1", "H1 indep.", "H", "H turned"]
    columns += ["A²B²", "ABAB", "λ < 0", "by law"]
    title = "\ntwo layers: distances from the laws; mixed moments (free: 1 and 0)"
    table = new_table(columns, title)
    shape = measured["energy"].shape
    for i, j, k, size in np.ndindex(shape[0], shape[1], shape[3], shape[2]):
        at = i, j, size, k
        names = ["energy", "distance_positive", "distance_residual", "distance_bilinear"]
        names += ["distance_sum", "distance_turned"]
        numbers = [measured[name][at].mean() for name in names]
        numbers += list(measured["mixed"][at].mean(axis=0)[-2:])
        numbers += [measured[name][at].mean() for name in ("negative", "negative_law")]
        table.add_row(
            str(measured["activation"][i]),
            str(measured["residuals"][j]),
            f"{measured['actual_ratio'][size, k]:.4g}",
            str(measured["size"][size]),
            *(f"{number:.3f}" if np.isfinite(number) else "" for number in numbers),
        )
    yield table


def loss_model(run: Run) -> Iterator[Table]:
    """Show critical energies of the model of the loss, in closed form and by a search."""
    measured = run.studies["loss_model"]
    columns = ["model", "φ", "ε_c", "ε_c where the edge passes zero", "α₀", "largest α computed"]
    table = new_table(columns, "\nmodel of the loss: Wishart + H₁, H₁ Wigner's or a ReLU's")
    for i, j in np.ndindex(measured["critical_energy"].shape):
        table.add_row(
            str(measured["model"][i]),
            f"{measured['ratio'][j]:g}",
            f"{measured['critical_energy'][i, j]:.10g}",
            f"{measured['critical_energy_located'][i, j]:.10g}",
            f"{measured['index_coefficient'][i, j]:.5g}",
            f"{measured['index'][i, j].max():.4f}",
        )
    yield table


def laws(run: Run) -> Iterator[Table]:
    """Show the fits of all laws, and where they fail."""
    yield from laws_summary(run)
    yield from law_failures(run)
