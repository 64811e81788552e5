"""Built-in data sets, and the choice of the samples that a job uses.

Images are float32 in [0, 1], channels first, without other transforms. Synthetic data are the same
for the same seed.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hessdist.errors import DataError, InputError, WorkloadError
from hessdist.parallel.memory import available_bytes
from hessdist.workload.factories import call_factory, find_factory, one_line, signature_of
from hessdist.workload.tokens import pydoc, tokens

DATA_VARIABLE = "HESSDIST_DATA"
"""The environment variable of the data folder, for jobs without `data.root`."""


class MapDataset(Protocol):
    """A map-style data set, like `torch.utils.data.Dataset`: a length, and samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class ImageDataset:
    """Labelled images in bytes; samples are (image float32 in [0, 1], label int).

    Args:
        images: The images, (N, channels, height, width) uint8.
        labels: The labels, (N,) integers.
        white: The byte that becomes 1.0.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[Any], white: int = 255) -> None:
        self.white = white
        self.images = torch.from_numpy(np.array(images, order="C"))
        self.labels = torch.from_numpy(labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].to(torch.float32) / self.white, self.labels[index]


# -- files -----------------------------------------------------------------------------------


def read_idx(path: Path) -> NDArray[Any]:
    """Read an IDX file, gzipped or not (http://yann.lecun.com/exdb/mnist, "file formats").

    Args:
        path: The file.

    Returns:
        The array, in the file's shape and type.

    Raises:
        DataError: The file cannot be read, is no IDX file, or has another length than its header.
    """
    raw = _read_bytes(path)
    types: dict[int, Any] = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
    if len(raw) < 4 or raw[0] or raw[1] or raw[2] not in types:
        raise DataError(f"{path} is no IDX file", "fetch it again")
    dtype, dimensions = np.dtype(types[raw[2]]), raw[3]
    header = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(raw[4:header], ">u4")) if len(raw) >= header else ()
    expected = header + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(shape) != dimensions or len(raw) != expected:
        raise DataError(
            f"{path} is truncated or damaged: {len(raw)} bytes instead of {expected}",
            "fetch it again",
        )
    return np.frombuffer(raw, dtype, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})", "fetch it again") from error


def _data_root(root: Path | None, name: str) -> Path:
    """Return the data folder of the job, or of the environment."""
    if root is None and DATA_VARIABLE in os.environ:
        root = Path(os.environ[DATA_VARIABLE])
    if root is None:
        raise DataError(
            f"the data set '{name}' needs a data folder",
            f"set data.root in the job file, or the environment variable {DATA_VARIABLE}",
        )
    if not root.is_dir():
        raise DataError(
            f"the data folder {root} does not exist",
            f"correct data.root in the job file, or the environment variable {DATA_VARIABLE}",
        )
    return root


def _find_file(folders: Sequence[Path], names: Sequence[str], dataset: str) -> Path:
    for folder in folders:
        for name in names:
            if (path := folder / name).is_file():
                return path
    raise DataError(
        f"the data set '{dataset}' has no file {names[0]} in "
        f"{', '.join(str(folder) for folder in folders)}",
        f"put the file there, or correct data.root or {DATA_VARIABLE}",
    )


def _idx_images(folders: Sequence[Path], name: str, split: str) -> ImageDataset:
    """Read files of MNIST's format: <train|t10k>-<images-idx3|labels-idx1>-ubyte[.gz]."""

    def read(kind: str) -> tuple[Path, NDArray[Any]]:
        stem = f"{'train' if split == 'train' else 't10k'}-{kind}-ubyte"
        dotted = stem.replace("-idx", ".idx")
        path = _find_file(folders, [f"{stem}.gz", stem, f"{dotted}.gz", dotted], name)
        return path, read_idx(path)

    images_path, images = read("images-idx3")
    labels_path, labels = read("labels-idx1")
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{images_path} and {labels_path} do not fit together: {images.shape} and "
            f"{labels.shape}",
            "fetch both again",
        )
    return ImageDataset(images[:, None], labels)


# -- the built-in data sets ------------------------------------------------------------------


def mnist(root: Path | None = None, split: str = "train") -> ImageDataset:
    """Open MNIST, 60,000 + 10,000 images of 1 x 28 x 28.

    Args:
        root: The folder with the IDX files, gzipped or not, or with torchvision's `MNIST/raw`.
        split: "train" or "test".

    Returns:
        The data set.

    Raises:
        DataError: Files are missing or damaged.
    """
    root = _data_root(root, "mnist")
    return _idx_images([root / "MNIST" / "raw", root / "mnist", root], "mnist", split)


def fashion_mnist(root: Path | None = None, split: str = "train") -> ImageDataset:
    """Open Fashion-MNIST (Xiao et al. 2017), 60,000 + 10,000 images of 1 x 28 x 28.

    Args:
        root: The folder with the IDX files, gzipped or not, or with torchvision's
            `FashionMNIST/raw`. Debian's package dataset-fashion-mnist is used too.
        split: "train" or "test".

    Returns:
        The data set.

    Raises:
        DataError: Files are missing or damaged.
    """
    debian = Path("/usr/share/datasets/fashion-mnist")
    if root is None and DATA_VARIABLE not in os.environ:
        folders = [debian]
    elif root is None:
        # The variable may name a folder of other data sets, so only subfolders are used.
        root = _data_root(None, "fashion_mnist")
        folders = [root / "FashionMNIST" / "raw", root / "fashion-mnist", debian]
    else:
        root = _data_root(root, "fashion_mnist")
        folders = [root / "FashionMNIST" / "raw", root / "fashion-mnist", root]
    return _idx_images(folders, "fashion_mnist", split)


def cifar10(root: Path | None = None, split: str = "train") -> ImageDataset:
    """Open CIFAR-10 in its binary layout (1 label byte, 3,072 pixel bytes), images of 3 x 32 x 32.

    Args:
        root: The folder with the `.bin` batches, or with `cifar-10-batches-bin`.
        split: "train" or "test".

    Returns:
        The data set, with all images of the batches.

    Raises:
        DataError: Files are missing or damaged.
    """
    root = _data_root(root, "cifar10")
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    records = []
    for name in names:
        path = _find_file([root / "cifar-10-batches-bin", root], [name], "cifar10")
        raw = np.frombuffer(_read_bytes(path), np.uint8)
        if raw.size == 0 or raw.size % 3073:
            raise DataError(
                f"{path} is truncated or damaged: {raw.size} bytes are no whole number of "
                "images of 3,073 bytes",
                "fetch it again",
            )
        records.append(raw.reshape(-1, 3073))
    whole = np.concatenate(records)
    return ImageDataset(whole[:, 1:].reshape(-1, 3, 32, 32), whole[:, 0])


def digits(split: str = "train", random_share: float = 0.0, seed: int = 0) -> ImageDataset:
    """Open scikit-learn's digits, 1,797 images of 1 x 8 x 8 pixels.

    Images can be replaced by random patterns, as in section 2.1 of Sagun, Bottou and LeCun (2016).
    Labels are kept, so that those of patterns are random too, and as frequent as those of images.

    Args:
        split: "train", which is all images; there is no test set.
        random_share: The share of images that are replaced by patterns of uniform pixels, in
            [0, 1]. With another share the same images are replaced in the same order.
        seed: The seed of the patterns and of the choice, 0 or more.

    Returns:
        The data set.

    Raises:
        DataError: scikit-learn is missing, a test set is requested, or an argument is out of its
            range.
    """
    _check_no_test_set("digits", split)
    _check(
        0 <= random_share <= 1,
        f"digits: random_share = {random_share}",
        "give a number from 0 to 1",
    )
    _check(seed >= 0, f"digits: seed = {seed}", "give 0 or more")
    package = find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("the data set 'digits' needs scikit-learn", "pip install scikit-learn")
    # Its file alone: to import scikit-learn takes as long as to import PyTorch.
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    if path.exists():
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    else:  # in releases that keep it elsewhere
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True)).astype(np.uint8)
    images, labels = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)
    images = _partly_random(images, 16, random_share, seed) if random_share else images
    return ImageDataset(images, labels, white=16)


def _partly_random(
    images: NDArray[np.uint8], white: int, share: float, seed: int
) -> NDArray[np.uint8]:
    """Replace a share of images by patterns of uniform pixels, 0 ... white."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, white, images.shape, dtype=np.uint8, endpoint=True)
    replaced = rng.permutation(len(images))[: round(share * len(images))]
    changed = images.copy()
    changed[replaced] = patterns[replaced]
    return changed


def _check_no_test_set(name: str, split: str) -> None:
    if split != "train":
        raise DataError(f"the data set '{name}' has no test set", "use data.split = 'train'")


def blobs(
    samples: int = 200, spread: float = 0.3, seed: int = 0, split: str = "train"
) -> TensorDataset:
    """Draw two Gaussian blobs in the plane (Sagun, Bottou and LeCun 2016, section 3).

    Classes alternate. With another spread the same blob is scaled about its centre, so that results
    for several spreads are comparable.

    Args:
        samples: The number of samples N, even: half of them are in each blob.
        spread: The standard deviation of a blob along either axis, 0 or more.
        seed: The seed, 0 or more.
        split: "train"; there is no test set.

    Returns:
        Pairs of a float32 point (2,) and its int64 label: 0 about (1, 1), 1 about (-1, -1).

    Raises:
        DataError: An argument is out of its range.
    """
    _check_no_test_set("blobs", split)
    _check(samples > 0 and samples % 2 == 0, f"blobs: samples = {samples}", "give an even number")
    _check(
        spread >= 0 and math.isfinite(spread), f"blobs: spread = {spread}", "give 0 or a positive"
    )
    _check(seed >= 0, f"blobs: seed = {seed}", "give 0 or more")
    labels = np.arange(samples) % 2
    drawn = np.random.default_rng(seed).standard_normal((samples, 2))
    points = (1 - 2 * labels)[:, None] + spread * drawn
    return TensorDataset(torch.from_numpy(points).float(), torch.from_numpy(labels))


def random(
    samples: int = 1000,
    shape: Sequence[int] = (1, 28, 28),
    num_classes: int = 10,
    seed: int = 0,
    split: str = "train",
) -> TensorDataset:
    """Draw random patterns with random labels (Sagun, Bottou and LeCun 2016, section 2.1).

    Args:
        samples: The number of samples N.
        shape: The shape of an input.
        num_classes: The number of classes C; labels are 0 ... C-1, uniformly distributed.
        seed: The seed, 0 or more.
        split: "train"; there is no test set.

    Returns:
        Pairs of a float32 input of the shape, uniform in [0, 1), and its int64 label.

    Raises:
        DataError: An argument is out of its range.
    """
    _check_no_test_set("random", split)
    _check(samples > 0, f"random: samples = {samples}", "give 1 or more")
    _check(
        min(shape, default=0) > 0, f"random: shape = {list(shape)}", "give sizes, each 1 or more"
    )
    _check(num_classes > 0, f"random: num_classes = {num_classes}", "give 1 or more")
    _check(seed >= 0, f"random: seed = {seed}", "give 0 or more")
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, samples)
    inputs = rng.random((samples, *shape), dtype=np.float32)
    return TensorDataset(torch.from_numpy(inputs), torch.from_numpy(labels))


def _check(holds: bool, what: str, remedy: str) -> None:
    """Refuse an argument of a data set that is out of its range."""
    if not holds:
        raise DataError(what, f"{remedy} (data.arguments)")


DATASETS: dict[str, Callable[..., MapDataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "blobs": blobs,
    "random": random,
    "tokens": tokens,
    "pydoc": pydoc,
}


def build_dataset(
    dataset: str, root: Path | None, arguments: Mapping[str, Any], split: str = "train"
) -> MapDataset:
    """Open the data set that a job names.

    Args:
        dataset: A built-in data set (`DATASETS`), or "package.module:callable".
        root: The data folder, passed to a callable that has a parameter of this name.
        arguments: Other keyword arguments of the callable.
        split: "train" or "test", passed to a callable that has a parameter of this name.

    Returns:
        A map-style data set.

    Raises:
        DataError: Files are missing or damaged, or the result has no length or no items.
        WorkloadError: The callable is not found, or its arguments do not fit.
    """
    factory = find_factory(dataset, DATASETS, "data.dataset")
    if root is None and dataset not in DATASETS and DATA_VARIABLE in os.environ:
        root = Path(os.environ[DATA_VARIABLE])
    arguments = dict(arguments)
    signature = signature_of(factory)
    accepted = signature.parameters if signature is not None else {}
    for name, value in (("root", root), ("split", split)):
        if name in accepted and value is not None:
            arguments.setdefault(name, value)
    opened = call_factory(factory, arguments, "data")
    require_map_style(opened, f"data.dataset: '{dataset}' returned")
    count_samples(opened)
    return opened  # type: ignore[no-any-return]


# -- data sets of the user -------------------------------------------------------------------


def require_map_style(dataset: Any, subject: str = "the data set is") -> None:
    """Refuse an object that gives no samples by index, with a replacement as the remedy.

    Args:
        dataset: The object.
        subject: The beginning of the message, before the name of the type.

    Raises:
        DataError: The object is a loader, a stream, a table of columns, or the like.
    """
    if (remedy := _remedy_for(dataset)) is None:
        return
    name = type(dataset).__name__
    raise DataError(f"{subject} {name}, not a map-style data set", remedy)


def count_samples(dataset: MapDataset) -> int:
    """Return the length of a data set.

    Args:
        dataset: A map-style data set.

    Returns:
        The length, 0 or more.

    Raises:
        DataError: It has no length, a different one each time, or more samples than can be
            counted.
    """
    remedy = "let __len__ return the number of samples, the same each time"
    try:
        lengths = [len(dataset), len(dataset)]
    except Exception as error:
        raise DataError(f"the data set has no length ({one_line(error)})", remedy) from error
    if lengths[0] != lengths[1]:
        raise DataError(f"the data set has {lengths[0]} samples, and then {lengths[1]}", remedy)
    index = 8  # bytes
    if index * lengths[0] > available_bytes():
        raise DataError(f"the memory cannot hold the indices of {lengths[0]:,} samples", remedy)
    return lengths[0]


def read_sample(dataset: MapDataset, index: int, among: str = "") -> Any:
    """Read one sample.

    Args:
        dataset: The data set.
        index: The index of the sample.
        among: The samples that are read together with it, for messages.

    Returns:
        The sample.

    Raises:
        DataError: The sample cannot be read.
    """
    try:
        return dataset[index]
    except InputError as error:
        raise DataError(error.what, error.remedy) from error
    except Exception as error:  # reading runs the user's code, which can raise anything
        remedy = "correct the data set, or leave the sample out (torch.utils.data.Subset)"
        if isinstance(error, (LookupError, StopIteration)):
            remedy = (
                f"correct __len__ or __getitem__: every index below the length of the data set, "
                f"{_length(dataset)}, must give a sample"
            )
        where = (
            f"{among} of the data set: sample {index}"
            if among
            else f"sample {index} of the data set"
        )
        raise DataError(f"{where} cannot be read ({one_line(error)})", remedy) from error


@contextmanager
def expecting_samples(dataset: MapDataset) -> Iterator[None]:
    """Add a hint to an error of a first evaluation if the data set looks like finished batches.

    Args:
        dataset: The data set whose samples are evaluated.

    Yields:
        Nothing.

    Raises:
        WorkloadError: The error of the block, with the hint.
        DataError: The error of the block, with the hint.
    """
    try:
        yield
    except (WorkloadError, DataError) as error:
        if not _looks_like_batches(dataset):
            raise
        raise type(error)(
            error.what,
            "give single samples if the data set is a list of batches that are ready "
            f"(compute.batch_size makes batches); otherwise {error.remedy}",
        ) from error


def _looks_like_batches(dataset: MapDataset) -> bool:
    """Return whether a data set is a list of pairs of arrays with equal lengths, like batches."""
    if not isinstance(dataset, (list, tuple)):
        return False
    for sample in dataset[:2]:
        if not (isinstance(sample, (tuple, list)) and len(sample) == 2):
            return False
        if not all(isinstance(part, (Tensor, np.ndarray)) and part.ndim for part in sample):
            return False
        if len(sample[0]) != len(sample[1]) or len(sample[0]) < 2:
            return False
    return bool(dataset)


def _length(dataset: MapDataset) -> str:
    try:
        return str(len(dataset))
    except Exception:
        return "which is unknown"


def _remedy_for(dataset: Any) -> str | None:
    """Return the remedy for an object that is no map-style data set; None if it is one."""
    if isinstance(dataset, DataLoader) or _is_loader(dataset):
        return (
            "give the loader's data set (loader.dataset): batches are made by compute.batch_size, "
            "and by data.collate if the loader has its own collate_fn"
        )
    if callable(getattr(dataset, "train_dataloader", None)):
        return "give the data set of its loader: module.train_dataloader().dataset"
    if hasattr(dataset, "iloc"):
        return (
            "give tensors of its columns: TensorDataset(torch.tensor(table[names].to_numpy()), ...)"
        )
    if isinstance(dataset, Mapping) and 0 not in dataset:
        keys = ", ".join(repr(key) for key in list(dataset)[:4])
        return f"give one of its entries ({keys}), or TensorDataset of tensors that it holds"
    if _is_arrays(dataset):
        return "combine the arrays to samples: torch.utils.data.TensorDataset(*tensors)"
    if isinstance(dataset, IterableDataset) or _is_stream(dataset):
        return (
            "a stream has no samples by index: read it into a list (list(dataset)), or give an "
            "object with __len__ and __getitem__"
        )
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        return "return an object with __len__ and __getitem__"
    if isinstance(dataset, (type, str, bytes)):
        return "return an object with __len__ and __getitem__, whose items are samples"
    return None


def _is_loader(dataset: Any) -> bool:
    """Return whether an object is a loader of another library."""
    return (
        hasattr(dataset, "dataset")
        and hasattr(dataset, "__iter__")
        and not hasattr(dataset, "__getitem__")
    )


def _is_stream(dataset: Any) -> bool:
    return hasattr(dataset, "__iter__") and not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    )


def _is_arrays(dataset: Any) -> bool:
    """Return whether an object is (inputs, targets) as whole arrays, not a list of two samples."""
    if not (isinstance(dataset, (tuple, list)) and len(dataset) == 2):
        return False
    if not all(isinstance(part, (Tensor, np.ndarray)) and part.ndim for part in dataset):
        return False
    inputs, targets = dataset
    return len(inputs) == len(targets) and (
        inputs.ndim != targets.ndim or inputs.dtype != targets.dtype
    )


def choose_samples(
    available: int,
    fraction: float | None,
    samples: int | None,
    subset: Literal["random", "first"],
    seed: int,
) -> NDArray[np.int64]:
    """Choose the samples to use.

    A smaller subset with the same seed is part of every larger one, so that subsets of growing
    size are comparable.

    Args:
        available: The length of the data set.
        fraction: The share of the samples to use, in (0, 1].
        samples: The number of samples to use; without both, all are used.
        subset: "random" for a random choice with the seed, or "first" for the first samples.
        seed: The seed of the choice.

    Returns:
        The indices of the samples, (N,) int64, increasing.

    Raises:
        DataError: No sample is left, or the data set has fewer samples than requested.
    """
    if fraction is not None:
        samples = round(fraction * available)
    wanted = available if samples is None else samples
    if wanted < 1:
        if not available:
            raise DataError("no sample is left: the data set is empty", "check the data set")
        share = f" (data.fraction = {fraction:g})" if fraction is not None else ""
        raise DataError(
            f"no sample is left: the data set has {available}{share}",
            "raise data.fraction, or check the data set",
        )
    if wanted > available:
        raise DataError(
            f"data.samples is {wanted}, but the data set has {available}", "lower data.samples"
        )
    if subset == "first" or wanted == available:
        return np.arange(wanted, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(available)[:wanted]).astype(np.int64)
