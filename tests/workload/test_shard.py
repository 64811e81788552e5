from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hessdist.errors import DataError
from hessdist.workload.collate import Collate
from hessdist.workload.datasets import ImageDataset
from hessdist.workload.nestings import count_bytes, map_tensors
from hessdist.workload.sending import why_not_sent
from hessdist.workload.shard import Shard
from hessdist.workload.shard import _warn as warn

CPU = torch.device("cpu")


class Numbered:
    """Sample i is (i as an image of 1 x 2 x 2, i as a label)."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 2, 2), float(index)), index


class Named(Numbered):
    """The same as dictionaries with a nesting and a text."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return {"x": image, "more": {"y": label, "mask": label % 2 == 0}, "name": f"n{index}"}


class Damaged(Numbered):
    """Sample 7 cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise OSError("unreadable sector")
        return super().__getitem__(index)


class Ragged(Numbered):
    """Samples of different shapes."""

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(index), index


def shard(
    dataset: Any,
    indices: NDArray[np.int64] | list[int],
    batch_size: int = 4,
    memory: float = 2**20,
    dtype: torch.dtype = torch.float64,
    workers: int = 0,
    collate: Collate | None = None,
) -> Shard:
    return Shard(
        dataset,
        np.asarray(indices, np.int64),
        batch_size=batch_size,
        device=CPU,
        dtype=dtype,
        memory=memory,
        workers=workers,
        collate=collate,
    )


def labels(made: Shard) -> list[list[int]]:
    return [batch[1].tolist() for _, batch in made.batches()]


def same(one: Any, other: Any) -> bool:
    """Whether two batches are of one make, dtype and value."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("memory", [2**20, 0])
@pytest.mark.parametrize(("size", "batch_size"), [(12, 4), (13, 4), (3, 4), (5, 1), (7, 7)])
def test_batches_cover_each_sample_once_and_in_order(
    size: int, batch_size: int, memory: float
) -> None:
    indices = np.arange(20, 20 + 2 * size, 2)
    made = shard(Numbered(), indices, batch_size, memory)
    batches = list(made.batches())
    assert [number for number, _ in batches] == list(range(len(made)))
    assert [len(batch[1]) for _, batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert torch.cat([batch[1] for _, batch in batches]).tolist() == indices.tolist()
    assert torch.cat([batch[0] for _, batch in batches])[:, 0, 1, 1].tolist() == indices.tolist()
    assert made.num_samples == size
    assert made.is_streamed == (memory == 0)


@pytest.mark.parametrize("memory", [2**20, 0])
def test_an_empty_shard_has_no_batches(memory: float) -> None:
    made = shard(Damaged(), [], memory=memory)
    assert (len(made), made.num_samples, list(made.batches())) == (0, 0, [])


@pytest.mark.parametrize("dataset", [Numbered(), Named()])
@pytest.mark.parametrize("wanted", [None, [2], [3, 0], []])
def test_a_streamed_shard_gives_what_a_kept_one_does(
    dataset: Any, wanted: list[int] | None
) -> None:
    kept, streamed = (shard(dataset, range(14), memory=memory) for memory in (2**20, 0))
    assert (kept.is_streamed, streamed.is_streamed) == (False, True)
    expected = list(kept.batches(wanted))
    assert [number for number, _ in expected] == (
        [0, 1, 2, 3] if wanted is None else sorted(wanted)
    )
    for _ in range(2):  # and again on the next pass
        found = list(streamed.batches(wanted))
        assert [number for number, _ in found] == [number for number, _ in expected]
        assert same([batch for _, batch in found], [batch for _, batch in expected])


def test_a_shard_that_is_read_ahead_by_processes_gives_the_same_batches() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 3, 3), dtype=np.uint8)
    dataset = ImageDataset(images, np.arange(10))
    kept = shard(dataset, range(1, 10))
    made = shard(dataset, range(1, 10), memory=0, workers=2)
    for wanted in (None, None, [1]):
        found = [batch for _, batch in made.batches(wanted)]
        assert same(found, [batch for _, batch in kept.batches(wanted)])


@pytest.mark.parametrize("size", [1, 5, 40])
def test_a_shard_is_kept_if_and_only_if_its_samples_fit_the_memory(size: int) -> None:
    each = 4 * 8 + 8  # an image in double precision and a label
    assert not shard(Numbered(), range(size), memory=size * each).is_streamed
    assert shard(Numbered(), range(40), memory=40 * each - 1).is_streamed


# -- samples by position ---------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("memory", [2**20, 0])
def test_the_first_samples_are_given_whatever_the_batch_size(
    batch_size: int, memory: float
) -> None:
    made = shard(Numbered(), [9, 3, 5, 7, 1, 2], batch_size, memory)
    assert made.head(5)[1].tolist() == [9, 3, 5, 7, 1]
    assert made.head(1)[1].tolist() == [9]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_samples_are_fetched_by_their_position_in_the_shard(batch_size: int) -> None:
    made = shard(Numbered(), [9, 3, 5, 7, 1, 2], batch_size)
    assert made.fetch([5, 0, 2])[1].tolist() == [2, 9, 5]


# -- what a batch is made of -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", [2**20, 0])
def test_floating_tensors_take_the_dtype_and_labels_stay_integers(
    dtype: torch.dtype, memory: float
) -> None:
    (_, (images, numbers)), *_ = shard(Numbered(), range(4), memory=memory, dtype=dtype).batches()
    assert images.dtype == dtype
    assert numbers.dtype == torch.int64


def test_dictionaries_keep_their_keys_and_what_is_no_tensor() -> None:
    (_, batch), *_ = shard(Named(), range(3)).batches()
    assert batch["x"].shape == (3, 1, 2, 2)
    assert batch["more"]["y"].tolist() == [0, 1, 2]
    assert batch["more"]["mask"].dtype == torch.bool
    assert batch["name"] == ["n0", "n1", "n2"]


def test_every_tensor_of_a_nesting_is_counted_and_changed() -> None:
    batch = {
        "a": torch.zeros(3),
        "b": [torch.zeros(2, dtype=torch.int64), ("text", torch.zeros(1))],
    }
    assert count_bytes(batch) == 3 * 4 + 2 * 8 + 4
    changed = map_tensors(batch, lambda tensor: tensor + 1)
    assert changed["a"].tolist() == [1, 1, 1]
    assert changed["b"][0].tolist() == [1, 1]
    assert changed["b"][1][0] == "text"
    assert changed["b"][1][1].tolist() == [1]


# -- samples that cannot be read -------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "workers"), [(2**20, 0), (0, 0), pytest.param(0, 2, id="two processes")]
)
def test_a_sample_that_cannot_be_read_is_an_error_that_names_the_samples(
    memory: float, workers: int
) -> None:
    with pytest.raises(DataError, match=r"samples 4 \.\.\. 7 .*unreadable sector") as caught:
        list(shard(Damaged(), range(10), memory=memory, workers=workers).batches())
    assert "\n" not in str(caught.value)


def test_samples_of_different_shapes_are_an_error_that_says_what_a_sample_shall_be() -> None:
    with pytest.raises(DataError, match=r"samples 1 \.\.\. 4 .*of one shape"):
        list(shard(Ragged(), range(1, 9)).batches())


class Failing(Numbered):
    """Sample 5 raises what it is told."""

    def __init__(self, error: str) -> None:
        self.error = error

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            if self.error == "recursion":
                return self[index]
            raise ERRORS[self.error]()
        return super().__getitem__(index)


class Strange(Exception):
    """It cannot be unpickled, since it wants two arguments, nor has it a text."""

    def __init__(self, one: int = 1, other: int = 2) -> None:
        super().__init__("a line\nand another")
        self.both = lambda: (one, other)

    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS: dict[str, Callable[[], Exception]] = {
    "lines": lambda: RuntimeError("first line\nsecond line\nthird"),
    "silent": lambda: AssertionError(),
    "memory": lambda: MemoryError(),
    "end": lambda: StopIteration(),
    "lookup": lambda: IndexError("out of range"),
    "key": lambda: KeyError("column\nx"),
    "strange": Strange,
    "long": lambda: ValueError("x" * 10_000),
}
SAID = {
    "lines": r"\(RuntimeError: first line\)",
    "silent": r"\(AssertionError\)",
    "memory": r"\(MemoryError\)",
    "end": r"\(StopIteration\).* length of the data set, 100",
    "lookup": r"\(IndexError: out of range\).* length of the data set, 100",
    "key": r"\(KeyError: 'column.*length",
    "strange": r"\(Strange\)",
    "long": r"\(ValueError: x+\.\.\.\)",
    "recursion": r"\(RecursionError: .*\)",
}


@pytest.mark.parametrize("error", SAID)
@pytest.mark.parametrize("memory", [2**20, 0])
def test_whatever_a_sample_raises_is_one_short_line_that_names_it(
    error: str, memory: float
) -> None:
    expected = rf"samples 4 \.\.\. 7 of the data set: sample 5 cannot be read {SAID[error]}"
    with pytest.raises(DataError, match=expected) as caught:
        list(shard(Failing(error), range(10), memory=memory).batches())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_errors_come_back_whole_from_processes_that_read_ahead() -> None:
    dataset = Failing("recursion")  # ends in a process of its own as well, and cannot be sent
    made = shard(dataset, range(10), memory=0, workers=1)
    assert not made.reads_in_process
    found = made.batches()
    assert next(found)[1][1].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"sample 5 cannot be read \(RecursionError") as caught:
        next(found)
    assert "Traceback" not in str(caught.value)


def test_an_empty_shard_says_so_where_samples_are_asked_for() -> None:
    with pytest.raises(DataError, match="no sample"):
        shard(Numbered(), []).head(3)


# -- data sets that no other process can have ------------------------------------------------


class Holds(Numbered):
    """It holds something."""

    def __init__(self, held: Any) -> None:
        self.held = held


class Undone:
    """It can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return Undone, (1, 2, 3)


def defined_in_a_script() -> Any:
    namespace = {"__name__": "__main__", "Numbered": Numbered}
    exec("class Mine(Numbered):\n    pass", namespace)
    return namespace["Mine"]()


def of_a_module_that_is_gone() -> Any:
    module = ModuleType("module_without_a_file")
    sys.modules[module.__name__] = module
    exec("class Mine:\n    pass", module.__dict__)
    return Holds(module.Mine())


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    warn.cache_clear()
    caplog.set_level(logging.WARNING, "hessdist")
    yield caplog
    warn.cache_clear()


def held_by(tmp_path: Path) -> dict[str, tuple[Callable[[], Any], str]]:
    return {
        "a lambda": (lambda: Holds(lambda x: x), "lambda"),
        "a file": (lambda: Holds(h5py.File(tmp_path / "data.h5", "w")), "h5py"),
        "a lock": (lambda: Holds(threading.Lock()), "lock"),
        "a generator": (lambda: Holds(x for x in "ab"), "generator"),
        "a local class": (lambda: Holds(type("Local", (), {})()), "Local"),
        "a script": (defined_in_a_script, "Mine is defined in a script or notebook"),
        "a module": (of_a_module_that_is_gone, "module_without_a_file, which cannot be found"),
        "a mapped file": (
            lambda: Holds(np.memmap(tmp_path / "map", np.float32, "w+", shape=(4,))[1:]),
            "mapped into memory",
        ),
        "a graph": (lambda: Holds(torch.ones(2, requires_grad=True) * 2), "graph"),
        "many tensors": (lambda: Holds([torch.ones(1) for _ in range(300)]), "an open file each"),
    }


@pytest.mark.parametrize("what", list(held_by(Path())))
def test_what_cannot_be_given_to_a_process_is_read_here_and_said_once(
    what: str, tmp_path: Path, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1000, 1000))
    make, reason = held_by(tmp_path)[what]
    dataset = make()
    for _ in range(2):
        made = shard(dataset, range(6), memory=0, workers=2)
        assert labels(made) == [[0, 1, 2, 3], [4, 5]]
        assert made.reads_in_process
    (record,) = told.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    ("memory", "workers", "quiet"), [(2**20, 2, False), (0, 0, False), (0, 2, True)]
)
def test_nothing_is_said_where_nothing_would_be_read_ahead_or_another_rank_says_it(
    memory: float, workers: int, quiet: bool, told: pytest.LogCaptureFixture
) -> None:
    made = Shard(
        Holds(lambda x: x),
        np.arange(6),
        batch_size=4,
        device=CPU,
        dtype=torch.float32,
        memory=memory,
        workers=workers,
        quiet=quiet,
    )
    assert labels(made) == [[0, 1, 2, 3], [4, 5]]
    assert made.reads_in_process
    assert not told.records


def test_a_collate_function_that_cannot_be_pickled_is_used_here(
    told: pytest.LogCaptureFixture,
) -> None:
    made = shard(Ragged(), range(1, 5), memory=0, workers=2, collate=lambda s: padded(s)["y"])
    assert [batch.tolist() for _, batch in made.batches()] == [[1, 2, 3, 4]]
    assert len(told.records) == 1


def test_a_trial_of_a_large_data_set_reads_none_of_its_values() -> None:
    tensor = torch.empty(2**36, device="meta")
    array = np.broadcast_to(np.float32(1), (2**40,))
    assert why_not_sent(Holds([tensor, array])) is None


def test_a_process_that_cannot_start_is_one_line_with_the_remedy() -> None:
    made = shard(Holds(Undone()), range(6), memory=0, workers=1)
    with pytest.raises(DataError, match=r"ahead has ended .*; set compute.workers = 0") as caught:
        list(made.batches())
    assert "\n" not in str(caught.value)


# -- functions of the user's that make batches -----------------------------------------------


def padded(samples: list[Any]) -> Any:
    longest = max(len(x) for x, _ in samples)
    rows = [torch.nn.functional.pad(x, (0, longest - len(x))) for x, _ in samples]
    return {"x": torch.stack(rows), "y": torch.tensor([y for _, y in samples])}


@pytest.mark.parametrize(("memory", "workers"), [(2**20, 0), (0, 0), (0, 1)])
def test_a_collate_function_makes_every_batch(memory: float, workers: int) -> None:
    made = shard(Ragged(), range(1, 7), memory=memory, workers=workers, collate=padded)
    batches = [batch for _, batch in made.batches()]
    assert [tuple(batch["x"].shape) for batch in batches] == [(4, 4), (2, 6)]
    assert batches[0]["x"].dtype == torch.float64
    assert made.head(2)["x"].shape == (2, 2)
    assert made.fetch([5, 0])["y"].tolist() == [6, 1]
    assert made.is_streamed == (memory == 0)


def test_padded_batches_that_do_not_fit_the_memory_are_streamed() -> None:
    each = 8 + 8  # the first sample, of length 1, and its label
    assert shard(Ragged(), range(1, 41), memory=40 * each, collate=padded).is_streamed


def failing(samples: list[Any]) -> Any:
    raise ValueError("no\nway")


def test_a_collate_function_that_fails_is_named() -> None:
    with pytest.raises(DataError, match=r"data.collate \(.*:failing\) failed on sample 1 .*no\)"):
        shard(Ragged(), range(1, 7), collate=failing)
