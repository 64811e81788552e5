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
    names: dict[str, object] = {}
    shown = examples(ROOT / "docs" / "analysis.md")
    assert len(shown) > 7
    for text, expected in shown:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, "docs/analysis.md", "exec"), names)
        if os.environ.get("HESSDIST_REWRITE"):
            rewrite(text, printed.getvalue())
        else:
            assert expected is not None, f"no output is shown of:\n{text}"
            assert printed.getvalue() == expected


def rewrite(text: str, printed: str) -> None:
    """Put what a block prints behind it."""
    page = ROOT / "docs" / "analysis.md"
    whole = page.read_text(encoding="utf-8")
    begin = whole.index(f"```python\n{text}```\n") + len(f"```python\n{text}```\n")
    rest = re.sub(r"\A\n```text\n.*?^```\n", "", whole[begin:], count=1, flags=re.M | re.S)
    page.write_text(f"{whole[:begin]}\n```text\n{printed}```\n{rest}", encoding="utf-8")


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
