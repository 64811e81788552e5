from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from hessdist.errors import DataError
from hessdist.workload.sample_digests import (
    differ,
    differing,
    from_text,
    probe_positions,
    read_digests,
    require_repeatable,
    require_same_lengths,
    require_same_samples,
    require_unchanged,
    sample_digest,
    to_text,
)


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Fields:
    x: Any
    y: Any


# -- which samples ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 34, 1000, 10**9])
@pytest.mark.parametrize("seed", [0, 7])
def test_probes_are_distinct_positions_with_both_ends(count: int, seed: int) -> None:
    positions = probe_positions(count, seed)
    assert positions.dtype == np.int64
    assert len(positions) == min(count, 32)
    assert (np.diff(positions) > 0).all()
    if count:
        assert (positions[0], positions[-1]) == (0, count - 1)
    assert np.array_equal(positions, probe_positions(count, seed))


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_fewer_probes_can_be_asked_for(most: int) -> None:
    positions = probe_positions(100, 0, most)
    assert len(positions) == most
    assert positions[0] == 0
    assert positions[-1] == (99 if most > 1 else 0)


def test_probes_depend_on_the_seed() -> None:
    assert not np.array_equal(probe_positions(10**4, 0), probe_positions(10**4, 1))


# -- digests ---------------------------------------------------------------------------------

DIFFERENT: list[Any] = [
    torch.tensor([1.0, 2.0]),
    torch.tensor([2.0, 1.0]),
    torch.tensor([[1.0, 2.0]]),
    torch.tensor([[1.0], [2.0]]),
    torch.tensor([1.0, 2.0], dtype=torch.float64),
    torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    torch.tensor([1, 2]),
    torch.tensor([1 + 0j, 2]),
    torch.tensor([1 - 0.5j, 2]).conj(),
    torch.tensor([1.0, float("nan")]),
    torch.tensor([]),
    torch.zeros(0, 3),
    torch.tensor(True),
    np.array([1.0, 2.0]),
    np.array([1.0, 2.0], np.float32),
    np.array([1, 2]),
    np.array(["a", "b"]),
    np.array(["a", 3], object),
    np.float32(1),
    1,
    1.0,
    True,
    "1",
    b"1",
    None,
    1j,
    (),
    {},
    (1, 2),
    (1, (2,)),
    ((1,), 2),
    ("ab", "c"),
    ("a", "bc"),
    {"x": 1, "y": 2},
    {"x": 2, "y": 1},
    {"x": 1, "z": 2},
    Fields(1, 2),
    Fields(2, 1),
    object(),
]


def test_different_samples_have_different_digests() -> None:
    digests = [sample_digest(sample) for sample in DIFFERENT]
    assert len(set(digests)) == len(DIFFERENT)


@pytest.mark.parametrize("sample", DIFFERENT)
def test_a_digest_is_the_same_again_and_sees_a_change_deep_inside(sample: Any) -> None:
    def around(inner: Any) -> Any:
        return ({"a": [Pair(0, inner)]}, 3)

    assert sample_digest(sample) == sample_digest(sample)
    assert sample_digest(around(sample)) == sample_digest(around(sample))
    assert sample_digest(around(sample)) != sample_digest(around("something else"))


def test_what_makes_no_difference() -> None:
    assert sample_digest({"x": 1, "y": 2}) == sample_digest({"y": 2, "x": 1})
    table = torch.arange(6.0).reshape(2, 3)
    assert sample_digest(table.T) == sample_digest(table.T.contiguous())
    assert sample_digest(table[:, 1]) == sample_digest(table[:, 1].clone())
    assert sample_digest(object()) == sample_digest(object())
    assert sample_digest(table.clone().requires_grad_()) == sample_digest(table)
    assert sample_digest(table.to_sparse()) == sample_digest(table)


# -- data sets -------------------------------------------------------------------------------


class Drawn:
    """Samples of which some are drawn anew at each reading."""

    def __init__(self, random: set[int]) -> None:
        self.random = random
        self.rng = np.random.default_rng()

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        noise = self.rng.random() if index in self.random else 0.0
        return torch.full((2,), index + noise), index % 3


def test_a_data_set_that_gives_the_same_again_has_digests() -> None:
    dataset = Drawn(set())
    digests = require_repeatable(dataset, np.array([0, 3, 49]))
    assert sorted(digests) == [0, 3, 49]
    assert digests == read_digests(dataset, [0, 3, 49])
    assert len(set(digests.values())) == 3


@pytest.mark.parametrize(
    ("random", "says"),
    [({3}, "sample 3 differs"), ({0, 49}, "samples 0, 49 differ"),
     (set(range(50)), "samples 0, 1, 2, 3, 4 and 4 more differ")],
)  # fmt: skip
def test_a_data_set_that_draws_at_random_is_refused_with_the_samples(
    random: set[int], says: str
) -> None:
    with pytest.raises(DataError, match=f"draws at random: {says}.*; .*augmentation"):
        require_repeatable(Drawn(random), [0, 1, 2, 3, 4, 5, 6, 7, 49])


def test_a_data_set_that_changes_what_it_keeps_is_refused() -> None:
    class Doubles(Drawn):
        x = torch.ones(50, 2)

        def __getitem__(self, index: int) -> Any:
            return self.x[index].mul_(2), 0

    with pytest.raises(DataError, match="draws at random: samples 1, 2"):
        require_repeatable(Doubles(set()), [1, 2])


def test_a_sample_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match=r"^sample 60 of the data set cannot be read \(IndexError"):
        read_digests([1, 2, 3], [0, 60])


def test_what_cannot_be_looked_at_counts_by_its_type() -> None:
    class Broken(dict[str, Any]):
        def __iter__(self) -> Any:
            raise RuntimeError("no keys")

    assert read_digests([Broken()], [0]) == read_digests([Broken(a=1)], [0])
    endless: list[Any] = []
    endless.append(endless)
    assert read_digests([endless], [0])[0]


# -- comparisons -----------------------------------------------------------------------------


def test_differing_indices_are_those_of_other_digests_or_of_none() -> None:
    assert differing({1: "a", 2: "b", 3: "c"}, {1: "a", 2: "x", 4: "d"}) == [2, 3, 4]
    assert differing({}, {}) == []


def test_lengths_that_differ_between_ranks_are_refused() -> None:
    require_same_lengths([5, 5, 5])
    with pytest.raises(DataError, match="5 samples on rank 0 and 6 on rank 2"):
        require_same_lengths([5, 5, 6])


def test_samples_that_differ_between_ranks_are_refused() -> None:
    one = {0: "a", 7: "b"}
    require_same_samples([one, dict(one), dict(one)])
    with pytest.raises(DataError, match=r"sample 7 differs between rank 0 and rank 2; .*seed"):
        require_same_samples([one, one, {0: "a", 7: "c"}])


def test_samples_that_differ_from_an_earlier_start_are_refused() -> None:
    require_unchanged({0: "a"}, {0: "a"}, "that of before", "do this")
    with pytest.raises(
        DataError, match=r"not that of before: samples 0, 3 differ; .*seed; .* do this$"
    ):
        require_unchanged({0: "a", 1: "b"}, {0: "x", 1: "b", 3: "c"}, "that of before", "do this")


def test_samples_are_named_by_the_first_few() -> None:
    assert differ([4]) == "sample 4 differs"
    assert differ([1, 2, 3, 4, 5]) == "samples 1, 2, 3, 4, 5 differ"
    assert differ(range(9)) == "samples 0, 1, 2, 3, 4 and 4 more differ"


def test_digests_come_back_from_text() -> None:
    digests = read_digests(Drawn(set()), range(50))
    assert from_text(to_text(digests)) == digests


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"a": "b"}', "null"])
def test_text_that_is_no_digests_is_none(text: str) -> None:
    assert from_text(text) is None
