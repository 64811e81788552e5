"""Tables of random matrices beside measurement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from hessdist.present.cells import cut, new_table, number, percent
from hessdist.theory.shortcomings import LAWS, is_measured, parameters_of, where_it_fails

if TYPE_CHECKING:
    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def laws_summary(run: Run) -> Iterator[Table]:
    """Fitted laws in numbers."""
    section = run.studies["laws"]
    columns = ["step", "spectrum", "law", "parameters", "KS", "Wasserstein"]
    columns += ["near zero", "measured", "negative", "measured"]
    table = new_table(columns, "\nlaws of random matrices, fitted to measured spectra")
    for at in _fits(section):
        shares = [
            percent(share)
            for name in ("spike", "negative")
            for share in (section[f"law_{name}"][at], section[name][at[:-1]])
        ]
        table.add_row(
            str(section["step"][at[0]]),
            escape(cut(str(section["spectrum"][at[1]]), 24)),
            LAWS[str(section["law"][at[2]])],
            parameters_of(section, at),
            *(number(section[n][at]) for n in ("kolmogorov_smirnov", "wasserstein")),
            *shares,
        )
    yield table


def law_failures(run: Run) -> Iterator[Table]:
    """Where fitted laws fail, in words."""
    section = run.studies["laws"]
    table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
    table.title = "\nwhere fitted laws fail"
    table.add_column(no_wrap=True)
    table.add_column()
    for at in _fits(section):
        spectrum, law = cut(str(section["spectrum"][at[1]]), 24), LAWS[str(section["law"][at[2]])]
        what = f"{section['step'][at[0]]}: {spectrum}, {law}"
        table.add_row(escape(what), escape(where_it_fails(section, at)))
    yield table


def _fits(section: Measurements) -> Iterator[tuple[int, ...]]:
    """Places of fits: a step, a spectrum that was measured there, and a law."""
    return (at for at in np.ndindex(section["misfit"].shape) if is_measured(section, at[:-1]))


def critical_points(run: Run) -> Iterator[Table]:
    """Critical points of two-layer networks, and the 3/2 law fitted to them."""
    section = run.studies["critical_points"]
    columns = ["units", "φ", "found", "θ = 0", "ε₀", "ε_c", "α₀", "exponent", "χ²/ν"]
    columns += ["points", "½(1 − φ)²", "½(1 − φ)"]
    table = new_table(columns, "\ncritical points")

    def fitted(name: str, place: tuple[int, ...]) -> str:
        value, error = section[name][place], section[f"{name}_error"][place]
        return f"{value:.3g} ± {error:.2g}" if np.isfinite(value) else ""

    for place in np.ndindex(section["critical_energy"].shape):
        row, column = place
        ratio = section["ratio"][column]
        found, trivial = section["found"][place], section["trivial"][place]
        minima = section["energy"][place][found & ~trivial & (section["index"][place] == 0)]
        table.add_row(
            str(section["activation"][row]),
            f"{ratio:.4g}",
            f"{found.sum()}/{len(found)}",
            str(trivial.sum()),
            f"{minima.mean():.3f}" if minima.size else "",
            *(fitted(name, place) for name in ("critical_energy", "coefficient", "exponent")),
            f"{section['misfit'][place]:.2g}",
            str(section["fitted_points"][place]),
            f"{max(1 - ratio, 0) ** 2 / 2:.3f}",
            f"{max(1 - ratio, 0) / 2:.3f}",
        )
    yield table


def two_layer(run: Run) -> Iterator[Table]:
    """Hessians of two-layer networks against the laws, and their distance from freeness."""
    section = run.studies["two_layer"]
    columns = ["units", "residuals", "φ", "n", "ε", "H0", "H1", "H1 indep.", "H", "H turned"]
    columns += ["A²B²", "ABAB", "λ < 0", "by law"]
    title = "\ntwo layers: distances from the laws; mixed moments (free: 1 and 0)"
    table = new_table(columns, title)
    shape = section["energy"].shape
    for i, j, k, size in np.ndindex(shape[0], shape[1], shape[3], shape[2]):
        at = i, j, size, k
        names = ["energy", "distance_positive", "distance_residual", "distance_bilinear"]
        names += ["distance_sum", "distance_turned"]
        numbers = [section[name][at].mean() for name in names]
        numbers += list(section["mixed"][at].mean(axis=0)[-2:])
        numbers += [section[name][at].mean() for name in ("negative", "negative_law")]
        table.add_row(
            str(section["activation"][i]),
            str(section["residuals"][j]),
            f"{section['actual_ratio'][size, k]:.4g}",
            str(section["size"][size]),
            *(f"{number:.3f}" if np.isfinite(number) else "" for number in numbers),
        )
    yield table


def loss_model(run: Run) -> Iterator[Table]:
    """Critical energies of the model of the loss, in closed form and found again."""
    section = run.studies["loss_model"]
    columns = ["model", "φ", "ε_c", "ε_c where the edge passes zero", "α₀", "largest α computed"]
    table = new_table(columns, "\nmodel of the loss: Wishart + H₁, H₁ Wigner's or a ReLU's")
    for i, j in np.ndindex(section["critical_energy"].shape):
        table.add_row(
            str(section["model"][i]),
            f"{section['ratio'][j]:g}",
            f"{section['critical_energy'][i, j]:.10g}",
            f"{section['critical_energy_located'][i, j]:.10g}",
            f"{section['index_coefficient'][i, j]:.5g}",
            f"{section['index'][i, j].max():.4f}",
        )
    yield table


def laws(run: Run) -> Iterator[Table]:
    """All tables of the study."""
    yield from laws_summary(run)
    yield from law_failures(run)
