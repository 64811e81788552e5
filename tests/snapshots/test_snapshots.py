"""Every shipped job, shortened, still gives what it gave: files, tables, figures, pages.

Snapshots are in recorded/; `python tests/snapshots/record.py JOB` makes one anew, after a change
that is meant to be seen. HESSDIST_SNAPSHOT_BITS=1 compares bits and printed numbers as well, which
holds on the machine that recorded them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from snapshots.page_parts import browser
from snapshots.record import RECORDED, snapshot
from snapshots.shortened import JOBS, ROOT, Shortened
from snapshots.summaries import digest

BITS = os.environ.get("HESSDIST_SNAPSHOT_BITS") == "1"
NUMBER = re.compile(r"[-−+]?(\d[\d,.]*(e[-+]?\d+)?|inf|nan|∞)")
WORDED = re.compile("/(show|figures|drawn|json)")  # parts whose texts have numbers in them
# Rounding errors, how many products it takes to meet a tolerance, digests of trained parameters.
UNSTABLE = "residuals|asymmetry|disagreement|products|restarts|digest"
EITHER_SIGN = re.compile("eigenvectors")  # the last number is the mean of absolute values
DATASETS = ("mnist", "cifar10")
PYDOC = "cec54c2700dcedd6"  # digest of the text of the Python that recorded


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """A browser, or None."""
    started = browser()
    yield started
    if started is not None:
        started.quit()


def differences(
    old: Any, new: Any, job: Shortened, place: str = "", bits: bool = BITS
) -> Iterator[str]:
    """Places where a snapshot and what was found are not the same."""
    name = place.rsplit("/", 1)[-1]
    bits = bits and not place.startswith("/drawn")  # a page has rounded numbers
    if isinstance(old, str) and isinstance(new, str):  # lines may be broken elsewhere
        old, new = " ".join(old.split()), " ".join(new.split())
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            inside = f"{place}/{key}".replace("//", "/")
            if key not in new or key not in old:
                yield f"{inside}: {'missing' if key not in new else 'new'}"
            elif key == "bits" and not bits:
                continue
            else:
                yield from differences(old[key], new[key], job, inside, bits)
    elif not bits and _unstable(job, place):
        return
    elif isinstance(old, list) and isinstance(new, list) and name not in {"numbers", "ints"}:
        if len(old) != len(new):
            yield f"{place}: {len(old)} entries were recorded, {len(new)} found: {old} {new}"
        for i, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from differences(one, other, job, f"{place}[{i}]", bits)
    elif (not bits and not _near(old, new, job, place)) or (bits and old != new):
        yield f"{place}: {old} was recorded, {new} found"


def _unstable(job: Shortened, place: str) -> bool:
    """Whether a value, not a name or a shape, is another one on another CPU."""
    if place.rsplit("/", 1)[-1] in {"shape", "dimensions"}:
        return False
    return any(re.search(pattern, place) for pattern in (UNSTABLE, *job.unstable))


def _near(old: Any, new: Any, job: Shortened, place: str) -> bool:
    """Whether they are the same on another CPU."""
    if place.endswith("/numbers"):
        if EITHER_SIGN.search(place):
            old, new = old[-1:], new[-1:]
        scale = max(map(abs, old))
        return all(abs(a - b) <= job.rtol * scale for a, b in zip(old, new, strict=True))
    if WORDED.match(place) and isinstance(old, str) and isinstance(new, str):
        old, new = (NUMBER.sub("#", text) for text in (old, new))
    return bool(old == new)


@pytest.mark.parametrize(
    "job",
    [pytest.param(j, id=j.job, marks=[pytest.mark.slow] if j.slow else []) for j in JOBS],
)
def test_a_job_gives_what_it_gave(job: Shortened, tmp_path: Path, driver: Any) -> None:
    text = job.path.read_text(encoding="utf-8")
    root = os.environ.get("HESSDIST_DATA")
    if any(f'"{name}"' in text for name in DATASETS) and not (root and Path(root).is_dir()):
        pytest.skip("HESSDIST_DATA names no folder with MNIST and CIFAR-10")
    if any('"pydoc"' in one or "=pydoc" in one for one in (text, *job.overrides)):
        texts = "".join(topics[name] for name in sorted(topics))
        if digest(texts.encode()) != PYDOC:
            pytest.skip("the texts of this Python's help are not those that were recorded")
    recorded = json.loads((RECORDED / f"{job.job}.json").read_text(encoding="utf-8"))
    found = json.loads(json.dumps(snapshot(job, tmp_path, driver)))
    if driver is None:
        recorded.pop("drawn", None)
    different = list(differences(recorded, found, job))
    shown = "\n".join(different[:40])
    assert not different, f"{job.job} differs in {len(different)} places:\n{shown}"


def test_every_shipped_job_is_among_them() -> None:
    assert [job.job for job in JOBS] == sorted(p.stem for p in (ROOT / "jobs").glob("*.toml"))


@pytest.mark.parametrize(
    ("old", "new", "bits", "where"),
    [
        ({"a": {"b": 1}}, {"a": {"c": 1}}, False, ["/a/b: missing", "/a/c: new"]),
        ({"numbers": [1.0, 2.0]}, {"numbers": [1.0, 2.00001]}, False, []),
        ({"numbers": [1.0, 2.0]}, {"numbers": [1.0, 2.1]}, False, ["/numbers: "]),
        ({"bits": "0"}, {"bits": "1"}, False, []),
        ({"bits": "0"}, {"bits": "1"}, True, ["/bits: "]),
        ({"show": ["λ 1.0"]}, {"show": ["λ 1.1"]}, False, []),
        ({"show": ["λ 1.0"]}, {"show": ["μ 1.0"]}, False, ["/show[0]: "]),
        ({"title": "a b"}, {"title": "a\nb"}, True, []),
        ({"drawn": {"numbers": [1.0]}}, {"drawn": {"numbers": [1.00001]}}, True, []),
        ({"ints": [1]}, {"ints": [2]}, False, ["/ints: "]),
        ({"views": ["a", "b"]}, {"views": ["a"]}, False, ["/views: "]),
    ],
)
def test_a_difference_is_found_and_named(old: Any, new: Any, bits: bool, where: list[str]) -> None:
    found = list(differences(old, new, Shortened("any"), bits=bits))
    assert len(found) == len(where)
    assert all(one.startswith(start) for one, start in zip(found, where, strict=True))
