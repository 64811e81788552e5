"""Figures for papers: width, fonts, style, formats, and the same bytes for the same data."""

from __future__ import annotations

import re
import struct
from itertools import islice
from pathlib import Path

import pytest
from conftest import Run
from written import write_run

import hessdist
from hessdist.errors import InputError
from hessdist.present.look import Look
from hessdist.studies.shows import figures


def draw(look: Look, path: Path, folder: Path, count: int | None = None) -> list[Path]:
    with look.applied():
        drawn = islice(figures(hessdist.open_run(path), "a run"), count)
        return [made for name, figure in drawn for made in look.save(figure, folder, name)]


def pixels(png: Path) -> tuple[int, int]:
    return struct.unpack(">II", png.read_bytes()[16:24])


def test_a_width_in_centimetres(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=3)
    png, pdf = draw(Look(width=8.5), path, tmp_path / "narrow")
    assert pixels(png)[0] == pytest.approx(8.5 / 2.54 * 200, abs=1)
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf.read_bytes())
    assert float(box[1]) == pytest.approx(8.5 / 2.54 * 72, abs=0.01)
    usual, _ = draw(Look(), path, tmp_path / "usual")
    assert pixels(usual)[0] / pixels(usual)[1] == pytest.approx(
        pixels(png)[0] / pixels(png)[1], abs=0.01
    )


def test_text_in_vector_files_is_text_of_its_size(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=3)
    (svg,) = draw(Look(width=8.5, font_size=6, formats=("svg",)), path, tmp_path)
    text = svg.read_text(encoding="utf-8")
    assert ">training step<" in text
    assert re.search(r"font[-a-z]*: 6px", text)
    assert "a run" in text
    (bare,) = draw(Look(formats=("svg",), titled=False), path, tmp_path / "bare")
    assert "a run" not in bare.read_text(encoding="utf-8")


def test_a_style_of_ones_own(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=3)
    mine = tmp_path / "mine.mplstyle"
    mine.write_text("axes.facecolor: ffeedd\n", encoding="utf-8")
    (svg,) = draw(Look(style=str(mine), formats=("svg",)), path, tmp_path)
    assert "#ffeedd" in svg.read_text(encoding="utf-8")
    (plain,) = draw(Look(formats=("svg",)), path, tmp_path / "plain")  # and it is gone again
    assert "#ffeedd" not in plain.read_text(encoding="utf-8")


def test_the_same_bytes_every_time(studied: Path, tmp_path: Path) -> None:
    path, look = studied / "results" / "run.h5", Look(formats=("png", "pdf", "svg"))
    one, other = draw(look, path, tmp_path / "one", 4), draw(look, path, tmp_path / "other", 4)
    assert len(one) == 4 * 3
    for mine, theirs in zip(one, other, strict=True):
        assert mine.read_bytes() == theirs.read_bytes(), mine.name


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"width": -1.0}, "--width -1 is out of range"),
        ({"font_size": 0.0}, "--font-size 0 is out of range"),
        ({"style": "nosuchstyle"}, "the style 'nosuchstyle' cannot be read"),
        ({"formats": ("gif",)}, "figures cannot be of format 'gif'; use png, pdf, svg"),
    ],
)
def test_what_cannot_be_drawn_is_said(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError) as raised:
        Look(**settings)
    assert expected in str(raised.value)


def test_the_command(tmp_path: Path, run: Run) -> None:
    write_run(tmp_path / "run.h5", steps=2)
    words = ("--width", "8.5", "--font-size", "7", "--format", "pdf,svg", "--no-title")
    done = run("plot", "run.h5", "-o", "paper", *words)
    assert done.returncode == 0, done.stderr
    assert sorted(path.suffix for path in (tmp_path / "paper").iterdir()) == [".pdf", ".svg"]
