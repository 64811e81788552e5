from __future__ import annotations

import collections
import dataclasses
from collections import UserDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from hessdist.errors import DataError, InputError
from hessdist.workload.collate import find_collate, make_batch
from hessdist.workload.nestings import count_bytes, map_tensors, place

CPU = torch.device("cpu")


class Pair(NamedTuple):
    features: Any
    label: Any


@dataclasses.dataclass
class Plain:
    x: Any
    y: Any
    total: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.total = self.x.sum()


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    x: Any
    y: Any


class Encoding(UserDict[str, Any]):
    """As BatchEncoding of transformers: entries are attributes, and there is more in it."""

    def __init__(self, data: dict[str, Any], encodings: str = "") -> None:
        super().__init__(data)
        self.encodings = encodings

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None


class Output(collections.OrderedDict[str, Any]):
    """As ModelOutput of transformers: what is set by key is an attribute."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


class Rows(list[Any]):
    """A list of a class of its own."""


def batch_of(sample: Callable[[int], Any], count: int = 3) -> Any:
    return make_batch([sample(index) for index in range(count)], range(count))


def x_of(index: int) -> Tensor:
    return torch.arange(2.0) + index


NESTINGS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any], tuple[Any, Any]]]] = {
    "tuple": (lambda x, y: (x, y), lambda b: (b[0], b[1])),
    "list": (lambda x, y: [x, y], lambda b: (b[0], b[1])),
    "list of its own": (lambda x, y: Rows([x, y]), lambda b: (b[0], b[1])),
    "dict": (lambda x, y: {"x": x, "y": y}, lambda b: (b["x"], b["y"])),
    "named tuple": (Pair, lambda b: (b.features, b.label)),
    "dataclass": (Plain, lambda b: (b.x, b.y)),
    "frozen dataclass": (Frozen, lambda b: (b.x, b.y)),
    "dataclass with slots": (Slots, lambda b: (b.x, b.y)),
    "user dict": (lambda x, y: Encoding({"x": x, "y": y}, "kept"), lambda b: (b.x, b.y)),
    "ordered dict": (lambda x, y: Output(x=x, y=y), lambda b: (b.x, b["y"])),
    "mapping": (
        lambda x, y: collections.ChainMap({"x": x}, {"y": y}),
        lambda b: (b["x"], b["y"]),
    ),
    "default dict": (
        lambda x, y: collections.defaultdict(list, {"x": x, "y": y}),
        lambda b: (b["x"], b["y"]),
    ),
}


@pytest.mark.parametrize("kind", NESTINGS)
def test_a_batch_is_nested_as_its_samples_are(kind: str) -> None:
    make, parts = NESTINGS[kind]
    batch = batch_of(lambda index: make(x_of(index), index))
    x, y = parts(batch)
    assert type(batch) is type(make(x_of(0), 0))
    assert x.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert y.tolist() == [0, 1, 2]
    assert getattr(batch, "encodings", "kept") == "kept"
    if kind == "dataclass":
        assert batch.total.tolist() == [1, 3, 5]


@pytest.mark.parametrize("kind", NESTINGS)
def test_a_batch_is_placed_in_the_same_nesting_and_the_given_one_stays(kind: str) -> None:
    make, parts = NESTINGS[kind]
    batch = batch_of(lambda index: make(x_of(index), index))
    placed = place(batch, CPU, torch.float64)
    assert type(placed) is type(batch)
    assert [t.dtype for t in parts(placed)] == [torch.float64, torch.int64]
    assert [t.dtype for t in parts(batch)] == [torch.float32, torch.int64]
    total = 8 * 3 if kind == "dataclass" else 0
    assert count_bytes(placed) == 3 * 2 * 8 + 3 * 8 + total


def test_a_mapping_that_cannot_be_changed_becomes_another() -> None:
    batch = batch_of(lambda index: MappingProxyType({"x": x_of(index)}))
    assert batch["x"].shape == (3, 2)
    assert place(batch, CPU, torch.float64)["x"].dtype == torch.float64


def nested(rng: np.random.Generator, depth: int) -> Callable[[int], Any]:
    """A sample of a random nesting, whose leaves depend on its number."""
    kind = rng.choice(["tensor", "array", "number", "numbers", "words", "tuple", "dict", "pair"])
    if depth == 0 and kind in ("tuple", "dict", "pair"):
        kind = "tensor"
    shape, scale = tuple(rng.integers(1, 4, rng.integers(0, 3))), float(rng.integers(1, 9))
    if kind == "tensor":
        return lambda index: torch.full(shape, scale * index, dtype=torch.float64)
    if kind == "array":
        return lambda index: np.full(shape, scale * index)
    if kind == "number":
        return lambda index: scale * index
    if kind == "numbers":
        return lambda index: [[scale * index, 1.0], [2.0, float(index)]]
    if kind == "words":
        return lambda index: f"word {index}"
    parts = [nested(rng, depth - 1) for _ in range(2)]
    if kind == "tuple":
        return lambda index: tuple(part(index) for part in parts)
    if kind == "dict":
        return lambda index: {str(n): part(index) for n, part in enumerate(parts)}
    return lambda index: Pair(*(part(index) for part in parts))


def check(batch: Any, samples: list[Any]) -> None:
    """Whether entry i of each leaf of a batch is that leaf of sample i."""
    first = samples[0]
    if isinstance(first, dict):
        assert batch.keys() == first.keys()
        for key in first:
            check(batch[key], [sample[key] for sample in samples])
    elif isinstance(first, tuple):
        assert type(batch) is type(first)
        for place_, part in enumerate(batch):
            check(part, [sample[place_] for sample in samples])
    elif isinstance(first, str):
        assert batch == samples
    else:
        assert isinstance(batch, Tensor)
        assert batch.dtype == torch.float64
        assert np.array_equal(batch.numpy(), np.stack([np.asarray(s) for s in samples]))


@pytest.mark.parametrize("seed", range(40))
def test_random_nestings_are_stacked_leaf_by_leaf(seed: int) -> None:
    sample = nested(np.random.default_rng(seed), 3)
    samples = [(sample(index), index * 1.0) for index in range(1 + seed % 4)]
    check(make_batch(samples, range(len(samples))), samples)


# -- leaves ----------------------------------------------------------------------------------


def test_lists_of_numbers_inside_a_sample_are_arrays() -> None:
    batch = batch_of(lambda index: {"x": [0.1, 0.2], "grid": [[1, 2], [3, index]], "y": index})
    assert batch["x"].shape == (3, 2)
    assert batch["x"].dtype == torch.float64  # of Python's precision
    assert batch["x"][0, 0].item() == 0.1
    assert batch["grid"].shape == (3, 2, 2)
    assert batch["grid"][:, 1, 1].tolist() == [0, 1, 2]
    assert batch["grid"].dtype == torch.int64


def test_a_list_at_the_top_is_a_pair() -> None:
    inputs, targets = batch_of(lambda index: [[0.5, 0.25 * index], index])
    assert inputs.tolist() == [[0.5, 0.0], [0.5, 0.25], [0.5, 0.5]]
    assert targets.tolist() == [0, 1, 2]


def test_lists_of_tensors_inside_a_sample_stay_lists() -> None:
    batch = batch_of(lambda index: {"views": [x_of(index), x_of(index + 1)]})
    assert isinstance(batch["views"], list)
    assert [view.shape for view in batch["views"]] == [(3, 2), (3, 2)]


@pytest.mark.parametrize(
    ("leaf", "dtype"),
    [
        (True, torch.bool),
        (3, torch.int64),
        (0.1, torch.float64),
        (0.1 + 2j, torch.complex128),
        (np.float32(0.5), torch.float32),
        (np.bool_(True), torch.bool),
        (np.int32(7), torch.int32),
        (np.complex64(1j), torch.complex64),
        (np.uint8(255), torch.uint8),
        (np.array([1, 2], np.int16), torch.int16),
        (np.array([1.5, 2], ">f4"), torch.float32),
        (np.arange(6)[::-2], torch.int64),
        (torch.tensor(3, dtype=torch.uint8), torch.uint8),
        (torch.tensor([1, 2], dtype=torch.int32), torch.int32),
        (torch.tensor(True), torch.bool),
        (nn.Parameter(torch.ones(2)), torch.float32),
    ],
)
def test_leaves_of_every_type_keep_their_dtype_and_value(leaf: Any, dtype: torch.dtype) -> None:
    _, batch = batch_of(lambda index: (x_of(index), leaf))
    assert type(batch) is Tensor
    assert batch.dtype == dtype
    assert not batch.requires_grad
    for one in batch:
        assert np.array_equal(one.numpy(), np.asarray(leaf.detach() if isinstance(leaf, Tensor)
                                                      else leaf))  # fmt: skip


def test_an_array_that_is_read_only_is_copied() -> None:
    array = np.arange(3.0)
    array.flags.writeable = False
    (batch,) = batch_of(lambda index: (array,), count=1)
    batch += 1
    assert array.tolist() == [0, 1, 2]


def test_words_and_what_all_samples_lack_are_left() -> None:
    batch = batch_of(lambda index: {"x": x_of(index), "name": f"n{index}", "mask": None})
    assert batch["name"] == ["n0", "n1", "n2"]
    assert batch["mask"] is None
    tokens = batch_of(lambda index: {"tokens": ["a"] * (index + 1)})
    assert tokens["tokens"] == [["a"], ["a", "a"], ["a", "a", "a"]]


@pytest.mark.parametrize(
    ("dtype", "complex_dtype"),
    [(torch.float32, torch.complex64), (torch.float64, torch.complex128)],
)
@pytest.mark.parametrize("given", [torch.complex64, torch.complex128])
def test_complex_leaves_stay_complex(
    dtype: torch.dtype, complex_dtype: torch.dtype, given: torch.dtype
) -> None:
    placed = place({"z": torch.tensor([1 + 2j], dtype=given)}, CPU, dtype)
    assert placed["z"].dtype == complex_dtype
    assert placed["z"].tolist() == [1 + 2j]
    assert count_bytes(placed) == complex_dtype.itemsize


def test_packed_sequences_keep_their_lengths() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    placed = place((packed, torch.tensor([0, 1])), CPU, torch.float64)[0]
    assert isinstance(placed, PackedSequence)
    assert placed.data.dtype == torch.float64
    assert placed.batch_sizes.tolist() == [2, 1, 1]


class Graphs:
    """A batch of graphs as PyTorch Geometric has them."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, *_: Any) -> Graphs:
        return self

    def apply(self, change: Callable[[Tensor], Tensor]) -> Graphs:
        self.x = change(self.x)
        return self


def test_tensors_of_a_batch_of_graphs_are_changed_in_a_copy() -> None:
    graphs = Graphs(torch.ones(3))
    placed = place(graphs, CPU, torch.float64)
    assert (placed.x.dtype, graphs.x.dtype) == (torch.float64, torch.float32)
    assert count_bytes(placed) == 24
    assert map_tensors(graphs, lambda t: t + 1).x.tolist() == [2, 2, 2]


# -- what is refused -------------------------------------------------------------------------


class Strange:
    """Of a class of one's own."""


def image() -> Any:
    return pytest.importorskip("PIL.Image").new("L", (2, 2))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("sample", "says"),
    [
        (lambda i: None, "sample 5 is None;"),
        (lambda i: (x_of(i), None if i else 1), r"sample 6 is None \(at \[1\]\)"),
        (lambda i: (torch.ones(2 + i), i), r"sample 6 is of shape \(3,\), and sample 5 is of "
         r"\(2,\) \(at \[0\]\); .*data.collate"),
        (lambda i: {"a": {"ids": [1] * (i + 1)}}, r"sample 6 is a list of 2, .*a list of 1 "
         r"\(at \['a'\]\['ids'\]\); .*data.collate"),
        (lambda i: {"ids": [[1], [1] * (i + 1)]}, r"lists of different lengths.*\['ids'\]"),
        (lambda i: {"ids": [1, None if i else 2]}, r"sample 6 is None \(at \['ids'\]"),
        (lambda i: {f"k{i}": x_of(i)}, r"sample 6 is of 1 with \['k1'\].*\['k0'\]"),
        (lambda i: (x_of(i),) * (i + 1), "sample 6 is of 2 with"),
        (lambda i: (x_of(i), i) if i else {"x": x_of(i)}, "sample 6 is a tuple of 2, and sample 5"),
        (lambda i: (x_of(i), "cat" if i else 1), r"at \[1\]"),
        (lambda i: (x_of(i).to_sparse(), i), r"layout sparse_coo \(at \[0\]\); .*to_dense"),
        (lambda i: (x_of(i).to("meta"), i), "meta device"),
        (lambda i: (torch.quantize_per_tensor(x_of(i), 1, 0, torch.quint8), i), "dequantize"),
        (lambda i: (torch.nested.nested_tensor([x_of(i)]), i), "is a nested tensor"),
        (lambda i: (image(), i), r"PIL image \(at \[0\]\); .*transform"),
        (lambda i: Pair(Strange(), i), r"Strange, .* \(at \.features\); .*data.collate"),
        (lambda i: (np.array(["a", "b"]), i), "dtype <U1"),
        (lambda i: (np.array([object()]), i), "dtype object"),
        (lambda i: (2**70, i), "dtype object"),
        (lambda i: (np.ma.masked_array([1.0, 2.0], [i == 1, False]), i), "sample 6 is a masked"),
        (lambda i: (np.datetime64("2020-01-01"), i), "datetime64"),
    ],
)  # fmt: skip
def test_samples_that_make_no_batch_are_refused_in_one_line_that_names_the_first(
    sample: Callable[[int], Any], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        make_batch([sample(index) for index in range(3)], [5, 6, 7])
    assert "\n" not in str(caught.value)
    assert "samples 5 ... 7 of the data set" in str(caught.value)
    assert caught.value.remedy


def test_a_single_sample_is_named_once() -> None:
    with pytest.raises(DataError, match=r"^sample 4 of the data set is None; "):
        make_batch([None], [4])


def test_a_sample_that_holds_itself_is_refused() -> None:
    endless: list[Any] = [torch.ones(1)]
    endless.append(endless)
    with pytest.raises(DataError, match="cannot be made a batch"):
        make_batch([(endless,)], [0])


# -- functions of the user's -----------------------------------------------------------------


def padded(samples: list[Any]) -> Any:
    longest = max(len(x) for x, _ in samples)
    rows = [nn.functional.pad(x, (0, longest - len(x))) for x, _ in samples]
    return {"x": torch.stack(rows), "y": np.array([y for _, y in samples])}


def test_a_collate_function_gets_a_list_and_its_arrays_become_tensors() -> None:
    samples = [(torch.ones(2 + index, requires_grad=True), index) for index in range(3)]
    batch = make_batch(samples, range(3), padded)
    assert batch["x"].shape == (3, 4)
    assert not batch["x"].requires_grad
    assert batch["y"].tolist() == [0, 1, 2]


def test_a_collate_function_may_give_what_stacking_does_not() -> None:
    def blocks(samples: list[Any]) -> Any:
        return Frozen(torch.eye(len(samples)).to_sparse(), Graphs(torch.ones(2)))

    batch = make_batch([0, 1], [0, 1], blocks)
    assert batch.x.is_sparse
    assert isinstance(batch.y, Graphs)


def raises(samples: list[Any]) -> Any:
    raise ValueError("no\nway")


@pytest.mark.parametrize(
    ("collate", "says"),
    [
        (raises, r"data.collate \(.*:raises\) failed on samples 3 \.\.\. 4.*ValueError: no\)"),
        (partial(raises), "data.collate .*raises.* failed"),
        (lambda samples: None, "returned None without a tensor"),
        (lambda samples: ["a", 3], "returned a list of 2 without a tensor"),
        (lambda samples: torch.ones(2, device="meta"), "meta device"),
        (lambda: None, "TypeError"),
    ],
)
def test_a_collate_function_that_fails_is_named_in_one_line(collate: Any, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        make_batch([0, 1], [3, 4], collate)
    assert "\n" not in str(caught.value)


MODULE = """
class Pads:
    def __call__(self, samples):
        return samples

class Nothing:
    pass

instance = Pads()

def pad(samples):
    return samples
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "collates_of_a_user.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("name", ["pad", "instance", "Pads"])
def test_a_collate_function_is_found_by_name(name: str) -> None:
    found = find_collate(f"collates_of_a_user:{name}")
    assert found is not None
    assert found([1]) == [1]
    assert find_collate(None) is None


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pad", "write 'package.module:callable'"),
        ("collates_of_a_user:padd", "did you mean 'pad'"),
        ("collates_of_a_user:Nothing", "not callable"),
        ("collates_of_nobody:pad", "check the spelling"),
    ],
)
def test_a_collate_function_that_is_not_found_is_an_error_of_its_key(name: str, says: str) -> None:
    with pytest.raises(InputError, match=f"^data.collate.*{says}") as caught:
        find_collate(name)
    assert "\n" not in str(caught.value)
