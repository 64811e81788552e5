"""Runs shortened jobs and describes what users see of them: files, tables, figures, pages.

    python tests/snapshots/record.py [JOB...]

records snapshots anew, of the hessdist that is imported; test_snapshots.py compares with them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))

from snapshots.page_parts import browser, drawn_parts, page_parts  # noqa: E402
from snapshots.shortened import JOBS, Shortened  # noqa: E402
from snapshots.summaries import digest, summary  # noqa: E402

RECORDED = HERE / "recorded"
_RESULT = "results/run.h5"
_INTERNAL = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"}  # of HDF5's dimension scales
_VOLATILE = re.compile("created|job|.*seconds.*|.*_version")


_MORE = {"diagnose": ["--all", "--json", "diagnosis.json"]}
_NOT_CONVERGED = 3


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    command: str
    status: int
    seconds: float  # of processor time
    output: str
    errors: str


def snapshot(job: Shortened, folder: Path, driver: Any = None) -> dict[str, Any]:
    """Run a job and describe what it leaves.

    Args:
        job: The job.
        folder: An empty folder to run in.
        driver: A browser to draw the page in; None: the page is not drawn.

    Returns:
        The description.

    Raises:
        RuntimeError: A command failed.
    """
    options = [
        word for text in (f"output.path={_RESULT}", *job.overrides) for word in ("--set", text)
    ]
    commands = [[name, str(job.path), *options, *(_MORE.get(name, []))] for name in job.commands]
    commands += [["show", _RESULT], ["plot", _RESULT, "--format", "svg"], ["report", _RESULT]]
    ended = _run(commands, folder)
    for one in ended:
        if one.status not in {0, _NOT_CONVERGED}:
            raise RuntimeError(f"{one.command} ended with {one.status}: {one.errors}")
    if "SNAPSHOT_TIMES" in os.environ:
        print(*(f"{one.command} {one.seconds:.1f}" for one in ended), sep=", ", flush=True)
    page = folder / _RESULT.replace(".h5", ".html")
    found = {
        "statuses": {one.command: one.status for one in ended},
        "files": sorted(_listed(folder)),
        "hdf5": dict(_hdf5(folder / _RESULT)),
        "show": without_seconds(ended[-3].output),
        "figures": {
            path.name.removesuffix(".svg.json"): json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((folder / "results").glob("*.svg.json"))
        },
        "page": page_parts(page.read_text(encoding="utf-8")),
    }
    if (diagnosis := folder / "diagnosis.json").exists():
        found["json"] = _values(json.loads(diagnosis.read_text(encoding="utf-8")))
    if driver is not None:
        found["drawn"] = drawn_parts(driver, page)
    return found


def _run(commands: list[list[str]], folder: Path) -> list[Ended]:
    """How each command ended."""
    with TemporaryDirectory() as outside:
        outputs = Path(outside)
        (outputs / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
        words = [sys.executable, str(HERE / "commands.py"), outside, f"{outside}/commands.json"]
        done = subprocess.run(
            words, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return [
            Ended(
                words[0],
                **json.loads((outputs / f"{i}.json").read_text(encoding="utf-8")),
                output=(outputs / f"{i}.out").read_text(encoding="utf-8"),
                errors=(outputs / f"{i}.err").read_text(encoding="utf-8"),
            )
            for i, words in enumerate(commands)
        ]


def _environment() -> dict[str, str]:
    """The tests' own, and the hessdist that this process imports."""
    import hessdist

    paths = [str(Path(hessdist.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        "MPLBACKEND": "agg",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def _listed(folder: Path) -> Iterator[str]:
    """Files that the job wrote, without those of the recorder's own."""
    for path in folder.rglob("*"):
        if (
            path.is_file()
            and not path.name.endswith(".svg.json")
            and "__pycache__" not in path.parts
        ):
            yield str(path.relative_to(folder))


def _hdf5(path: Path) -> Iterator[tuple[str, Any]]:
    with h5py.File(path) as file:
        yield "/", {"attributes": _attributes(file)}
        yield from _members(file, "/")


def _members(group: h5py.Group, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in sorted(group):
        link = group.get(name, getlink=True)
        found: dict[str, Any] = {}
        if isinstance(link, h5py.ExternalLink):
            found["link"] = f"{link.filename}:{link.path}"
        elif isinstance(link, h5py.SoftLink):
            found["link"] = link.path
        member = group[name]
        found["attributes"] = _attributes(member)
        if isinstance(member, h5py.Dataset):
            found |= _dataset(member, name)
        yield prefix + name, found
        if isinstance(member, h5py.Group):
            yield from _members(member, f"{prefix}{name}/")


def _dataset(dataset: h5py.Dataset, name: str) -> dict[str, Any]:
    dimensions = [axis[0].name.rsplit("/", 1)[-1] if len(axis) else "" for axis in dataset.dims]
    found = {"dtype": str(dataset.dtype), "shape": list(dataset.shape), "dimensions": dimensions}
    without_values = b"This is a netCDF dimension" in np.bytes_(dataset.attrs.get("NAME", b""))
    if _VOLATILE.fullmatch(name) or without_values:
        return found
    return found | summary(dataset[()])


def _attributes(member: h5py.Group | h5py.Dataset) -> dict[str, Any]:
    return {
        name: "volatile" if _VOLATILE.fullmatch(name) else _attribute(name, value)
        for name, value in sorted(member.attrs.items())
        if name not in _INTERNAL
    }


def _attribute(name: str, value: Any) -> Any:
    if name.endswith("digest"):
        return {"bits": digest(str(value).encode())}
    if isinstance(value, bytes | str):
        return str(value)
    return summary(value)


def _values(value: Any) -> Any:
    """JSON with its sentences left out, which may be put in other words, and numbers summarised."""
    if isinstance(value, dict):
        return {
            name: _values(inner) for name, inner in value.items() if not _VOLATILE.fullmatch(name)
        }
    if isinstance(value, list):
        numeric = value and all(isinstance(one, int | float) for one in value)
        return summary(value) if numeric else [_values(one) for one in value]
    if isinstance(value, str):
        return "text" if " " in value else value
    return summary(value) if isinstance(value, int | float) else value


def without_seconds(text: str) -> list[str]:
    """Lines of `hessdist show` with columns of seconds masked and one space between words.

    Args:
        text: What the command printed.

    Returns:
        Its lines.
    """
    lines, columns = [], {}
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if any("seconds" in cell for cell in cells):
            columns = {i for i, cell in enumerate(cells) if "seconds" in cell}
        elif len(cells) > 1:
            cells = ["#" if i in columns else cell for i, cell in enumerate(cells)]
        else:
            columns = set()
        line = " ".join(" ".join(cells).split())
        lines.append(re.sub(r"hessdist [\d.]+\w*", "hessdist", line))
    return lines


def main() -> None:
    """Record the jobs that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="*")
    parser.add_argument("--into", type=Path, default=RECORDED)
    parser.add_argument("--no-browser", action="store_true")
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    import hessdist

    print(f"of {hessdist.__file__}", flush=True)
    driver = None if arguments.no_browser else browser()
    for job in JOBS:
        if arguments.jobs and job.job not in arguments.jobs:
            continue
        start = time.monotonic()
        with TemporaryDirectory() as folder:
            try:
                found = snapshot(job, Path(folder), driver)
            except RuntimeError as error:
                print(f"{job.job}: {error}", flush=True)
                continue
        path = arguments.into / f"{job.job}.json"
        path.write_text(as_text(found), encoding="utf-8")
        print(
            f"{job.job}: {time.monotonic() - start:.1f} s, {path.stat().st_size / 1e3:.0f} kB",
            flush=True,
        )
    if driver is not None:
        driver.quit()


def as_text(found: dict[str, Any]) -> str:
    """JSON with a line for each part, so that a difference is easy to see."""
    lines = []
    for part, value in found.items():
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        if isinstance(value, dict):
            body = ",\n".join(
                f"{json.dumps(k, ensure_ascii=False)}:{_compact(v)}" for k, v in inner
            )
            lines.append(f"{json.dumps(part)}:{{\n{body}\n}}")
        else:
            body = ",\n".join(_compact(v) for _, v in inner)
            lines.append(f"{json.dumps(part)}:[\n{body}\n]")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


if __name__ == "__main__":
    main()
