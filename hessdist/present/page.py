"""The page: a summary, the job and provenance as text, and the script that draws the data."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.config.job import Job
from hessdist.config.loader import parse_job
from hessdist.errors import DependencyError, OutputError
from hessdist.present.data import data_of
from hessdist.results.files import write_text

if TYPE_CHECKING:
    from hessdist.results.reader import Run

_VIEWS = {
    "progression": "Eigenvalues during training",
    "spectrum": "Spectrum of the selected step",
    "residuals": "Residuals of the selected step",
    "cost": "Cost of each solve",
    "diagnosis": "Diagnosis of the selected step",
    "descent": "The loss along the gradient step",
    "escape": "The loss along the escape direction",
    "rates": "Rates of a gradient step",
    "lines": "Loss along eigenvectors",
    "inverse": "Best step sizes",
    "change": "Best change of the loss",
    "shares": "Share of the layers",
    "exact": "All eigenvalues of the selected step",
    "density": "Spectral density of the selected step",
    "architectures": "Networks of growing width",
    "initialisations": "The top eigenvalue over starts",
    "spreads": "The top eigenvalues against the data",
    "interpolation": "Loss between two networks",
    "decomposition": "H = G + S during training",
    "widths": "H = G + S from narrow to wide",
    "minimize": "Minimisation over all samples",
    "minimizers": "The same starts by each minimiser",
    "eigenspace": "Optimisers on one budget of gradients",
    "saddle": "From the saddle",
    "loss_model": "Random matrices as a model of the loss",
    "laws": "Laws of random matrices beside the spectrum",
    "two_layer": "Two-layer networks beside their laws",
    "critical_points": "Critical points: index and energy",
}
_TEXT = {"diagnosis"}  # views in words
_SCRIPTS = ("page.js", "panels.js", "start.js")  # parts of one
# What of the data a view draws; a view whose data is absent or empty is left out.
_NEEDS = {"inverse": "step_sizes", "change": "step_sizes"}
_NEEDS |= dict.fromkeys(("progression", "spectrum", "residuals", "cost"), "steps")
_TELLS = {
    "progression": "|λ| of both ends on a logarithmic axis, the loss dotted on the right; hollow "
    "marks have the other sign, crosses did not converge. The vertical line is the selected step; "
    "click a point to select its step.",
    "spectrum": "All computed eigenvalues by rank; linear near zero and logarithmic beyond.",
    "residuals": "‖Hv − λv‖ / |λ| of each pair; the dashed line is the tolerance.",
    "cost": "Matrix-vector products and wall seconds of each checkpoint's solve.",
    "lines": "L(θ − α (gᵀv) v) over all samples, and its quadratic model; gaps are not finite.",
    "inverse": "1/α* against λ, with 1/α* = λ (dashed) and 1/α* = |λ| (dotted); hollow marks are "
    "edges of the scan; large marks are of the selected step.",
    "change": "L(α*) − L(0) against λ; below zero is better.",
    "shares": "How much of the squared norm of each eigenvector lies in each layer.",
    "exact": "How many eigenvalues of the dense matrix lie in each bin, on an axis that is linear "
    "near zero, the outliers marked above; or |λ| by rank, from the largest eigenvalue, hollow "
    "where it is negative.",
    "density": "The density of all eigenvalues by random vectors, with its standard error; bars "
    "are the exact eigenvalues, where the run has them, the coloured strip is the interval.",
    "architectures": "Exact spectra of networks before and after training: |λ| by rank of the "
    "first network of each, hollow where λ is negative; the share near zero, and how many "
    "outliers, of all networks, hollow where the gradient norm was not reached.",
    "initialisations": "The largest eigenvalue of the Hessian after training from many starts; "
    "grey did not reach the gradient norm, the outline is before training.",
    "spreads": "The two largest eigenvalues after training against an argument of the data set: "
    "medians and quartiles over starts, and the networks themselves, hollow where the gradient "
    "norm was not reached.",
    "interpolation": "The loss on straight lines between two networks in training, by step.",
    "diagnosis": "What the numbers at this checkpoint mean, each with its source, as hessdist "
    "diagnose says it.",
    "descent": "L(θ − ε g) − L(θ) over all samples by the rate ε, beside −ε gᵀg + ½ ε² gᵀHg; the "
    "vertical lines are the job's rate, the best one and the largest stable one.",
    "escape": "L(θ + t u) − L(θ) over all samples, u the eigenvector of the smallest eigenvalue "
    "with its downhill end at t > 0, beside the quadratic model; the axis is linear near zero.",
    "rates": "The job's learning rate beside the best one of a step along the gradient and the "
    "largest at which gradient descent is stable; triangles where there is no best one.",
    "decomposition": "The Hessian H, its Gauss-Newton part G, the residual part S and the "
    "empirical Fisher matrix F; bars are standard errors. Outliers of H, S and F within 45° of "
    "the space of G's are shared.",
    "widths": "A mark a network, lines through medians over networks; the bars of |tr S| are "
    "standard errors.",
    "minimize": "Loss and gradient norm by iteration, and by work in gradients.",
    "minimizers": "Loss and gradient norm of every start, by work in gradients and by iteration.",
    "eigenspace": "Medians over seeds and the range of them all; dotted are averages of the "
    "weights (SWA).",
    "saddle": "Medians over seeds and the range of them all, beside the mean loss of the quadratic "
    "model until the saddle is left.",
    "loss_model": "Random matrices alone: the density of H by the energy ε, without an atom at "
    "zero, and its share of negative eigenvalues against the excess over the critical energy; "
    "dashed is the 3/2 law.",
    "laws": "Share of the bulk up to λ, and by the laws that were fitted to it, with their "
    "Kolmogorov-Smirnov distance; the axis is linear near zero.",
    "two_layer": "Distances between the spectra of H = H₀ + H₁ and their laws: a mark a network, "
    "lines through medians.",
    "critical_points": "Critical points that were found, and the 3/2 law fitted to small indices; "
    "the fitted critical energies beside the closed forms.",
}


def report(run: Run, title: str) -> str:
    """Make the page of a run: one HTML text, with nothing loaded from elsewhere.

    Args:
        run: The result.
        title: Of the run.

    Returns:
        The text.

    Raises:
        DependencyError: plotly is missing.
    """
    job = parse_job(run.job, str(run.path))[0]
    data = data_of(run, title, job.spectrum.tolerance)
    views = {name: text for name, text in _VIEWS.items() if data.get(_NEEDS.get(name, name))}
    here = files("hessdist.present")
    return Template(here.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        plotly=_plotly(),
        script="\n".join(here.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS),
        data=in_script(data),
        last=len(data["slider"]) - 1,
        summary=_table(_summary(run, job)),
        provenance=_table(_provenance(run)),
        job=escape(run.job),
        views="\n".join(_view(name, text) for name, text in views.items()),
    )


def write_report(run: Run, title: str, path: Path) -> None:
    """Write the page of a run.

    Args:
        run: The result.
        title: Of the run.
        path: Where to.

    Raises:
        OutputError: It cannot be written.
    """
    text = report(run, title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder {path.parent} cannot be made ({error.strerror})", "choose a path by -o"
        ) from error
    write_text(path, text)


def in_script(data: Any) -> str:
    """JSON that can stand inside a script element: no text in it ends the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise DependencyError(
            f"plotly cannot be imported ({error})",
            "install what the report takes: pip install 'hessdist[report]'",
        ) from error
    # A script in a page ends at its first closing tag, in a string or not.
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _view(name: str, text: str) -> str:
    words = name in _TEXT
    kind, inside = ("view words", "note") if words else ("view", "plot")
    return (
        f'<section class="{kind}" aria-label="{escape(text)}"><h2>{escape(text)}</h2>'
        f'<p class="tells">{escape(_TELLS[name])}</p>'
        f'<div class="controls" id="{name}-controls"></div>'
        f'<div class="{inside}" id="{name}"></div></section>'
    )


def _table(rows: dict[str, str]) -> str:
    lines = (f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _summary(run: Run, job: Job) -> dict[str, str]:
    k, m = run.eigenvalues_largest.shape[1], run.eigenvalues_smallest.shape[1]
    good = run.converged_largest.sum() + run.converged_smallest.sum()
    arguments = ", ".join(f"{name} = {value}" for name, value in job.model.arguments.items())
    rows = {
        "model": job.model.factory + (f" ({arguments})" if arguments else ""),
        "data": f"{job.data.dataset}, {job.data.split}",
        "matrix": job.spectrum.operator.replace("_", " "),
        "parameters": f"{run.num_parameters:,}",
        "samples": run.samples.replace(" samples", ""),
        "checkpoints": f"{len(run)}"
        + (f", steps {run.steps[0]} to {run.steps[-1]}" if len(run) else " with eigenpairs"),
    }
    if len(run):
        rows |= {
            "eigenpairs of each": f"{k} largest, {m} smallest",
            "converged": f"{good:,} of {len(run) * (k + m):,}",
            "cost": f"{run.products.sum():,} products, {np.nansum(run.seconds):,.0f} s on "
            f"{run.attributes.get('ranks', '?')} ranks",
        }
    rows |= {
        "versions": ", ".join(
            f"{name.removesuffix('_version')} {value}"
            for name, value in run.attributes.items()
            if name.endswith("_version") and name != "schema_version"
        ),
        "studies": ", ".join(run.studies) or "none",
    }
    if run.damaged:
        rows["left out"] = "; ".join(f"{name}: {why}" for name, why in run.damaged.items())
    return rows


def _provenance(run: Run) -> dict[str, str]:
    shown = {name: str(value) for name, value in sorted(run.attributes.items()) if name != "job"}
    tensors = (f"{t.name} {'x'.join(map(str, t.shape)) or 'scalar'}" for t in run.parameters)
    return {"file": str(run.path), **shown, "parameters": ", ".join(tensors)}
