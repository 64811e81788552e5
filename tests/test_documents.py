"""The examples of the guide and the cells of the notebook, run on a small run with all studies."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path

import pytest
from conftest import ROOT

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[tuple[str, str | None]]:
    """Python blocks, each with the block of text that follows it: what it prints."""
    blocks = _BLOCK.findall(page.read_text(encoding="utf-8"))
    found = []
    for number, (kind, text) in enumerate(blocks):
        if kind == "python":
            after = blocks[number + 1] if number + 1 < len(blocks) else ("", "")
            found.append((text, after[1] if after[0] == "text" else None))
    return found


def test_the_guide_prints_what_it_says(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xarray")
    monkeypatch.chdir(studied)
    assert printed_as_shown(ROOT / "docs" / "analysis.md") > 7


def test_the_page_of_workloads_prints_what_it_says() -> None:
    assert printed_as_shown(ROOT / "docs" / "workloads.md") > 5


def test_the_page_of_language_models_prints_what_it_says() -> None:
    pytest.importorskip("transformers")
    assert printed_as_shown(ROOT / "docs" / "language-models.md") >= 1


def printed_as_shown(page: Path) -> int:
    """Run the examples of a page, and compare what they print with what it shows.

    Returns:
        The number of examples.
    """
    names: dict[str, object] = {}
    shown = examples(page)
    for text, expected in shown:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, str(page), "exec"), names)
        if os.environ.get("HESSDIST_REWRITE"):
            rewrite(page, text, printed.getvalue())
        else:
            assert printed.getvalue() == (expected or ""), f"of:\n{text}"
    return len(shown)


def rewrite(page: Path, text: str, printed: str) -> None:
    """Put what a block prints behind it."""
    whole = page.read_text(encoding="utf-8")
    begin = whole.index(f"```python\n{text}```\n") + len(f"```python\n{text}```\n")
    rest = re.sub(r"\A\n```text\n.*?^```\n", "", whole[begin:], count=1, flags=re.M | re.S)
    shown = f"\n```text\n{printed}```\n" if printed else ""
    page.write_text(f"{whole[:begin]}{shown}{rest}", encoding="utf-8")


def test_the_notebook_runs(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xarray")
    monkeypatch.chdir(studied)
    notebook = json.loads((ROOT / "docs" / "analysis.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    names: dict[str, object] = {}
    for cell in cells:
        assert cell["outputs"] == []
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile("".join(cell["source"]), "docs/analysis.ipynb", "exec"), names)
