"""The page of a run: a summary, views, the job and provenance, and the script that draws."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.config.job import Job
from hessdist.config.loader import parse_job
from hessdist.errors import DependencyError
from hessdist.present.panels import LAYOUT, Note, View
from hessdist.printable import printable
from hessdist.results.files import write_text
from hessdist.results.outputs import Kind, require_output

if TYPE_CHECKING:
    from hessdist.results.reader import Run


def page_of(run: Run, title: str, views: Iterable[View], steps: Iterable[int]) -> str:
    """Make the page of a run: one HTML text, with nothing loaded from elsewhere.

    `steps` are those that can be selected, ascending.

    Raises:
        DependencyError: plotly is missing.
    """
    views, slider = list(views), [int(step) for step in steps]
    job = parse_job(run.job, str(run.path))[0]
    drawn = {view.name: view.data() for view in views}
    here = files("hessdist.present")
    return Template(here.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=_html(title),
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        plotly=_plotly(),
        script=here.joinpath("page.js").read_text(encoding="utf-8"),
        data=in_script({"steps": slider, "layout": LAYOUT, "views": drawn}),
        last=len(slider) - 1,
        summary=_table(_summary(run, job)),
        provenance=_table(_provenance(run)),
        job=_html(run.job),
        views="\n".join(map(_section, views)),
    )


def write_page(
    run: Run, title: str, views: Iterable[View], steps: Iterable[int], path: Path
) -> None:
    """Write the page of a run, as `page_of` makes it; the folder is made if it is missing.

    Raises:
        OutputError: The page cannot be written, or it would overwrite a file that is no page.
    """
    require_output(path, Kind.PAGE, [run.path], "-o")
    write_text(path, page_of(run, title, views, steps), "-o")


def _html(text: object) -> str:
    """Return a text of unknown origin for the page, as it is."""
    return escape(printable(text, keep="\n\t"))


def in_script(data: Any) -> str:
    """Return JSON that can stand in a script element: no text in it ends the element."""
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


def _section(view: View) -> str:
    kind, inside = ("view words", "note") if view.notes else ("view", "plot")
    return (
        f'<section class="{kind}" aria-label="{_html(view.title)}"><h2>{_html(view.title)}</h2>'
        f'<p class="caption">{_html(view.caption)}</p>'
        f'<div class="controls" id="{_html(view.name)}-controls"></div>'
        f'<div class="{inside}" id="{_html(view.name)}">{_notes(view.notes)}</div></section>'
    )


def _notes(notes: Iterable[Note]) -> str:
    """Return all notes of a view; the script shows the one of the selected step."""
    return "".join(
        f"<article hidden><p></p><h3>{_html(note.heading)}</h3><dl>{_findings(note)}</dl></article>"
        for note in notes
    )


def _findings(note: Note) -> str:
    return "".join(
        f"<div><dt>{_html(topic)}</dt><dd>{_html(text)} <cite>{_html(source)}</cite></dd></div>"
        for topic, text, source in note.findings
    )


def _table(rows: dict[str, str]) -> str:
    lines = (f"<tr><th>{_html(k)}</th><td>{_html(v)}</td></tr>" for k, v in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _summary(run: Run, job: Job) -> dict[str, str]:
    k, m = run.eigenvalues_largest.shape[1], run.eigenvalues_smallest.shape[1]
    good = run.converged_largest.sum() + run.converged_smallest.sum()
    arguments = ", ".join(f"{name} = {value}" for name, value in job.model.arguments.items())
    rows = {
        "model": job.model.factory + (f" ({arguments})" if arguments else ""),
        "data": f"{job.data.dataset}, {job.data.split}",
        "matrix": job.spectrum.operator.replace("_", " ")
        + (f", scaled by the metric: {run.metric}" if run.metric != "none" else ""),
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
