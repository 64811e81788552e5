from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hessdist.errors import DataError
from hessdist.workload.datasets import ImageDataset
from hessdist.workload.shard import Shard, count_bytes, map_tensors

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
) -> Shard:
    return Shard(
        dataset,
        np.asarray(indices, np.int64),
        batch_size=batch_size,
        device=CPU,
        dtype=dtype,
        memory=memory,
        workers=workers,
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
