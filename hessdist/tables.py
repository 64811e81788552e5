"""Tables of results for a terminal: what `hessdist show` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from hessdist.landscape.diagnosis import Point, findings, note_of
from hessdist.outliers import InNumbers, in_numbers, outliers_sought
from hessdist.results.schema import ENDS
from hessdist.theory.shortcomings import LAWS, parameters_of, where_it_fails

if TYPE_CHECKING:
    from hessdist.results.compare import Comparison
    from hessdist.results.reader import Run
    from hessdist.results.studies import Section


_WHOLE = ("trace", "frobenius_norm")


def tables(run: Run) -> Iterator[Table]:
    """All tables that a run's result has something for.

    Args:
        run: The result.

    Yields:
        Tables of rich.
    """
    if len(run) or not run.studies:
        yield summary(run)
    most = outliers_sought(run)
    known: dict[str, Callable[[Section], Table]] = {
        "step_sizes": gains,
        "subsets": subsets,
        "optimizer": optimizer,
        "exact": partial(exact, most=most),
        "density": density,
        "laws": laws,
        "decomposition": decomposition,
        "architectures": partial(architectures, most=most),
        "initialisations": initialisations,
        "spreads": spreads,
        "interpolation": interpolation,
        "widths": widths,
        "eigenspace": eigenspace,
        "saddle": saddle,
        "minimize": minimize,
        "minimizers": minimizers,
        "critical_points": critical_points,
        "two_layer": two_layer,
        "loss_model": loss_model,
    }
    for name, table in known.items():
        if name in run.studies:
            yield table(run.studies[name])
    if "laws" in run.studies:
        yield law_failures(run.studies["laws"])
    if "diagnosis" in run.studies:
        yield diagnosis(run.studies["diagnosis"])
        yield last_note(run.studies["diagnosis"])


# -- a whole spectrum in numbers -------------------------------------------------------------


# -- checkpoints -----------------------------------------------------------------------------


def _table(columns: Sequence[str], title: str | None = None) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def summary(run: Run) -> Table:
    """One line a checkpoint: loss, some eigenvalues, what converged, cost.

    Args:
        run: The result.

    Returns:
        The table.
    """
    k, m = run.eigenvalues_largest.shape[1], run.eigenvalues_smallest.shape[1]
    top = sorted({0, 1, k - 1} & set(range(k)))
    bottom = sorted({0, m - 1} & set(range(m)))
    columns = ["step", "loss", "‖g‖", *(f"λ_{i + 1}" for i in top)]
    columns += ["λ_d" if i == 0 else f"λ_d-{i}" for i in bottom]
    columns += ["converged", "residual ≤", "products", "seconds"]
    table = _table(columns)
    for row, step in enumerate(run.steps):
        large, small = run.eigenvalues_largest[row], run.eigenvalues_smallest[row]
        good = f"{run.converged_largest[row].sum()}/{k} {run.converged_smallest[row].sum()}/{m}"
        worst = max([*run.residuals_largest[row], *run.residuals_smallest[row]])
        table.add_row(
            str(step),
            f"{run.loss[row]:.5g}",
            f"{run.gradient_norm[row]:.4g}",
            *(f"{large[i]:.5g}" for i in top),
            *(f"{small[i]:.5g}" for i in bottom),
            good,
            f"{worst:.1e}",
            str(run.products[row]),
            f"{run.seconds[row]:.1f}",
        )
    return table


def comparison(found: Comparison) -> Table:
    """Two runs side by side, a line a common step.

    Args:
        found: The comparison.

    Returns:
        The table; angles in degrees, the largest principal one of each end.
    """
    columns = ["step", "loss", "λ_1", "difference", "λ_d", "difference", "angle LA", "angle SA"]
    table = _table([*columns, "products", "seconds"])

    def two(values: Sequence[float], form: str) -> str:
        return " | ".join(format(value, form) for value in values)

    for row, step in enumerate(found.steps):
        cells = [str(step), two(found.loss[row], ".5g")]
        for values in (found.largest[row], found.smallest[row]):
            if values.size:
                first = values[:, 0]
                cells += [two(first, ".5g"), f"{(first[1] - first[0]) / abs(first[0]):+.2%}"]
            else:
                cells += ["", ""]
        for angles in (found.angles_largest[row], found.angles_smallest[row]):
            known = np.isfinite(angles).all() and angles.size
            cells.append(f"{np.degrees(angles.max()):.2f}" if known else "")
        table.add_row(*cells, two(found.products[row], "d"), two(found.seconds[row], ".1f"))
    return table


# -- studies ---------------------------------------------------------------------------------


def gains(section: Section) -> Table:
    """What the steps 1/λ (Newton), 1/|λ| (saddle-free) and α* change the loss by.

    Args:
        section: The section "step_sizes".

    Returns:
        For each checkpoint and end of the spectrum, the sum over single eigenvectors and the joint
        step along all of them.
    """
    rules = ("1/λ", "1/|λ|", "α*")
    columns = ["step", "pairs", *(f"Σ {rule}" for rule in rules), *(f"joint {r}" for r in rules)]
    table = _table(columns, "\nchange of the loss along eigenvectors, by step size")
    ends = np.array([str(pair).split()[0] for pair in section["pair"]])
    for row, step in enumerate(section["step"]):
        for end in dict.fromkeys(ends):
            single = np.nansum(section["loss_change"][row][:, ends == end], axis=1)
            column = list(section["directions"]).index(end)
            joint = section["joint_loss_change"][row][:, column]
            numbers = (f"{number:.4g}" for number in (*single, *joint))
            table.add_row(str(step), f"{(ends == end).sum()} {end}", *numbers)
    return table


def subsets(section: Section) -> Table:
    """How far eigenpairs over subsets are from those over all samples, the worst of the seeds.

    Args:
        section: The section "subsets".

    Returns:
        For each checkpoint, fraction and end: differences and angles.
    """
    columns = ["step", "fraction", "pairs", "λ: worst", "median", "angle: worst", "median"]
    columns += ["spaces"]
    table = _table(columns, "\nsubsets against all samples; angles in degrees")
    for row, step in enumerate(section["step"]):
        for i, fraction in enumerate(section["fraction"]):
            for end in ENDS:
                difference = np.abs(section[f"relative_difference_{end}"][row, i])
                if not difference.size:
                    continue
                angle = section[f"matched_angle_{end}"][row, i]
                spaces = section[f"principal_angle_{end}"][row, i]
                table.add_row(
                    str(step),
                    f"{fraction:g}",
                    f"{difference.shape[1]} {end}",
                    f"{np.nanmax(difference):.1%}",
                    f"{np.nanmedian(difference):.1%}",
                    f"{np.nanmax(angle):.1f}",
                    f"{np.nanmedian(angle):.1f}",
                    f"{np.nanmax(spaces):.1f}",
                )
    return table


def optimizer(section: Section) -> Table:
    """Final losses over seeds, with and without steps along the estimate.

    Args:
        section: The section "optimizer".

    Returns:
        One line a way to train.
    """
    columns = ["optimiser", "final loss: median", "least", "most", "steps along ṽ", "diverged"]
    table = _table(columns, "\nsteps along the running estimate of the most negative curvature")
    for row, name in enumerate(section["run"]):
        final = section["loss"][row, :, -1]
        good = final[np.isfinite(final)]
        shown = [f(good) for f in (np.median, np.min, np.max)] if len(good) else [np.nan] * 3
        table.add_row(
            str(name),
            *(f"{number:.4g}" for number in shown),
            str(section["steps_along"][row].max()),
            str(len(final) - len(good)),
        )
    return table


def eigenspace(section: Section) -> Table:
    """What a budget of gradients has bought, with and without eigenspaces and averages.

    Args:
        section: The section "eigenspace".

    Returns:
        One line a way to train and an average of its weights: medians over seeds.
    """
    columns = ["optimiser", "average", "loss", "least", "most", "test loss", "accuracy", "λ_1"]
    columns += ["minibatches", "products", "diverged"]
    table = _table(columns, "\none budget of gradients: medians over seeds")
    for row, name in enumerate(section["run"]):
        for column, average in enumerate(section["average"]):
            here, largest = (row, column), section["largest_eigenvalue"]
            good = section["loss"][here][:, -1]
            good = good[np.isfinite(good)]
            if column and not len(good):
                continue
            numbers = [_median(good)]
            numbers += [good.min(), good.max()] if len(good) else [np.nan] * 2
            numbers += [_median(section[of][here][:, -1]) for of in ("test_loss", "test_accuracy")]
            table.add_row(
                str(name),
                str(average),
                *("" if np.isnan(x) else f"{x:.4g}" for x in (*numbers, _median(largest[here]))),
                f"{np.median(section['minibatches'][row]):g}",
                f"{np.median(section['products'][row]):g}",
                str(section["loss"].shape[2] - len(good)),
            )
    return table


def saddle(section: Section) -> Table:
    """How soon a saddle is left, beside the quadratic model.

    Args:
        section: The section "saddle".

    Returns:
        One line a way: medians over seeds.
    """
    columns = ["optimiser", "left", "after steps", "quadratic model", "growth a step", "model"]
    heading = f"\nfrom a saddle with λ_d = {section['eigenvalues'][0]:.4g}"
    table = _table([*columns, "loss at the end"], heading)
    for row, name in enumerate(section["run"]):
        escapes = section["escape"][row]
        numbers = (
            _median(escapes),
            section["predicted_escape"][row],
            _median(section["growth"][row]),
            section["predicted_growth"][row],
            _median(section["loss"][row, :, -1]),
        )
        table.add_row(
            str(name),
            _share(np.isfinite(escapes)),
            *("" if np.isnan(number) else f"{number:.5g}" for number in numbers),
        )
    return table


def minimize(section: Section) -> Table:
    """How a full-batch minimisation went, at iterates of which there is a checkpoint.

    Args:
        section: The section "minimize".

    Returns:
        One line a checkpoint.
    """
    end = "converged" if section["converged"] else f"not converged, {section['ended']}"
    columns = ["iteration", "loss", "‖g‖", "α", "trials", "CG", "negative curvature"]
    table = _table([*columns, "products", "work", "seconds"], f"\nminimisation: {end}")
    for row in np.flatnonzero(np.isin(section["iteration"], section["checkpoint"])):
        met = int(section["negative_curvature"][: row + 1].sum())
        table.add_row(
            str(section["iteration"][row]),
            f"{section['loss'][row]:.8g}",
            f"{section['gradient_norm'][row]:.3g}",
            _number(section["step_length"][row]),
            *(str(section[name][row]) for name in ("trials", "cg_iterations")),
            f"{met} so far",
            str(section["products"][row]),
            f"{section['cost'][row]:.0f}",
            f"{section['seconds'][row]:.1f}",
        )
    return table


def minimizers(section: Section) -> Table:
    """Full-batch optimisers side by side, at the ends of their runs.

    Args:
        section: The section "minimizers".

    Returns:
        One line a method: medians over starts.
    """
    columns = ["method", "reached", "loss", "least", "most", "‖g‖", "iterations", "work"]
    table = _table([*columns, "negative curvature"], "\nfull-batch optimisers: medians over starts")
    for row, name in enumerate(section["method"]):
        lengths = np.isfinite(section["loss"][row]).sum(axis=1)
        at = (np.arange(len(lengths)), lengths - 1)
        losses = section["loss"][row][at]
        table.add_row(
            str(name).replace("_", " "),
            _share(section["reached"][row]),
            *(f"{number:.6g}" for number in (_median(losses), losses.min(), losses.max())),
            f"{_median(section['gradient_norm'][row][at]):.3g}",
            f"{_median(lengths - 1.0):g}",
            f"{_median(section['cost'][row][at]):.0f}",
            f"{_median(np.nansum(section['negative_curvature'][row], axis=1)):g}",
        )
    return table


def exact(section: Section, most: int) -> Table:
    """Ends of whole spectra, and how singular the matrices are.

    Args:
        section: The section "exact".
        most: Outliers that are looked for.

    Returns:
        One line a checkpoint and matrix.
    """
    columns = ["step", "matrix", "d", "λ_1", "λ_2", "λ_d", "near zero", "negative", "outliers"]
    table = _table([*columns, "asymmetry", "seconds"], "\nall eigenvalues of the dense matrices")
    for row, step in enumerate(section["step"]):
        for column, operator in enumerate(section["operator"]):
            values = section["eigenvalues"][row, column]
            seconds = sum(
                section[f"seconds_{what}"][row, column] for what in ("products", "eigenvalues")
            )
            table.add_row(
                str(step),
                _words(operator),
                str(len(values)),
                *(f"{value:.5g}" for value in values[::-1][:2]),
                *[""] * (2 - len(values)),
                f"{values[0]:.5g}",
                *_told(in_numbers(values, most)),
                f"{section['asymmetry'][row, column]:.1e}",
                f"{seconds:.1f}",
            )
    return table


def density(section: Section) -> Table:
    """Traces and ranks by random vectors, each with its standard error.

    Args:
        section: The section "density".

    Returns:
        One line a checkpoint, matrix and block.
    """
    names = {"trace": "trace", "xtrace": "by XTrace", "frobenius_norm": "‖·‖_F"}
    names["effective_rank"] = "eff. rank"
    if "count" in section:
        names["count"] = "in interval"
    columns = ["step", "matrix", "block", "d", *names.values()]
    table = _table(columns, "\nspectral densities: numbers and their standard errors")
    for row, step in enumerate(section["step"]):
        for i, operator in enumerate(section["operator"]):
            for j, block in enumerate(section["block"]):
                at = (row, i, j)
                table.add_row(
                    str(step),
                    _words(operator),
                    escape(_cut(str(block), 16)),
                    str(section["size"][at]),
                    *(_estimate(section[n][at], section[f"{n}_error"][at]) for n in names),
                )
    return table


def laws(section: Section) -> Table:
    """Fitted laws in numbers.

    Args:
        section: The section "laws".

    Returns:
        One line a checkpoint, spectrum and law; the distances are of the bulk, or of bulk and
        spike; shares of eigenvalues are those by the law beside the measured ones.
    """
    columns = ["step", "spectrum", "law", "parameters", "KS", "Wasserstein"]
    columns += ["near zero", "measured", "negative", "measured"]
    table = _table(columns, "\nlaws of random matrices, fitted to measured spectra")
    for at in np.ndindex(section["misfit"].shape):
        shares = [
            _percent(share)
            for name in ("spike", "negative")
            for share in (section[f"law_{name}"][at], section[name][at[:-1]])
        ]
        table.add_row(
            str(section["step"][at[0]]),
            escape(_cut(str(section["spectrum"][at[1]]), 24)),
            LAWS[str(section["law"][at[2]])],
            parameters_of(section, at),
            *(_number(section[n][at]) for n in ("kolmogorov_smirnov", "wasserstein")),
            *shares,
        )
    return table


def law_failures(section: Section) -> Table:
    """Where fitted laws fail, in words.

    Args:
        section: The section "laws".

    Returns:
        A sentence a checkpoint, spectrum and law.
    """
    table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
    table.title = "\nwhere fitted laws fail"
    table.add_column(no_wrap=True)
    table.add_column()
    for at in np.ndindex(section["misfit"].shape):
        spectrum, law = _cut(str(section["spectrum"][at[1]]), 24), LAWS[str(section["law"][at[2]])]
        what = f"{section['step'][at[0]]}: {spectrum}, {law}"
        table.add_row(escape(what), escape(where_it_fails(section, at)))
    return table


def decomposition(section: Section) -> Table:
    """H, G, S and the empirical Fisher matrix side by side.

    Args:
        section: The section "decomposition".

    Returns:
        One line a checkpoint and matrix.
    """
    columns = ["step", "matrix", "λ_1", "λ_d", "trace", "‖·‖_F", "zero", "outliers", "in G's"]
    table = _table([*columns, "misfit"], "\nH = G + S, and the empirical Fisher matrix")
    for row, step in enumerate(section["step"]):
        for column, operator in enumerate(section["operator"]):
            at = (row, column)
            ends = (section[f"eigenvalues_{end}"][at][:1] for end in ENDS)
            table.add_row(
                str(step),
                _words(operator),
                *("".join(f"{value:.4g}" for value in end if np.isfinite(value)) for end in ends),
                *(_estimate(section[n][at], section[f"{n}_error"][at]) for n in _WHOLE),
                _between(*(section[f"null_count_{end}"][at] for end in ("least", "most"))),
                str(section["outliers"][at]),
                str(section["shared_outliers"][at]),
                f"{section['misfit'][row]:.4g}" if operator == "residual" else "",
            )
    return table


def widths(section: Section) -> Table:
    """H = G + S for networks from narrow to wide.

    Args:
        section: The section "widths".

    Returns:
        One line a width and iteration: medians over starts.
    """
    columns = ["hidden", "p", "iteration", "loss", "misfit", "λ_1 of H", "of G", "‖S‖₂"]
    columns += ["tr H", "tr G", "tr S", "zero in H", "in G"]
    table = _table(columns, "\nnetworks from narrow to wide; medians over starts")
    places = [list(section["operator"]).index(o) for o in ("hessian", "gauss_newton", "residual")]
    hessian, gauss_newton, residual = places
    norms = np.fmax(*(np.abs(section[f"eigenvalue_{end}"][..., residual]) for end in ENDS))
    for row, name in enumerate(section["width"]):
        for column, iteration in enumerate(section["iteration"]):
            at = (row, slice(None), column)
            numbers = [section["loss"][at], section["misfit"][at]]
            numbers += [section["eigenvalue_largest"][at][:, o] for o in (hessian, gauss_newton)]
            numbers += [norms[at], *(section["trace"][at][:, place] for place in places)]
            bounds = [
                [_median(section[f"null_count_{end}"][at][:, o]) for end in ("least", "most")]
                for o in (hessian, gauss_newton)
            ]
            table.add_row(
                str(name),
                str(section["parameters"][row]),
                str(iteration),
                *(f"{_median(number):.4g}" for number in numbers),
                *(_between(*pair) for pair in bounds),
            )
    return table


def architectures(section: Section, most: int) -> Table:
    """How singular Hessians of growing networks are, before and after training.

    Args:
        section: The section "architectures".
        most: Outliers that are looked for.

    Returns:
        One line an architecture and stage; medians over its networks.
    """
    columns = ["hidden", "d", "stage", "loss", "‖g‖", "λ_1", "λ_2", "λ_d"]
    columns += ["near zero", "negative", "outliers", "reached"]
    table = _table(columns, "\nnetworks of growing width; medians over starts")
    for row, name in enumerate(section["architecture"]):
        for column, stage in enumerate(section["stage"]):
            size = section["parameters"][row]
            values = section["eigenvalues"][row, :, column, :size]
            ends = [values[:, place] for place in (-1, max(-2, -size), 0)]
            numbers = [section[n][row, :, column] for n in ("loss", "gradient_norm")]
            table.add_row(
                str(name),
                str(size),
                str(stage),
                *(f"{_median(number):.4g}" for number in [*numbers, *ends]),
                *_told(in_numbers(values, most)),
                _share(section["reached"][row]) if stage == section["stage"][-1] else "",
            )
    return table


def initialisations(section: Section) -> Table:
    """The top eigenvalue over starts.

    Args:
        section: The section "initialisations".

    Returns:
        A line before training, one after it, and one for networks that did not reach the norm.
    """
    columns = ["networks", "number", "λ_1: median", "quartiles", "least", "most", "deviation"]
    table = _table(columns, "\nthe top eigenvalue over starts")
    start, end = section["eigenvalues_start"][:, 0], section["eigenvalues"][:, 0]
    reached = section["reached"]
    for name, values in (
        ("before training", start),
        ("after training", end),
        ("that reached ‖g‖", end[reached]),
        ("that did not", end[~reached]),
    ):
        good = values[np.isfinite(values)]
        if good.size:
            low, middle, high = np.quantile(good, [0.25, 0.5, 0.75])
            numbers = [f"{middle:.4g}", f"{low:.4g} to {high:.4g}"]
            numbers += [f"{f(good):.4g}" for f in (np.min, np.max, np.std)]
            table.add_row(name, f"{good.size} of {len(start)}", *numbers)
        else:
            table.add_row(name, f"0 of {len(start)}", *[""] * 5)
    return table


def spreads(section: Section) -> Table:
    """The two top eigenvalues against an argument of the data set.

    Args:
        section: The section "spreads".

    Returns:
        One line a value of the argument: medians and quartiles over starts.
    """
    tops = range(min(2, section["eigenvalues"].shape[-1]))
    named = [name for top in tops for name in (f"λ_{top + 1}: median", "quartiles")]
    argument = section.variables["value"].long_name.split()[0]
    columns = [escape(argument), "λ_1 before", *named]
    table = _table([*columns, "loss", "reached"], "\nthe top eigenvalues against the data")
    for row, value in enumerate(section["value"]):
        cells = [f"{value:g}", f"{_median(section['eigenvalues_start'][row, :, 0]):.4g}"]
        for top in tops:
            found = section["eigenvalues"][row, :, top]
            good = found[np.isfinite(found)]
            low, high = np.quantile(good, [0.25, 0.75]) if good.size else [np.nan] * 2
            cells += [f"{_median(found):.4g}", f"{low:.4g} to {high:.4g}"]
        cells += [f"{_median(section['loss'][row]):.4g}", _share(section["reached"][row])]
        table.add_row(*cells)
    return table


def interpolation(section: Section) -> Table:
    """The loss between two networks at the end of training, and the highest barrier before it.

    Args:
        section: The section "interpolation".

    Returns:
        One line a comparison; a barrier is the loss on the line above that at its worse end.
    """
    columns = ["networks", "step", "distance", "loss: first", "halfway", "second", "barrier"]
    table = _table([*columns, "highest", "at step"], "\nstraight lines between two networks")
    for row, name in enumerate(section["comparison"]):
        losses = section["loss"][row]
        barriers = losses.max(axis=1) - np.maximum(losses[:, 0], losses[:, -1])
        known = np.flatnonzero(np.isfinite(barriers))
        highest = known[np.argmax(barriers[known])] if known.size else len(barriers) - 1
        halfway = losses.shape[1] // 2
        numbers = [section["distance"][row, -1], *losses[-1, [0, halfway, -1]], barriers[-1]]
        table.add_row(
            str(name),
            str(section["step"][-1]),
            *(f"{number:.4g}" for number in [*numbers, barriers[highest]]),
            str(section["step"][highest]),
        )
    return table


def critical_points(section: Section) -> Table:
    """Critical points of two-layer networks, and the 3/2 law fitted to them.

    Args:
        section: The section "critical_points".

    Returns:
        One line an activation and ratio; ε₀ is the mean energy of those of index 0.
    """
    columns = ["units", "φ", "found", "θ = 0", "ε₀", "ε_c", "α₀", "exponent", "χ²/ν"]
    columns += ["points", "½(1 − φ)²", "½(1 − φ)"]
    table = _table(columns, "\ncritical points")

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
    return table


def two_layer(section: Section) -> Table:
    """Hessians of two-layer networks against the laws, and their distance from freeness.

    Args:
        section: The section "two_layer".

    Returns:
        One line an activation, kind of residuals, ratio and size, means over networks: distances
        of Kolmogorov and Smirnov, mixed moments, and shares of negative eigenvalues.
    """
    columns = ["units", "residuals", "φ", "n", "ε", "H0", "H1", "H1 indep.", "H", "H turned"]
    columns += ["A²B²", "ABAB", "λ < 0", "by law"]
    table = _table(columns, "\ntwo layers: distances from the laws; mixed moments (free: 1 and 0)")
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
            f"{section['ratio'][k]:g}",
            str(section["size"][size]),
            *(f"{number:.3f}" if np.isfinite(number) else "" for number in numbers),
        )
    return table


def loss_model(section: Section) -> Table:
    """Critical energies of the model of the loss, in closed form and found again.

    Args:
        section: The section "loss_model".

    Returns:
        One line a model and ratio.
    """
    columns = ["model", "φ", "ε_c", "ε_c where the edge passes zero", "α₀", "largest α computed"]
    table = _table(columns, "\nmodel of the loss: Wishart + H₁, H₁ Wigner's or a ReLU's")
    for i, j in np.ndindex(section["critical_energy"].shape):
        table.add_row(
            str(section["model"][i]),
            f"{section['ratio'][j]:g}",
            f"{section['critical_energy'][i, j]:.10g}",
            f"{section['critical_energy_located'][i, j]:.10g}",
            f"{section['index_coefficient'][i, j]:.5g}",
            f"{section['index'][i, j].max():.4f}",
        )
    return table


def diagnosis(section: Section) -> Table:
    """What kind of points checkpoints are, and what a gradient step does there.

    Args:
        section: The section "diagnosis".

    Returns:
        One line a checkpoint.
    """
    columns = ["step", "point", "‖g‖", "λ_max", "λ_min", "negative", "rate", "best", "2/λ_max"]
    columns += ["predicted", "measured", "top share", "escape"]
    title = "\ndiagnosis; changes of the loss by a gradient step of the rate, and along the escape"
    table = _table(columns, title)
    for row, step in enumerate(section["step"]):
        ends = [section[f"eigenvalues_{end}"][row] for end in ENDS]
        at_least = "≥ " if section["more_negative"][row] else ""
        changes = [section[n][row] for n in ("predicted_loss_change", "loss_change")]
        table.add_row(
            str(step),
            str(section["kind"][row]),
            f"{section['gradient_norm'][row]:.3g}",
            *(_number(values[0]) if len(values) else "" for values in ends),
            f"{at_least}{section['negative_directions'][row]}",
            f"{section['learning_rate'][row]:g}",
            *(_number(section[f"{n}_rate"][row]) for n in ("best", "stable")),
            *(_number(change) for change in changes),
            _percent(section["share_largest"][row]),
            _number(section["escape_loss_change"][row]),
        )
    return table


def last_note(section: Section) -> Table:
    """The doctor's note of the last checkpoint that was diagnosed.

    Args:
        section: The section "diagnosis".

    Returns:
        A line a finding, with its source.
    """
    heading, *_ = note_of(section, -1)
    table = Table(box=None, show_header=False, pad_edge=False, title_justify="left")
    table.title = escape(f"\n{heading}")
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings(Point.of(section, -1)):
        table.add_row(finding.topic, escape(f"{finding.text} [{finding.source}]"))
    return table


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else ""


def _percent(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else ""


def _words(operator: Any) -> str:
    return str(operator).replace("_", " ")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _told(numbers: InNumbers) -> list[str]:
    return [f"{numbers.near_zero:.1%}", f"{numbers.negative:g}", f"{numbers.outliers:g}"]


def _between(least: float, most: float) -> str:
    """A count between two bounds."""
    if not np.isfinite(most):
        return ""
    return f"{most:.0f}" if least == most else f"{least:.0f} to {most:.0f}"


def _estimate(value: float, error: float) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:.4g} ± {error:.1g}" if np.isfinite(error) else f"{value:.4g}"


def _median(values: NDArray[np.float64]) -> float:
    """Of what is finite; NaN where nothing is."""
    good = values[np.isfinite(values)]
    return float(np.median(good)) if good.size else np.nan


def _share(reached: NDArray[np.bool_]) -> str:
    return f"{reached.sum()} of {len(reached)}"
