"""The table of claims at the beginning of a page, for tests that compare it with stored results."""

from __future__ import annotations

import re

import numpy as np
from conftest import ROOT
from numpy.typing import ArrayLike

RESULTS = ROOT / "docs" / "results"
_NUMBER = re.compile(r"[−-]?\d+(?:\.\d+)?(?:e[−-]?\d+)?")
_GROUPS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def claims(page: str) -> list[list[str]]:
    """Return the rows of the first table of docs/studies/PAGE.md, without its heading."""
    return table_of(page, "| claim")


def table_of(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the rows below the first heading that begins with some words."""
    lines = (ROOT / "docs" / "studies" / f"{page}.md").read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(_cells(line))
    return rows


def cells_of(page: str, begin: str) -> list[str]:
    """Return the cells of the only row of any table of the page that begins with some words."""
    text = (ROOT / "docs" / "studies" / f"{page}.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {begin}")]
    return _cells(row)


def numbers_in(text: str) -> list[str]:
    """Return the numbers in a text as they are printed, with a plain minus sign."""
    return [one.replace("−", "-") for one in _NUMBER.findall(text)]


def joined(page: str) -> str:
    """Return the text of docs/studies/PAGE.md with its lines joined."""
    text = (ROOT / "docs" / "studies" / f"{page}.md").read_text(encoding="utf-8")
    return " ".join(text.split())


def check_after(page: str, words: str, *values: float) -> None:
    """Compare the numbers that follow some words of a page with values."""
    printed = numbers_after(page, words, len(values))
    measured = as_printed([float(one) for one in values], printed)
    assert measured == printed, (words, measured, printed)


def ends(values: ArrayLike) -> list[float]:
    """Return the least and the most."""
    return [float(np.min(values)), float(np.max(values))]


def middle(values: ArrayLike) -> list[float]:
    """Return the median, the least and the most."""
    return [float(np.median(values)), *ends(values)]


def numbers_after(page: str, words: str, count: int) -> list[str]:
    """Return the first numbers after the only place of a page at which some words stand.

    Lines are joined, and commas that group digits are left out, in the words as well.
    """
    before, *rest = _GROUPS.sub("", joined(page)).split(_GROUPS.sub("", words))
    assert before, page
    assert len(rest) == 1, (words, len(rest))
    return numbers_in(rest[0])[:count]


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [cell.strip().replace("\\|", "|") for cell in cells]


def claim(page: str, begin: str) -> str:
    """Return the third cell, the numbers, of the only row whose claim begins with some words."""
    (row,) = [row for row in claims(page) if row[0].startswith(begin)]
    return row[2]


def said(page: str, begin: str) -> list[str]:
    """Return the numbers in that cell as they are printed, with a plain minus sign."""
    return numbers_in(claim(page, begin))


def as_printed(values: list[float], printed: list[str]) -> list[str]:
    """Print values with as many decimals as some numbers have, to compare them.

    A number with an exponent has as many digits as it is printed with.
    """
    assert len(values) == len(printed), (values, printed)
    return [_like(value, text) for value, text in zip(values, printed, strict=True)]


def _like(value: float, text: str) -> str:
    if "e" in text:
        digits = len(text.split("e")[0].replace(".", "").replace("-", "")) - 1
        mantissa, exponent = f"{value:.{digits}e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{len(text.partition('.')[2])}f}"
