from __future__ import annotations

import gzip
import struct
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from hessdist.errors import DataError, InputError, WorkloadError
from hessdist.workload.datasets import (
    DATA_VARIABLE,
    ImageDataset,
    build_dataset,
    choose_samples,
    count_samples,
    expecting_samples,
    read_idx,
    read_sample,
    require_map_style,
)

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: NDArray[Any]) -> bytes:
    """An array in the IDX format, big-endian."""
    header = struct.pack(">HBB", 0, CODES[array.dtype.str[1:]], array.ndim)
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return header + shape + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """(5, 4, 3), with 0 and 255 among them."""
    drawn = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    drawn[0, 0, 0], drawn[0, 0, 1] = 0, 255
    return drawn


@pytest.fixture
def labels() -> NDArray[np.uint8]:
    return np.array([3, 1, 4, 1, 5], np.uint8)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Write:
    """Write the training and test files of a small MNIST below the root, which it returns."""

    def files(folder: str = ".", dotted: bool = False, zipped: bool = True) -> Path:
        place = tmp_path / "root" / folder
        place.mkdir(parents=True, exist_ok=True)
        for prefix, size in (("train", 5), ("t10k", 2)):
            for what, array in (("images-idx3", images), ("labels-idx1", labels)):
                name = f"{prefix}-{what}-ubyte"
                name = name.replace("-idx", ".idx") if dotted else name
                raw = idx(array[:size])
                if zipped:
                    (place / f"{name}.gz").write_bytes(gzip.compress(raw))
                else:
                    (place / name).write_bytes(raw)
        return tmp_path / "root"

    return files


@pytest.mark.parametrize(
    ("name", "folder", "dotted", "zipped"),
    [
        ("mnist", "MNIST/raw", False, True),
        ("mnist", "MNIST/raw", False, False),
        ("mnist", "mnist", False, True),
        ("mnist", ".", False, True),
        ("mnist", ".", True, False),
        ("fashion_mnist", "FashionMNIST/raw", False, True),
        ("fashion_mnist", "fashion-mnist", False, False),
        ("fashion_mnist", ".", False, True),
    ],
)
def test_idx_images_are_read_in_every_usual_layout(
    write: Write,
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    name: str,
    folder: str,
    dotted: bool,
    zipped: bool,
) -> None:
    dataset = build_dataset(name, write(folder, dotted, zipped), {})
    assert len(dataset) == 5
    for index in range(5):
        image, label = dataset[index]
        assert image.dtype == torch.float32
        assert np.array_equal(image.numpy(), images[index][None].astype(np.float32) / 255)
        assert int(label) == labels[index]


def test_the_test_split_is_read_from_its_own_files(write: Write) -> None:
    assert len(build_dataset("mnist", write(), {}, "test")) == 2


def test_the_data_folder_comes_from_the_environment_where_the_job_names_none(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(write("MNIST/raw")))
    assert len(build_dataset("mnist", None, {})) == 5


@pytest.mark.parametrize("kind", CODES)
def test_idx_arrays_of_every_type_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    path = tmp_path / "array"
    path.write_bytes(idx(array))
    back = read_idx(path)
    assert back.dtype.newbyteorder("=") == array.dtype
    assert np.array_equal(back, array)


# -- damage ----------------------------------------------------------------------------------


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda raw: raw[: int(share * len(raw))]


def rezipped(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda raw: gzip.compress(change(gzip.decompress(raw)))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut(0.5), "cannot be read"),  # a truncated gzip stream
        (lambda raw: raw[:-8] + bytes(8), "cannot be read"),  # a wrong checksum
        (rezipped(cut(0.8)), "truncated"),
        (rezipped(lambda raw: raw[:9]), "truncated"),  # ends within the header
        (rezipped(lambda raw: raw + b"\0"), "truncated or damaged"),
        (rezipped(lambda raw: b"\x01" + raw[1:]), "no IDX file"),
        (lambda raw: b"", "no IDX file"),
        (lambda raw: b"<html>404</html>", "no IDX file"),
    ],
)
def test_a_damaged_idx_file_is_named(
    write: Write, damage: Callable[[bytes], bytes], says: str
) -> None:
    root = write()
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=says) as caught:
        build_dataset("mnist", root, {})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_and_labels_of_different_number_are_refused(write: Write) -> None:
    root = write()
    (root / "train-labels-idx1-ubyte.gz").write_bytes(
        (root / "t10k-labels-idx1-ubyte.gz").read_bytes()
    )
    with pytest.raises(DataError, match="do not fit together"):
        build_dataset("mnist", root, {})


def test_a_missing_file_is_named_with_the_folders_that_were_looked_at(write: Write) -> None:
    root = write()
    (root / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz") as caught:
        build_dataset("mnist", root, {})
    assert str(root / "MNIST" / "raw") in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_a_missing_data_folder_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        build_dataset(name, tmp_path / "absent", {})
    assert str(tmp_path / "absent") in str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_without_a_root_and_without_the_variable_both_are_named_as_remedies(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=rf"data\.root.*{DATA_VARIABLE}"):
        build_dataset(name, None, {})


# -- digits, CIFAR-10 ------------------------------------------------------------------------


def test_digits_are_all_of_scikit_learns_in_sixteenths() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    dataset = build_dataset("digits", None, {})
    assert len(dataset) == 1797
    image, label = dataset[1234]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert torch.equal(16 * image, (16 * image).round())
    assert np.array_equal(16 * image[0].numpy(), bunch.images[1234])
    assert int(label) == bunch.target[1234]
    assert max(float(dataset[i][0].max()) for i in range(50)) == 1.0


def test_digits_that_scikit_learn_keeps_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = build_dataset("digits", None, {})
    elsewhere = SimpleNamespace(submodule_search_locations=["nowhere"])
    monkeypatch.setattr("hessdist.workload.datasets.find_spec", lambda name: elsewhere)
    again = build_dataset("digits", None, {})
    for one, other in zip(usual, again, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]


def test_a_share_of_the_digits_is_random_patterns_with_the_same_labels() -> None:
    usual = build_dataset("digits", None, {})
    half, whole = (
        build_dataset("digits", None, {"random_share": share, "seed": 3}) for share in (0.5, 1.0)
    )
    replaced = [not torch.equal(usual[i][0], half[i][0]) for i in range(1797)]
    assert sum(replaced) == round(0.5 * 1797)
    for i in range(1797):
        assert usual[i][1] == half[i][1] == whole[i][1]
        if replaced[i]:
            assert torch.equal(half[i][0], whole[i][0])
    pixels = torch.stack([16 * whole[i][0] for i in range(1797)])
    counts = torch.bincount(pixels.long().flatten())
    assert torch.equal(pixels, pixels.round())
    assert counts.shape == (17,)
    # Each count is binomial, with a standard deviation of 80.
    assert (counts - pixels.numel() / 17).abs().max() < 5 * 80
    again = build_dataset("digits", None, {"random_share": 1.0, "seed": 3})
    assert all(torch.equal(again[i][0], whole[i][0]) for i in range(1797))


@pytest.mark.parametrize("arguments", [{"random_share": 1.5}, {"random_share": -0.1}, {"seed": -1}])
def test_a_share_of_the_digits_out_of_range_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"digits: {next(iter(arguments))}"):
        build_dataset("digits", None, arguments)


def test_digits_have_no_test_set() -> None:
    with pytest.raises(DataError, match="no test set"):
        build_dataset("digits", None, {}, "test")


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "."])
def test_cifar10_is_read_from_its_binary_batches_in_order(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    records = np.random.default_rng(1).integers(0, 256, (5, 2, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    for number in range(5):
        (place / f"data_batch_{number + 1}.bin").write_bytes(records[number].tobytes())
    (place / "test_batch.bin").write_bytes(records[0, :1].tobytes())
    dataset = build_dataset("cifar10", tmp_path, {})
    assert len(dataset) == 10
    image, label = dataset[7]  # the second record of the fourth batch
    assert image.dtype == torch.float32
    assert image.shape == (3, 32, 32)
    # The format has 1,024 red bytes, then green, then blue, each row by row.
    byte = records[3, 1, 1 + 2 * 1024 + 5 * 32 + 6]
    assert image[2, 5, 6].numpy() == np.float32(byte) / np.float32(255)
    assert int(label) == records[3, 1, 0]
    assert len(build_dataset("cifar10", tmp_path, {}, "test")) == 1


@pytest.mark.parametrize("size", [0, 3072, 3074])
def test_a_truncated_cifar_batch_is_named(tmp_path: Path, size: int) -> None:
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(bytes(3073))
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(size))
    with pytest.raises(DataError, match=r"data_batch_3\.bin is truncated"):
        build_dataset("cifar10", tmp_path, {})


# -- synthetic data --------------------------------------------------------------------------


def drawn_from(name: str, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of a synthetic data set, sample by sample."""
    dataset = build_dataset(name, None, arguments)
    inputs, labels = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return torch.stack(inputs), torch.stack(labels)


def test_blobs_have_their_centres_and_their_spread() -> None:
    points, labels = drawn_from("blobs", samples=10_000, spread=0.7)
    assert points.shape == (10_000, 2)
    assert points.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [5000, 5000]
    for label, centre in ((0, 1.0), (1, -1.0)):
        away = points[labels == label].double().numpy() - centre
        # Five standard errors of a mean and of a covariance.
        assert np.abs(away.mean(0)).max() < 5 * 0.7 / np.sqrt(5000)
        covariance = away.T @ away / 5000
        assert np.abs(covariance - 0.49 * np.eye(2)).max() < 5 * 0.49 * np.sqrt(2 / 5000)


def test_blobs_of_several_spreads_and_sizes_are_the_same_draw() -> None:
    points, labels = drawn_from("blobs", samples=20, spread=1.0)
    centres = (1.0 - 2.0 * labels)[:, None]
    for spread in (0.0, 0.2, 1.6):
        scaled, _ = drawn_from("blobs", samples=20, spread=spread)
        assert torch.allclose(scaled - centres, spread * (points - centres), atol=1e-6)
    fewer, _ = drawn_from("blobs", samples=8, spread=1.0)
    assert torch.equal(fewer, points[:8])


def test_random_patterns_are_uniform_and_their_labels_too() -> None:
    inputs, labels = drawn_from("random", samples=2000, shape=[2, 3, 4], num_classes=5)
    assert inputs.shape == (2000, 2, 3, 4)
    assert inputs.dtype == torch.float32
    assert labels.dtype == torch.int64
    counts = np.histogram(inputs.numpy(), bins=10, range=(0, 1))[0]
    assert counts.sum() == inputs.numel()
    assert np.abs(counts - 4800).max() < 5 * np.sqrt(4800)
    assert len(labels.bincount()) == 5
    assert int((labels.bincount() - 400).abs().max()) < 5 * np.sqrt(400)


@pytest.mark.parametrize("name", ["blobs", "random"])
def test_synthetic_data_are_those_of_the_seed(name: str) -> None:
    inputs, labels = drawn_from(name, samples=50, seed=3)
    again, labels_again = drawn_from(name, samples=50, seed=3)
    assert torch.equal(inputs, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(inputs, drawn_from(name, samples=50, seed=4)[0])


def test_synthetic_data_have_defaults() -> None:
    assert len(build_dataset("blobs", None, {})) == 200
    inputs, labels = drawn_from("random")
    assert inputs.shape == (1000, 1, 28, 28)
    assert int(labels.max()) == 9


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("blobs", {"samples": 0}, "blobs: samples = 0; give an even number"),
        ("blobs", {"samples": 201}, "samples = 201; give an even number"),
        ("blobs", {"spread": -0.1}, "blobs: spread = -0.1"),
        ("blobs", {"spread": float("nan")}, "blobs: spread = nan"),
        ("blobs", {"spread": "wide"}, "data: blobs failed"),
        ("blobs", {"seed": -1}, "blobs: seed = -1"),
        ("blobs", {"sigma": 1.0}, "do not fit blobs"),
        ("blobs", {"split": "test"}, "'blobs' has no test set"),
        ("random", {"samples": 0}, "random: samples = 0"),
        ("random", {"shape": []}, r"random: shape = \[\]"),
        ("random", {"shape": [3, 0]}, r"random: shape = \[3, 0\]"),
        ("random", {"num_classes": 0}, "random: num_classes = 0"),
        ("random", {"seed": -1}, "random: seed = -1"),
        ("random", {"split": "test"}, "'random' has no test set"),
    ],
)
def test_wrong_arguments_of_synthetic_data_are_refused_in_one_line(
    name: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        build_dataset(name, None, arguments)
    assert "\n" not in str(caught.value)


# -- what is no map-style data set -----------------------------------------------------------


class Stream(IterableDataset[Any]):
    """A stream, even though it knows its length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


class Loader:
    """A loader of another library's."""

    def __init__(self) -> None:
        self.dataset = [1, 2]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)

    def __len__(self) -> int:
        return 1


class Module:
    """As a LightningDataModule."""

    def train_dataloader(self) -> Any:
        return Loader()


class Table:
    """As a DataFrame of pandas."""

    iloc = None

    def __len__(self) -> int:
        return 3

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)


class Endless:
    """Samples by index, of no number."""

    def __getitem__(self, index: int) -> Any:
        return index


X, Y = torch.ones(6, 2), torch.zeros(6, dtype=torch.long)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (Stream(), r"Stream, not a map-style data set; .*list\(dataset\)"),
        ((i for i in range(3)), r"generator, not .*list\(dataset\)"),
        (zip(X, Y, strict=True), r"zip, not .*list\(dataset\)"),
        (map(str, X), r"map, not .*list\(dataset\)"),
        (DataLoader(TensorDataset(X, Y)), r"DataLoader, not .*loader\.dataset"),
        (DataLoader(Stream()), r"DataLoader, not .*loader\.dataset"),
        (Loader(), r"Loader, not .*loader\.dataset"),
        (Module(), r"Module, not .*train_dataloader\(\)\.dataset"),
        (Table(), "Table, not .*TensorDataset"),
        (
            {"train": TensorDataset(X), "test": []},
            "dict, not .*one of its entries .'train', 'test'",
        ),
        ((X, Y), "tuple, not .*TensorDataset"),
        ([X.numpy(), Y.numpy()], "list, not .*TensorDataset"),
        (Endless(), "Endless, not .*__len__ and __getitem__"),
        (None, "NoneType, not .*__len__ and __getitem__"),
        (3, "int, not .*__len__ and __getitem__"),
        ("mnist", "str, not .*__len__ and __getitem__"),
        (TensorDataset, "type, not"),
    ],
)
def test_what_is_no_map_style_data_set_is_refused_with_what_to_give(
    dataset: Any, says: str
) -> None:
    with pytest.raises(DataError, match=f"^the data set is {says}") as caught:
        require_map_style(dataset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(X, Y),
        list(zip(X, Y, strict=True)),
        tuple(zip(X, Y, strict=True)),
        [X, X + 1],
        X,
        X.numpy(),
        {0: (X[0], 1), 1: (X[1], 2)},
        Subset(TensorDataset(X, Y), [1, 2]),
        range(3),
    ],
)
def test_whatever_has_samples_by_index_is_a_data_set(dataset: Any) -> None:
    require_map_style(dataset)
    assert count_samples(dataset) == len(dataset)


class Length:
    def __init__(self, *lengths: Any) -> None:
        self.lengths = list(lengths)

    def __len__(self) -> Any:
        given = self.lengths.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    def __getitem__(self, index: int) -> Any:
        return index


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ([-5], r"has no length \(ValueError"),
        (["forty"], r"has no length \(TypeError"),
        ([3.0], r"has no length \(TypeError"),
        ([None], r"has no length \(TypeError"),
        ([2**70], r"has no length \(OverflowError"),
        ([RuntimeError("no length\ntoday")], r"has no length \(RuntimeError: no length\)"),
        ([4, 5], "has 4 samples, and then 5"),
        ([5, 4], "has 5 samples, and then 4"),
        ([5, RuntimeError("no")], "has no length"),
    ],
)
def test_a_length_that_is_none_is_refused_in_one_line(lengths: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=f"{says}.*; let __len__ return") as caught:
        count_samples(Length(*lengths))
    assert "\n" not in str(caught.value)


def test_a_length_may_be_of_any_integer_type() -> None:
    assert count_samples(Length(np.int64(4), 4)) == 4
    assert count_samples([]) == 0


def test_reading_a_sample_passes_on_what_is_said_already() -> None:
    class Says(Length):
        def __getitem__(self, index: int) -> Any:
            raise InputError("the file is short", "fetch it again")

    with pytest.raises(DataError, match=r"^the file is short; fetch it again$"):
        read_sample(Says(), 3)


def batches(*sizes: int) -> list[Any]:
    return [(torch.ones(size, 3), torch.ones(size)) for size in sizes]


@pytest.mark.parametrize("kind", [WorkloadError, DataError])
@pytest.mark.parametrize(
    ("dataset", "hinted"),
    [
        (batches(8, 8, 8), True),
        (batches(8, 5), True),
        ([(x.numpy(), y.numpy()) for x, y in batches(4, 4)], True),
        (tuple(batches(4)), True),
        (batches(1, 1), False),
        (list(zip(X, Y, strict=True)), False),
        ([(X[0], torch.ones(3))], False),
        ([X, X], False),
        (TensorDataset(X, Y), False),
        ([], False),
    ],
)
def test_a_failure_on_a_list_of_ready_batches_gets_a_hint(
    dataset: Any, hinted: bool, kind: type[InputError]
) -> None:
    with pytest.raises(kind, match=r"^no fit; ") as caught, expecting_samples(dataset):
        raise kind("no fit", "try again")
    assert ("batches that are ready" in str(caught.value)) == hinted
    assert str(caught.value).endswith("try again")


def test_nothing_is_hinted_where_nothing_fails() -> None:
    with expecting_samples(batches(8, 8)):
        pass


# -- real data -------------------------------------------------------------------------------


def moments(dataset: Any) -> NDArray[np.float64]:
    """Mean of each channel of an image data set."""
    assert isinstance(dataset, ImageDataset)
    return dataset.images.numpy().mean(axis=(0, 2, 3)) / dataset.white


def test_mnist_is_the_public_data_set(data_root: Path) -> None:
    dataset = build_dataset("mnist", data_root, {})
    image, label = dataset[0]
    assert len(dataset) == 60_000
    assert image.shape == (1, 28, 28)
    assert int(label) == 5
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)
    # The mean that everybody normalises MNIST by.
    assert moments(dataset) == pytest.approx([0.1307], abs=5e-5)
    assert len(build_dataset("mnist", data_root, {}, "test")) == 10_000


def test_cifar10_channels_are_red_green_blue(data_root: Path) -> None:
    dataset = build_dataset("cifar10", data_root, {})
    assert len(dataset) % 1000 == 0
    assert moments(dataset) == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is absent")
@pytest.mark.parametrize("variable", [False, True])
def test_fashion_mnist_is_found_where_debian_has_it(
    variable: bool, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:  # a folder with another data set of the same file names
        monkeypatch.setenv(DATA_VARIABLE, str(write(".")))
    else:
        monkeypatch.delenv(DATA_VARIABLE, raising=False)
    dataset = build_dataset("fashion_mnist", None, {}, "test")
    assert len(dataset) == 10_000
    assert moments(dataset) == pytest.approx([0.2868], abs=1e-3)


# -- the user's ------------------------------------------------------------------------------

OURS = """
class Squares:
    def __init__(self, size=3, root=None, split="train"):
        self.size, self.root, self.split = size, root, split
    def __len__(self):
        return self.size
    def __getitem__(self, index):
        return index, index**2

class Rooted(Squares):
    def __init__(self, root):
        super().__init__(root=root)

def rootless(size):
    return Squares(size)

def stream():
    yield from range(3)

def loader():
    from torch.utils.data import DataLoader
    return DataLoader(Squares())

class Grows(Squares):
    def __len__(self):
        self.size += 1
        return self.size - 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "data_of_a_user.py").write_text(OURS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("data_of_a_user", None)


@pytest.mark.usefixtures("user_module")
def test_a_data_set_of_the_users_gets_root_split_and_arguments_it_has_parameters_for() -> None:
    made: Any = build_dataset("data_of_a_user:Squares", Path("here"), {"size": 4}, "test")
    assert (len(made), made.root, made.split) == (4, Path("here"), "test")
    rootless: Any = build_dataset("data_of_a_user:rootless", Path("here"), {"size": 2}, "test")
    assert (len(rootless), rootless[1]) == (2, (1, 1))


@pytest.mark.usefixtures("user_module")
def test_a_data_set_of_the_users_gets_the_folder_of_the_environment_as_built_in_ones_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, "there")
    made: Any = build_dataset("data_of_a_user:Rooted", None, {})
    assert Path(made.root) == Path("there")


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("dataset", "arguments", "says"),
    [
        ("minst", {}, "did you mean 'mnist'"),
        ("data_of_a_user:stream", {}, "returned generator, not a map-style data set; .*list"),
        ("data_of_a_user:Grows", {}, "has 1 samples, and then 2"),
        ("data_of_a_user:loader", {}, "DataLoader.*loader.dataset"),
        ("data_of_a_user:Squares", {"sizes": 4}, "data.arguments do not fit Squares"),
        ("data_of_a_user:rootless", {}, "missing a required argument: 'size'"),
        ("data_of_a_user:absent", {}, "does not import"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_refused_in_one_line(
    dataset: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        build_dataset(dataset, None, arguments)
    assert "data" in str(caught.value)
    assert "\n" not in str(caught.value)


# -- subsets ---------------------------------------------------------------------------------


def test_the_first_samples_and_all_samples_are_ranges() -> None:
    assert np.array_equal(choose_samples(10, None, 4, "first", 0), np.arange(4))
    assert np.array_equal(choose_samples(10, None, None, "random", 0), np.arange(10))
    assert np.array_equal(choose_samples(10, 1.0, None, "random", 0), np.arange(10))
    assert len(choose_samples(60_000, 0.05, None, "random", 0)) == 3000


def test_a_random_subset_is_a_reproducible_increasing_draw_of_distinct_samples() -> None:
    drawn = choose_samples(1000, None, 100, "random", 7)
    assert drawn.dtype == np.int64
    assert (np.diff(drawn) > 0).all()
    assert drawn[0] >= 0
    assert drawn[-1] < 1000
    assert np.array_equal(drawn, choose_samples(1000, None, 100, "random", 7))
    assert not np.array_equal(drawn, choose_samples(1000, None, 100, "random", 8))
    assert not np.array_equal(drawn, np.arange(100))


@pytest.mark.parametrize("subset", ["first", "random"])
def test_smaller_subsets_are_part_of_larger_ones(subset: Any) -> None:
    sizes = (1, 10, 100, 999, 1000)
    drawn = [set(choose_samples(1000, None, size, subset, 3)) for size in sizes]
    assert [len(chosen) for chosen in drawn] == list(sizes)
    assert all(small < large for small, large in pairwise(drawn))


@pytest.mark.parametrize(
    ("available", "fraction", "samples", "says"),
    [
        (1797, 1e-9, None, "no sample is left.*1797.*data.fraction = 1e-09"),
        (0, None, None, "no sample is left: the data set is empty"),
        (0, 0.5, None, "no sample is left: the data set is empty"),
        (1797, None, 1798, "data.samples is 1798, but the data set has 1797"),
    ],
)
def test_no_samples_and_more_than_there_are_are_refused(
    available: int, fraction: float | None, samples: int | None, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        choose_samples(available, fraction, samples, "random", 0)
