"""The product journal: what it gives back, and what it does not take for its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import PrescribedSpectrum

from hessdist.parallel.ranks import Ranks
from hessdist.service.journal import ProductJournal, remove_folder
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix

SIZE = 60
IDENTITY = {"job": "a", "checkpoint": "b", "parameters": SIZE}
RECORD = 64 + 4 * SIZE


class Lines(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def open_journal(folder: Path, lines: Lines | None = None, **changed: Any) -> ProductJournal:
    limit = changed.pop("limit", 2**30)
    identity = {**IDENTITY, **changed}
    return ProductJournal(
        folder / "run.h5", 50, Ranks(), identity, limit, Lines() if lines is None else lines
    )


def vectors(seed: int, count: int = 5) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(SIZE).astype(np.float32)) for _ in range(count)]


def written(folder: Path) -> Path:
    """A journal of five products; its file."""
    journal = open_journal(folder)
    for x, y in zip(vectors(1), vectors(2), strict=True):
        assert not journal.replay(x, torch.empty(SIZE))
        journal.append(x, y)
    journal.close()
    return journal.path


def replayed(journal: ProductJournal) -> int:
    """How many of the five it gives back, in order and bit for bit."""
    for number, (x, y) in enumerate(zip(vectors(1), vectors(2), strict=True)):
        found = torch.empty(SIZE)
        if not journal.replay(x, found):
            return number
        assert torch.equal(found, y)
    assert not journal.replay(vectors(1)[0], torch.empty(SIZE))
    return 5


def test_products_come_back_bit_for_bit(tmp_path: Path) -> None:
    written(tmp_path)
    lines = Lines()
    assert replayed(open_journal(tmp_path, lines)) == 5
    assert lines == ["step 50: 5 products from the journal"]


@pytest.mark.parametrize("cut", [1, 64, RECORD - 1])
def test_a_record_that_a_kill_cut_short_is_computed_again_and_the_journal_goes_on(
    tmp_path: Path, cut: int
) -> None:
    path = written(tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    journal = open_journal(tmp_path)
    assert replayed(journal) == 4
    journal.append(vectors(1)[4], vectors(2)[4])
    journal.close()
    assert replayed(open_journal(tmp_path)) == 5


@pytest.mark.parametrize("offset", [0, 40, 200])
def test_a_flipped_bit_ends_the_replay_there(tmp_path: Path, offset: int) -> None:
    path = written(tmp_path)
    data = bytearray(path.read_bytes())
    data[1024 + 2 * RECORD + offset] ^= 1
    path.write_bytes(data)
    assert replayed(open_journal(tmp_path)) == 2


def test_a_solve_that_asks_for_something_else_computes_from_there_on(tmp_path: Path) -> None:
    written(tmp_path)
    lines = Lines()
    journal = open_journal(tmp_path, lines)
    assert journal.replay(vectors(1)[0], torch.empty(SIZE))
    assert not journal.replay(vectors(3)[0], torch.empty(SIZE))
    assert not journal.replay(vectors(1)[1], torch.empty(SIZE))  # it has ended
    (line,) = lines
    assert "number 2" in line


@pytest.mark.parametrize(("name", "value"), [("job", "c"), ("checkpoint", "c"), ("parameters", 9)])
def test_a_journal_of_something_else_is_ignored_and_says_so(
    tmp_path: Path, name: str, value: Any
) -> None:
    written(tmp_path)
    lines = Lines()
    assert replayed(open_journal(tmp_path, lines, **{name: value})) == 0
    assert lines == [f"step 50: the journal is ignored: it is of another {name}"]


def test_a_journal_that_was_only_begun_is_begun_again(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    lines = Lines()
    assert replayed(open_journal(tmp_path, lines)) == 0
    assert not lines


def test_its_size_is_bounded_and_what_is_there_still_counts(tmp_path: Path) -> None:
    lines = Lines()
    limit = 1024 + 3 * RECORD
    journal = open_journal(tmp_path, lines, limit=limit)
    for x, y in zip(vectors(1), vectors(2), strict=True):
        journal.append(x, y)
    journal.close()
    assert journal.path.stat().st_size == limit
    (line,) = lines
    assert "journal_gib" in line
    assert replayed(open_journal(tmp_path, limit=limit)) == 3


def test_it_is_gone_when_it_is_dropped(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.with_name("step-00000050.rank-7").touch()  # of more ranks than there are now
    open_journal(tmp_path).drop()
    assert not list(path.parent.iterdir())
    remove_folder(tmp_path / "run.h5")
    assert not path.parent.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_solve_on_the_shell_matrix_is_replayed(tmp_path: Path, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([[9, 7, 5, -4], rng.uniform(-0.5, 0.5, SIZE - 4)])
    operator = PrescribedSpectrum(values, dtype=dtype)
    found = []
    for _ in range(2):
        journal = open_journal(tmp_path)
        shell = ShellMatrix(operator, Ranks(), journal=journal)
        pairs = extreme_eigenpairs(shell, 3, 1)
        journal.close()
        found.append((shell.replayed, pairs))
    (none, first), (all_of_them, second) = found
    assert (none, all_of_them) == (0, first.products)
    for end in ("largest", "smallest"):
        one, other = getattr(first, end), getattr(second, end)
        assert np.array_equal(one.values, other.values)
        assert np.array_equal(one.vectors, other.vectors)
