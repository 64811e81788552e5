"""The figures of Alain, Le Roux and Manzagol (2018)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hessdist.landscape.found import Found
from hessdist.present.axes import (
    colours_of,
    draw_medians,
    heading,
    key,
    legend_below,
    new_figure,
    panels,
    step_bar,
)
from hessdist.present.spectra import entry_norm
from hessdist.present.style import BLUE, DARK, RED
from hessdist.results.schema import ENDS
from hessdist.studies.negative_curvature.heat import distance_text, has_places, heat_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements


def draw_lines(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the loss along the eigenvectors, one figure a pair and span, and one of wide spans."""
    measured = run.studies["lines"]
    wide = measured["span"].max() >= 1000 * measured["span"].min()  # too much for linear axes
    for row, step in enumerate(measured["step"]):
        for column, pair in enumerate(measured["pair"]):
            for span in measured["span"]:
                name = f"line-step-{step}-{pair.replace(' ', '-')}-{span:g}"
                yield name, along_eigenvector(measured, row, column, span, title)
            if wide:
                name = f"line-step-{step}-{pair.replace(' ', '-')}-far"
                yield name, far_out(measured, row, column, title)


def draw_step_sizes(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the best decrease and the inverse of the best step, for |λ| up to several limits."""
    measured = run.studies["step_sizes"]
    for suffix, limit in (("", 1.0), ("-wide", 5.0), ("-near-zero", 0.2)):
        yield f"best-decrease{suffix}", best_decrease(measured, limit, title)
    for suffix, limit in (("", 1.0), ("-wide", 5.0), ("-all", 100.0)):
        yield f"inverse-step{suffix}", inverse_step(measured, limit, title)
    yield "gains", gains(measured, title)


def draw_subsets(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw eigenvalues and angles of the subsets."""
    measured = run.studies["subsets"]
    for row, step in enumerate(measured["step"]):
        for end in ENDS:
            if measured[f"eigenvalues_{end}_full"].shape[-1]:
                yield f"subsets-{end}-step-{step}", subset_against_full(measured, row, end, title)


def draw_blocks(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the spectra of the blocks and the shares of the layers."""
    measured = run.studies["blocks"]
    for row, step in enumerate(measured["step"]):
        yield f"layer-shares-step-{step}", layer_shares(measured, row, title)
        yield f"blocks-step-{step}", block_spectra(measured, row, title)
        if has_places(measured):
            yield f"block-heat-step-{step}", block_heat(measured, row, title)


def draw_optimizer(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the training losses and the quality of the estimate."""
    measured = run.studies["optimizer"]
    yield "optimizer-loss", optimizer_loss(measured, title)
    if len(measured["exact_at"]):
        yield "optimizer-tracking", tracking(measured, title)


# -- figures 1 and 2 -------------------------------------------------------------------------


def along_eigenvector(
    measured: Measurements, row: int, column: int, span: float, title: str
) -> Figure:
    """Draw L(θ − α [gᵀv] v) and its quadratic model on |α| ≤ span: figures 1 and 2.

    A loss that is not finite is a gap.
    """
    pair, value = measured["pair"][column], measured["eigenvalue"][row, column]
    step, alpha = measured["step"][row], measured["alpha"]
    figure, axes = new_figure(f"{title}: loss along {pair}, λ = {value:.4g}, step {step}")
    shown = np.abs(alpha) <= span * (1 + 1e-9)
    for name, colour, text, style in (
        ("loss", RED, "loss over all samples", "o-"),
        ("quadratic_model", BLUE, "quadratic model", "--"),
    ):
        values = measured[name][row, column][shown]
        known = np.where(np.isfinite(values), values, np.nan)
        axes.plot(alpha[shown], known, style, color=colour, label=text, markersize=3)
    axes.axvline(0, color=DARK, linewidth=0.6)
    axes.set_xlabel("step size α of θ − α (gᵀv) v")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    return figure


def far_out(measured: Measurements, row: int, column: int, title: str) -> Figure:
    """Draw the loss against the length of the step, |α gᵀv|, on logarithmic axes.

    Each side of θ has a line; a power of the length is a straight one, with the exponent as its
    slope. The exponent between the last two steps is in the legend. A loss that is not positive and
    finite is a gap.
    """
    pair, value = measured["pair"][column], measured["eigenvalue"][row, column]
    alpha, losses = measured["alpha"], measured["loss"][row, column]
    figure, axes = new_figure(
        f"{title}: loss far out along {pair}, λ = {value:.4g}, step {measured['step'][row]}"
    )
    for sign, colour, text in ((1, BLUE, "down the slope"), (-1, RED, "up the slope")):
        side = np.flatnonzero(sign * alpha > 0)[::sign]  # from θ outwards
        length = np.abs(alpha[side] * measured["slope"][row, column])
        loss = np.where(np.isfinite(losses[side]) & (losses[side] > 0), losses[side], np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):  # a pair that was not found
            power = np.log(loss[-1] / loss[-2]) / np.log(length[-1] / length[-2])
        axes.loglog(
            length, loss, "o-", color=colour, markersize=3, label=f"{text}: power {power:.2f}"
        )
    axes.set_xlabel("length of the step, |α gᵀv|")
    axes.set_ylabel("loss over all samples")
    axes.legend(frameon=False)
    return figure


# -- figures 3, 4, 7 and 8 -------------------------------------------------------------------


def best_decrease(measured: Measurements, limit: float, title: str) -> Figure:
    """Draw L(α*) − L(0) against λ, for |λ| up to a limit: figures 3 and 7.

    Marks are coloured by training step; hollow triangles are edges of the scan.
    """
    text = f"{title}: best change of the loss along each eigenvector, |λ| ≤ {limit:g}"
    figure, axes = new_figure(text)
    _scatter(figure, axes, measured, measured["best_loss_change"], limit, "viridis")
    axes.axhline(0, color=DARK, linewidth=0.6)
    axes.set_xlabel("eigenvalue λ")
    axes.set_ylabel("L(α*) − L(0); lower is better")
    return figure


def inverse_step(measured: Measurements, limit: float, title: str) -> Figure:
    """Draw 1/α* against λ, with 1/α* = λ and 1/α* = |λ|: figures 4 and 8.

    Marks are coloured by training step; hollow triangles are edges of the scan.
    """
    figure, axes = new_figure(f"{title}: inverse of the best step, |λ| ≤ {limit:g}")
    with np.errstate(divide="ignore"):
        inverse = 1 / measured["best_step"]
    _scatter(figure, axes, measured, inverse, limit, "plasma")
    ends = np.array([-limit, 0.0, limit])
    axes.plot(ends, ends, "--", color=DARK, linewidth=1, label="1/α* = λ (Newton)")
    axes.plot(ends, np.abs(ends), ":", color=DARK, linewidth=1.4, label="1/α* = |λ| (saddle-free)")
    axes.set_ylim(-1.1 * limit, 1.1 * limit)
    axes.set_xlabel("eigenvalue λ")
    axes.set_ylabel("1/α*")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _scatter(
    figure: Figure,
    axes: Axes,
    measured: Measurements,
    values: NDArray[np.float64],
    limit: float,
    colours: str,
) -> None:
    """Draw values against λ, one colour a step."""
    chosen = colours_of(len(measured["step"]), colours)
    some = False
    for row, colour in enumerate(chosen):
        eigenvalues, edge = measured["eigenvalue"][row], measured["found"][row] == Found.EDGE
        shown = (np.abs(eigenvalues) <= limit) & np.isfinite(values[row])
        for kind, mark, fill in ((~edge, "o", colour), (edge, "^", "none")):
            place = eigenvalues[shown & kind], values[row][shown & kind]
            axes.plot(*place, mark, color=colour, markerfacecolor=fill, markersize=4)
        some |= bool(shown.any())
    axes.set_xlim(-1.03 * limit, 1.03 * limit)
    if not some:
        axes.text(0, 0, "no eigenvalue of the run lies here", ha="center")
    step_bar(figure, axes, measured["step"], chosen)


def gains(measured: Measurements, title: str) -> Figure:
    """Draw the gain of a step along all eigenvectors, by the rules 1/λ, 1/|λ| and α*."""
    figure, axes = new_figure(f"{title}: a joint step along all eigenvectors, relative to L(0)")
    labels = {"newton": "1/λ (Newton)", "saddle_free": "1/|λ| (saddle-free)", "measured": "α*"}
    steps = [str(step) for step in measured["step"]]
    everything = list(measured["directions"]).index("all")
    for rule, (name, mark) in enumerate(zip(measured["rule"], "svo", strict=True)):
        change = measured["joint_loss_change"][:, rule, everything] / measured["start"]
        axes.plot(steps, change, f"{mark}-", label=labels[name], color=colours_of(3)[rule])
    axes.axhline(0, color=DARK, linewidth=0.6)
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set_xlabel("training step")
    axes.set_ylabel("change of the loss / L(0)")
    axes.legend(frameon=False)
    return figure


# -- appendix D ------------------------------------------------------------------------------


def subset_against_full(measured: Measurements, row: int, end: str, title: str) -> Figure:
    """Draw relative differences of eigenvalues and angles of vectors, by rank: appendix D.

    Eigenvalues are above, and angles below. A colour is a fraction, a mark a seed.
    """
    step, fractions = measured["step"][row], measured["fraction"]
    text = f"{title}: subsets against all samples, {end} eigenpairs, step {step}"
    figure, ((upper,), (lower,)) = panels(text, 2, 1, height=6.4, sharex=True)
    difference, angle, principal = (
        measured[f"{name}_{end}"][row]
        for name in ("relative_difference", "matched_angle", "principal_angle")
    )
    ranks, colours = np.arange(1, difference.shape[-1] + 1), colours_of(len(fractions))
    for i, j in np.ndindex(difference.shape[:2]):
        upper.plot(ranks, difference[i, j], "o", color=colours[i], markersize=4)
        lower.plot(ranks, angle[i, j], "o", color=colours[i], markersize=4)
        lower.plot(ranks, principal[i, j], "-", color=colours[i], linewidth=0.8)
    upper.axhline(0, color=DARK, linewidth=0.6)
    upper.set_ylabel("(λ_subset − λ) / |λ|")
    lower.set_ylabel("angle to the matched vector, degrees")
    lower.set_ylim(0, 92)
    lower.set_xlabel(f"rank from the {end} eigenvalue")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    keys = [
        key(f"{fraction:.3g} of samples", colour, "o")
        for colour, fraction in zip(colours, fractions, strict=True)
    ]
    spaces = key("principal angles between the spaces", DARK, line="-")
    legend_below(figure, [*keys, spaces], 3, None)
    return figure


# -- single layers ---------------------------------------------------------------------------


def layer_shares(measured: Measurements, row: int, title: str) -> Figure:
    """Draw the share of each layer in eigenvectors, gradient and parameters, as a matrix."""
    shares = np.vstack([
        measured[name][row] for name in ("share", "gradient_share", "parameter_share")
    ])
    names = [*measured["pair"], "gradient", "parameters"]
    text = f"{title}: share of the layers, step {measured['step'][row]}"
    figure, axes = new_figure(text, height=1.8 + 0.22 * len(names))
    axes.grid(False)
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(shares.shape[1]), measured["layer"])
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "xx-small"}
    for (i, j), share in np.ndenumerate(shares):
        axes.text(j, i, f"{share:.2f}", color="black" if share > 0.6 else "white", **centred)
    figure.colorbar(image, ax=axes, label="share of the squared norm")
    return figure


def block_spectra(measured: Measurements, row: int, title: str) -> Figure:
    """Draw extreme eigenvalues of each block, and those of the whole Hessian.

    Crosses did not converge.
    """
    figure, axes = new_figure(f"{title}: spectra of blocks, step {measured['step'][row]}")
    names = ["all", *measured["block"]]
    whole = measured["eigenvalue"][row]
    axes.plot(np.zeros(len(whole)), whole, "_", color=DARK, markersize=14)
    for column in range(len(names) - 1):
        for end, colour in (("largest", BLUE), ("smallest", RED)):
            values = measured[f"eigenvalues_{end}"][row, column]
            good = measured[f"converged_{end}"][row, column]
            for shown, mark in ((good, "_"), (~good, "x")):
                place = np.full(int(shown.sum()), column + 1)
                axes.plot(place, values[shown], mark, color=colour, markersize=14)
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.axhline(0, color=DARK, linewidth=0.6)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("eigenvalue")
    return figure


def block_heat(measured: Measurements, row: int, title: str) -> Figure:
    """Draw the extreme eigenvalues of the blocks by depth and kind, both ends.

    Headings compare the block-diagonal matrix D with the whole one. A cross did not converge.
    """
    text = f"{title}: eigenvalues of the diagonal blocks, step {measured['step'][row]}"
    maps = {end: heat for end in ENDS if (heat := heat_of(measured, row, end))}
    first = next(iter(maps.values()))
    height = min(1.9 + 0.24 * len(first.depths), 14)
    figure, ((*both,),) = panels(text, 1, len(maps), height=height, width=9.0, sharey=True)
    for axes, (end, heat) in zip(both, maps.items(), strict=True):
        axes.grid(False)
        norm = entry_norm(float(np.nanmax(np.abs(heat.values), initial=1e-300)))
        image = axes.imshow(heat.values, cmap="RdBu_r", norm=norm, aspect="auto")
        axes.set_xticks(range(len(heat.kinds)), heat.kinds, fontsize="x-small", rotation=30)
        axes.set_yticks(range(len(heat.depths)), heat.depths, fontsize="x-small")
        dark = np.abs(image.norm(heat.values) - 0.5) > 0.35
        for (i, j), strong in np.ndenumerate(dark):
            colour = "white" if strong else "black"
            centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "xx-small"}
            axes.text(j, i, heat.texts[i][j], color=colour, **centred)
        heading(axes, f"{end} λ; {distance_text(measured, row, end)}", "x-small")
    both[0].set_ylabel("depth")
    return figure


# -- appendix E ------------------------------------------------------------------------------


def optimizer_loss(measured: Measurements, title: str) -> Figure:
    """Draw the loss over all samples against minibatches, with and without steps along ṽ.

    Lines are medians over seeds, with the range between the extremes.
    """
    figure, axes = new_figure(f"{title}: training with steps along the most negative curvature")
    at, colours = measured["iteration"], colours_of(len(measured["run"]))
    for name, losses, colour in zip(measured["run"], measured["loss"], colours, strict=True):
        draw_medians(axes, at, losses, colour, "-" if "+" in name else "--", label=name)
    axes.set_yscale("log")
    axes.set_xlabel("minibatches")
    axes.set_ylabel(f"loss over all samples, {len(measured['seed'])} seeds")
    axes.legend(frameon=False, fontsize="small")
    return figure


def tracking(measured: Measurements, title: str) -> Figure:
    """Draw the angles of ṽ to the exact eigenvector and to SA(m), and λ̃ with λ_d."""
    text = f"{title}: the running estimate beside the exact pair"
    figure, ((upper,), (lower,)) = panels(text, 2, 1, height=6.4, sharex=True)
    at, colours = measured["exact_at"], colours_of(len(measured["tracked"]))
    for row, (name, colour) in enumerate(zip(measured["tracked"], colours, strict=True)):
        upper.plot(at, measured["angle"][row], "o-", color=colour, label=name)
        upper.plot(at, measured["angle_to_space"][row], "s--", color=colour, markersize=3)
        lower.plot(at, measured["curvature_along"][row], "o-", color=colour, label="ṽᵀHṽ")
        lower.plot(at, measured["estimate"][row], "s--", color=colour, markersize=3)
        lower.plot(at, measured["eigenvalues_smallest"][row, :, 0], ":", color=colour)
    upper.set_ylabel("angle, degrees: to v_d (solid), SA(m) (dashed)")
    upper.set_ylim(0, 92)
    lower.set_ylabel("ṽᵀHṽ (solid), λ̃ (dashed), λ_d (dotted)")
    lower.set_yscale("symlog", linthresh=1e-2)
    lower.set_xlabel("minibatches")
    upper.legend(frameon=False, fontsize="small")
    return figure
