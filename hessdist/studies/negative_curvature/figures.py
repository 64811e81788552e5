"""The figures of Alain, Le Roux and Manzagol (2018), from the sections of a run's studies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from hessdist.present.axes import colours_of, page, step_bar
from hessdist.results.schema import ENDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from hessdist.results.reader import Run
    from hessdist.results.units import Measurements

_EDGE = 1  # of `found`, which says so in its long_name
_DECREASES = {"": 1.0, "-wide": 5.0, "-near-zero": 0.2}  # |λ|: figures 3 and 7
_STEPS = {"": 1.0, "-wide": 5.0, "-all": 100.0}  # figures 4 and 8
_MEASURED, _MODEL, _MARK = "#c8501e", "#1f5fa8", "#444444"


def draw_lines(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the loss along the eigenvectors, one figure a pair and span."""
    section = run.studies["lines"]
    yield from _lines(section, title)


def draw_step_sizes(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the best decrease and the inverse of the best step."""
    section = run.studies["step_sizes"]
    for suffix, limit in _DECREASES.items():
        yield f"best-decrease{suffix}", best_decrease(section, limit, title)
    for suffix, limit in _STEPS.items():
        yield f"inverse-step{suffix}", inverse_step(section, limit, title)
    yield "gains", gains(section, title)


def draw_subsets(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw eigenvalues and angles of the subsets."""
    section = run.studies["subsets"]
    yield from _subsets(section, title)


def draw_blocks(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the spectra of the blocks and the shares of the layers."""
    section = run.studies["blocks"]
    yield from _blocks(section, title)


def draw_optimizer(run: Run, title: str) -> Iterator[tuple[str, Figure]]:
    """Draw the training losses and the quality of the estimate."""
    section = run.studies["optimizer"]
    yield "optimizer-loss", optimizer_loss(section, title)
    if len(section["exact_at"]):
        yield "optimizer-tracking", tracking(section, title)


# -- figures 1 and 2 -------------------------------------------------------------------------


def _lines(section: Measurements, title: str) -> Iterator[tuple[str, Figure]]:
    for row, step in enumerate(section["step"]):
        for column, pair in enumerate(section["pair"]):
            for span in section["span"]:
                name = f"line-step-{step}-{pair.replace(' ', '-')}-{span:g}"
                yield name, along_eigenvector(section, row, column, span, title)


def along_eigenvector(
    section: Measurements, row: int, column: int, span: float, title: str
) -> Figure:
    """L(θ − α [gᵀv] v) and its quadratic model on |α| ≤ span: figures 1 and 2.

    Args:
        section: The section "lines".
        row: Of the step.
        column: Of the pair.
        span: Largest |α|.
        title: Of the run.

    Returns:
        The figure; a loss that is not finite is a gap.
    """
    pair, value = section["pair"][column], section["eigenvalue"][row, column]
    figure, axes = page(f"{title}: loss along {pair}, λ = {value:.4g}, step {section['step'][row]}")
    alpha = section["alpha"]
    shown = np.abs(alpha) <= span * (1 + 1e-9)
    for name, colour, label, style in (
        ("loss", _MEASURED, "loss over all samples", "o-"),
        ("quadratic_model", _MODEL, "quadratic model", "--"),
    ):
        values = section[name][row, column][shown]
        axes.plot(
            alpha[shown],
            np.where(np.isfinite(values), values, np.nan),
            style,
            color=colour,
            label=label,
            markersize=3,
        )
    axes.axvline(0, color=_MARK, linewidth=0.6)
    axes.set_xlabel("step size α of θ − α (gᵀv) v")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    return figure


# -- figures 3, 4, 7 and 8 -------------------------------------------------------------------


def best_decrease(section: Measurements, limit: float, title: str) -> Figure:
    """L(α*) − L(0) against λ: figures 3 and 7.

    Args:
        section: The section "step_sizes".
        limit: Largest |λ| shown.
        title: Of the run.

    Returns:
        The figure, coloured by training step; hollow triangles are edges of the scan.
    """
    figure, axes = page(f"{title}: best change of the loss along each eigenvector, |λ| ≤ {limit:g}")
    _scatter(figure, axes, section, section["best_loss_change"], limit, "viridis")
    axes.axhline(0, color=_MARK, linewidth=0.6)
    axes.set_xlabel("eigenvalue λ")
    axes.set_ylabel("L(α*) − L(0); lower is better")
    return figure


def inverse_step(section: Measurements, limit: float, title: str) -> Figure:
    """1/α* against λ, with 1/α* = λ and 1/α* = |λ|: figures 4 and 8.

    Args:
        section: The section "step_sizes".
        limit: Largest |λ| shown.
        title: Of the run.

    Returns:
        The figure, coloured by training step; hollow triangles are edges of the scan.
    """
    figure, axes = page(f"{title}: inverse of the best step, |λ| ≤ {limit:g}")
    with np.errstate(divide="ignore"):
        inverse = 1 / section["best_step"]
    _scatter(figure, axes, section, inverse, limit, "plasma")
    ends = np.array([-limit, 0.0, limit])
    axes.plot(ends, ends, "--", color=_MARK, linewidth=1, label="1/α* = λ (Newton)")
    axes.plot(ends, np.abs(ends), ":", color=_MARK, linewidth=1.4, label="1/α* = |λ| (saddle-free)")
    axes.set_ylim(-1.1 * limit, 1.1 * limit)
    axes.set_xlabel("eigenvalue λ")
    axes.set_ylabel("1/α*")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _scatter(
    figure: Figure,
    axes: Axes,
    section: Measurements,
    values: NDArray[np.float64],
    limit: float,
    colours: str,
) -> None:
    """Values against λ, one colour a step."""
    chosen = colours_of(len(section["step"]), colours)
    some = False
    for row, colour in enumerate(chosen):
        eigenvalues, found = section["eigenvalue"][row], section["found"][row]
        shown = (np.abs(eigenvalues) <= limit) & np.isfinite(values[row])
        for good, mark, fill in ((found != _EDGE, "o", colour), (found == _EDGE, "^", "none")):
            axes.plot(
                eigenvalues[shown & good],
                values[row][shown & good],
                mark,
                color=colour,
                markerfacecolor=fill,
                markersize=4,
            )
        some |= bool(shown.any())
    axes.set_xlim(-1.03 * limit, 1.03 * limit)
    if not some:
        axes.text(0, 0, "no eigenvalue of the run lies here", ha="center")
    step_bar(figure, axes, section["step"], chosen)


def gains(section: Measurements, title: str) -> Figure:
    """What steps along all eigenvectors at once gain, by rule: 1/λ, 1/|λ|, α*.

    Args:
        section: The section "step_sizes".
        title: Of the run.

    Returns:
        The figure, one line a rule, against the training step.
    """
    figure, axes = page(f"{title}: a joint step along all eigenvectors, relative to L(0)")
    labels = {"newton": "1/λ (Newton)", "saddle_free": "1/|λ| (saddle-free)", "measured": "α*"}
    steps = [str(step) for step in section["step"]]
    everything = list(section["directions"]).index("all")
    for rule, (name, mark) in enumerate(zip(section["rule"], "svo", strict=True)):
        change = section["joint_loss_change"][:, rule, everything] / section["start"]
        axes.plot(steps, change, f"{mark}-", label=labels[name], color=colours_of(3)[rule])
    axes.axhline(0, color=_MARK, linewidth=0.6)
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set_xlabel("training step")
    axes.set_ylabel("change of the loss / L(0)")
    axes.legend(frameon=False)
    return figure


# -- appendix D ------------------------------------------------------------------------------


def _subsets(section: Measurements, title: str) -> Iterator[tuple[str, Figure]]:
    for row, step in enumerate(section["step"]):
        for end in ENDS:
            count = section[f"eigenvalues_{end}_full"].shape[-1]
            if count:
                yield (
                    f"subsets-{end}-step-{step}",
                    subset_against_full(section, row, end, title),
                )


def subset_against_full(section: Measurements, row: int, end: str, title: str) -> Figure:
    """Relative differences of eigenvalues and angles of vectors, by rank: appendix D.

    Args:
        section: The section "subsets".
        row: Of the step.
        end: "largest" or "smallest".
        title: Of the run.

    Returns:
        The figure: eigenvalues above, angles below, one colour a fraction, a mark a seed.
    """
    figure, axes = page(
        f"{title}: subsets against all samples, {end} eigenpairs, step {section['step'][row]}",
        height=6.4,
    )
    axes.remove()
    upper, lower = figure.subplots(2, 1, sharex=True)
    fractions = section["fraction"]
    difference, angle, principal = (
        section[f"{name}_{end}"][row]
        for name in ("relative_difference", "matched_angle", "principal_angle")
    )
    ranks = np.arange(1, difference.shape[-1] + 1)
    for colour, i in zip(colours_of(len(fractions)), range(len(fractions)), strict=True):
        for j in range(difference.shape[1]):
            upper.plot(ranks, difference[i, j], "o", color=colour, markersize=4)
            lower.plot(ranks, angle[i, j], "o", color=colour, markersize=4)
            lower.plot(ranks, principal[i, j], "-", color=colour, linewidth=0.8)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"{fraction:.3g} of samples")
        for colour, fraction in zip(colours_of(len(fractions)), fractions, strict=True)
    ]
    handles.append(Line2D([], [], color=_MARK, label="principal angles between the spaces"))
    upper.axhline(0, color=_MARK, linewidth=0.6)
    upper.set_ylabel("(λ_subset − λ) / |λ|")
    lower.set_ylabel("angle to the matched vector, degrees")
    lower.set_ylim(0, 92)
    lower.set_xlabel(f"rank from the {end} eigenvalue")
    for one in (upper, lower):
        one.grid(True, alpha=0.25)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


# -- single layers ---------------------------------------------------------------------------


def _blocks(section: Measurements, title: str) -> Iterator[tuple[str, Figure]]:
    for row, step in enumerate(section["step"]):
        yield f"layer-shares-step-{step}", layer_shares(section, row, title)
        yield f"blocks-step-{step}", block_spectra(section, row, title)


def layer_shares(section: Measurements, row: int, title: str) -> Figure:
    """How much of each eigenvector lies in each layer, beside gradient and parameters.

    Args:
        section: The section "blocks".
        row: Of the step.
        title: Of the run.

    Returns:
        The figure, a matrix of shares.
    """
    shares = np.vstack([
        section["share"][row],
        section["gradient_share"][row],
        section["parameter_share"][row],
    ])
    names = [*section["pair"], "gradient", "parameters"]
    figure, axes = page(
        f"{title}: share of the layers, step {section['step'][row]}",
        height=1.8 + 0.22 * len(names),
    )
    axes.grid(False)
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(shares.shape[1]), section["layer"])
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    for (i, j), share in np.ndenumerate(shares):
        colour = "black" if share > 0.6 else "white"
        axes.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize="xx-small", color=colour)
    figure.colorbar(image, ax=axes, label="share of the squared norm")
    return figure


def block_spectra(section: Measurements, row: int, title: str) -> Figure:
    """Extreme eigenvalues of each block, beside those of the whole Hessian.

    Args:
        section: The section "blocks".
        row: Of the step.
        title: Of the run.

    Returns:
        The figure; crosses did not converge.
    """
    figure, axes = page(f"{title}: spectra of blocks, step {section['step'][row]}")
    names = ["all", *section["block"]]
    whole = section["eigenvalue"][row]
    axes.plot(np.zeros(len(whole)), whole, "_", color=_MARK, markersize=14)
    for column in range(len(names) - 1):
        for end, colour in (("largest", _MODEL), ("smallest", _MEASURED)):
            values = section[f"eigenvalues_{end}"][row, column]
            good = section[f"converged_{end}"][row, column]
            for shown, mark in ((good, "_"), (~good, "x")):
                place = np.full(int(shown.sum()), column + 1)
                axes.plot(place, values[shown], mark, color=colour, markersize=14)
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.axhline(0, color=_MARK, linewidth=0.6)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("eigenvalue")
    return figure


# -- appendix E ------------------------------------------------------------------------------


def optimizer_loss(section: Measurements, title: str) -> Figure:
    """Loss over all samples against minibatches, with and without steps along ṽ.

    Args:
        section: The section "optimizer".
        title: Of the run.

    Returns:
        The figure: medians over seeds, and the range between the extremes.
    """
    figure, axes = page(f"{title}: training with steps along the most negative curvature")
    colours = colours_of(len(section["run"]))
    for row, name in enumerate(section["run"]):
        losses, colour = section["loss"][row], colours[row]
        some = np.isfinite(losses).any(axis=0)  # seeds that have diverged are left out
        at = section["iteration"][some]
        low, middle, high = np.nanquantile(losses[:, some], [0, 0.5, 1], axis=0)
        axes.plot(at, middle, "-" if "+" in name else "--", color=colour, label=name)
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("minibatches")
    axes.set_ylabel(f"loss over all samples, {len(section['seed'])} seeds")
    axes.legend(frameon=False, fontsize="small")
    return figure


def tracking(section: Measurements, title: str) -> Figure:
    """Angle of ṽ to the exact eigenvector and to SA(m), and λ̃ beside λ_d.

    Args:
        section: The section "optimizer".
        title: Of the run.

    Returns:
        The figure: angles above, curvature below.
    """
    figure, axes = page(f"{title}: the running estimate beside the exact pair", height=6.4)
    axes.remove()
    upper, lower = figure.subplots(2, 1, sharex=True)
    at, colours = section["exact_at"], colours_of(len(section["tracked"]))
    for row, name in enumerate(section["tracked"]):
        colour = colours[row]
        upper.plot(at, section["angle"][row], "o-", color=colour, label=name)
        upper.plot(at, section["angle_to_space"][row], "s--", color=colour, markersize=3)
        lower.plot(at, section["curvature_along"][row], "o-", color=colour, label="ṽᵀHṽ")
        lower.plot(at, section["estimate"][row], "s--", color=colour, markersize=3)
        lower.plot(at, section["eigenvalues_smallest"][row, :, 0], ":", color=colour)
    upper.set_ylabel("angle, degrees: to v_d (solid), SA(m) (dashed)")
    upper.set_ylim(0, 92)
    lower.set_ylabel("ṽᵀHṽ (solid), λ̃ (dashed), λ_d (dotted)")
    lower.set_yscale("symlog", linthresh=1e-2)
    lower.set_xlabel("minibatches")
    upper.legend(frameon=False, fontsize="small")
    for one in (upper, lower):
        one.grid(True, alpha=0.25)
    return figure
