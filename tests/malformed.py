"""Malformed result files, drawn at random: one thing in a good file is made wrong."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SECRET = "a secret of the reader's"
NAMES = (
    "\x1b]0;title\x07\x1b[2J\x1b[31mRED",
    "\x9b31m", "\u202egnp.exe", "two\nlines", "\0", "[/bold][red]",
    "$\\frac{$", "a$b$c_d", "\\input{x}", "\\", "n" * 5000, "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>", "%{x}", ":smile:", "",
)  # fmt: skip
"""Names that a terminal, a figure or the page could take for more than names."""


def malformed(source: Path, target: Path, draw: random.Random) -> str:
    """Copy a run with its folder, make one thing in one of its files wrong, and say what.

    Args:
        source: A good run's file.
        target: The path of the copy, in a folder of its own.
        draw: The random numbers.

    Returns:
        What was made wrong, for messages.
    """
    target.parent.mkdir()
    shutil.copy(source, target)
    parts = source.with_suffix(".checkpoints")
    if parts.is_dir():
        shutil.copytree(parts, target.with_suffix(".checkpoints"))
        with h5py.File(target, "r+") as file:
            _relink(file, parts.name, target.with_suffix(".checkpoints").name)
    (target.parent / "secret.txt").write_text(SECRET * 100, encoding="utf-8")
    inside = target.parent / "inside"
    os.mkfifo(inside)
    files = [target] * 3 + sorted(target.with_suffix(".checkpoints").glob("*.h5"))
    path = draw.choice(files)
    with h5py.File(path, "r+") as file:
        places: list[str] = ["/"]
        file.visit(places.append)
        links = [
            f"{group}/{name}"
            for group in ("/", *places[1:])
            if isinstance(file.get(group), h5py.Group)
            for name in file[group]
        ]
        if draw.random() < 0.35:
            what = _attribute(file[draw.choice(["/", "/", *places])], draw)
        else:
            name = draw.choice(links)
            what = f"{name}: {_link(file, name, draw)}"
    return f"{path.name}: {what}"


def _relink(group: h5py.Group, old: str, new: str) -> None:
    for name in list(group):
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            del group[name]
            group[name] = h5py.ExternalLink(link.filename.replace(old, new), link.path)
        elif isinstance(group[name], h5py.Group):
            _relink(group[name], old, new)


# -- attributes ------------------------------------------------------------------------------


def _attribute(of: Any, draw: random.Random) -> str:
    names = [name for name in of.attrs if name not in {"DIMENSION_LIST", "REFERENCE_LIST"}]
    if not names:
        return f"{of.name}: no attributes"
    name = draw.choice(names)
    if draw.random() < 0.2:
        del of.attrs[name]
        return f"{of.name}: no attribute {name}"
    value = draw.choice([
        *NAMES[:4], *NAMES[5:],
        b"\xff\xfe", np.bytes_(b"\xff"), -3, 2**62, float("nan"), float("inf"),
        np.arange(3), np.array(["a", "b"], dtype=h5py.string_dtype()), h5py.Empty("f8"), True, 1j,
        np.zeros(2, [("a", "f8")]), "x=" + "[" * 3000 + "]" * 3000, "[[[", "x = 1", "n" * 60000,
    ])  # fmt: skip
    try:
        of.attrs[name] = value
    except ValueError:
        of.attrs[name] = "\ud800"
    return f"{of.name}: attribute {name} = {str(value)[:40]!r}"


# -- links and datasets ----------------------------------------------------------------------


def _link(file: h5py.File, name: str, draw: random.Random) -> str:
    old = file.get(name, getlink=False) if _is_hard(file, name) else None
    changes: list[Callable[[h5py.File, str, Any], Any]] = [
        *(_drop, _soft_loop, _hard_loop, _to_passwd, _to_secret, _to_fifo, _to_itself, _to_group),
        *(_named_type, _text, _scalar, _references, _compound, _ragged),
    ]
    if isinstance(old, h5py.Dataset):
        changes += [_raw, _virtual, _huge, _bomb, _rows, _no_rows, _flat, _complex, _other_kind]
        changes += [_values] * 8
    change = draw.choice(changes)
    if change is _values:
        return _values(file, name, old, draw)
    shape, dtype = (
        (old.shape, old.dtype) if isinstance(old, h5py.Dataset) else ((3,), np.dtype("f8"))
    )
    values = old[()] if isinstance(old, h5py.Dataset) and old.size < 10**6 else np.zeros(3)
    del file[name]
    change(file, name, (shape, dtype, values))
    return change.__name__


def _is_hard(file: h5py.File, name: str) -> bool:
    return isinstance(file.get(name, getlink=True), h5py.HardLink)


def _drop(file: h5py.File, name: str, old: Any) -> None:
    """Nothing is put in its place."""


def _soft_loop(file: h5py.File, name: str, old: Any) -> None:
    file[name] = h5py.SoftLink(name)


def _hard_loop(file: h5py.File, name: str, old: Any) -> None:
    file[name] = file["/"]


def _to_passwd(file: h5py.File, name: str, old: Any) -> None:
    file[name] = h5py.ExternalLink("/etc/passwd", "/")


def _to_secret(file: h5py.File, name: str, old: Any) -> None:
    file[name] = h5py.ExternalLink("../secret.txt", "/")


def _to_fifo(file: h5py.File, name: str, old: Any) -> None:
    file[name] = h5py.ExternalLink("inside", "/")


def _to_itself(file: h5py.File, name: str, old: Any) -> None:
    file[name] = h5py.ExternalLink(Path(file.filename).name, name)


def _to_group(file: h5py.File, name: str, old: Any) -> None:
    file.create_group(name)


def _named_type(file: h5py.File, name: str, old: Any) -> None:
    file[name] = np.dtype("f8")


def _text(file: h5py.File, name: str, old: Any) -> None:
    file[name] = "hello"


def _scalar(file: h5py.File, name: str, old: Any) -> None:
    file[name] = 3.0


def _references(file: h5py.File, name: str, old: Any) -> None:
    file.create_dataset(name, (3,), h5py.ref_dtype)


def _compound(file: h5py.File, name: str, old: Any) -> None:
    file[name] = np.zeros(3, [("a", "f8"), ("b", "i4")])


def _ragged(file: h5py.File, name: str, old: Any) -> None:
    file.create_dataset(name, (3,), h5py.vlen_dtype("f8"))


def _raw(file: h5py.File, name: str, old: Any) -> None:
    raw_dataset(file, name, old[0], Path(file.filename).with_name("secret.txt"))


def raw_dataset(file: h5py.File, name: str, shape: tuple[int, ...], path: Path) -> None:
    """Make a dataset of text that HDF5 reads from any other file."""
    text = h5py.h5t.C_S1.copy()
    text.set_size(24)
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_external(os.fsencode(path), 0, 24 * max(1, int(np.prod(shape))))
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    h5py.h5d.create(file.id, name.encode(), text, space, dcpl=layout)


def _virtual(file: h5py.File, name: str, old: Any) -> None:
    shape = old[0] or (1,)
    layout = h5py.VirtualLayout(shape, "f8")
    layout[...] = h5py.VirtualSource("inside", "x", shape)
    file.create_virtual_dataset(name, layout)


def _huge(file: h5py.File, name: str, old: Any) -> None:
    shape = (*(10**7,) * max(1, len(old[0]) - 1), 10**9)
    kind = old[1] if old[1].kind in "biuf" else h5py.string_dtype()
    file.create_dataset(name, shape, kind, chunks=(*(1,) * (len(shape) - 1), 1024))


def _bomb(file: h5py.File, name: str, old: Any) -> None:
    shape = (*old[0][:-1], 1 << 21)
    if int(np.prod(shape)) > 1 << 23:
        return
    chunks = (*(1,) * (len(shape) - 1), 1 << 21)
    file.create_dataset(name, shape, "f8", chunks=chunks, compression="gzip")[...] = 0


def _rows(file: h5py.File, name: str, old: Any) -> None:
    file[name] = np.ones((7, *old[0][1:]))


def _no_rows(file: h5py.File, name: str, old: Any) -> None:
    file.create_dataset(name, (0, *old[0][1:]), old[1])


def _flat(file: h5py.File, name: str, old: Any) -> None:
    file[name] = np.asarray(old[2]).ravel()


def _complex(file: h5py.File, name: str, old: Any) -> None:
    file[name] = np.ones(old[0], complex)


def _other_kind(file: h5py.File, name: str, old: Any) -> None:
    file[name] = np.ones(old[0], "f4" if old[1].kind in "iu" else "i4")


def _values(file: h5py.File, name: str, dataset: h5py.Dataset, draw: random.Random) -> str:
    """Change numbers or names to extreme ones of the same type."""
    if not dataset.size:
        return "no values"
    place = tuple(draw.randrange(length) for length in dataset.shape)
    if h5py.check_string_dtype(dataset.dtype) is not None:
        value: Any = draw.choice(NAMES)
        value = value.replace("\0", "\x01")
    elif dataset.dtype.kind in "iu":
        value = draw.choice([-1, 0, 2**31, 2**62, -(2**62)])
    elif dataset.dtype.kind == "f":
        value = draw.choice([np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300, 5e-324])
    else:
        value = False
    where = draw.choice([place, ...])
    dataset[where] = value
    return f"values {str(value)[:40]!r} at {where}"
