"""Checks that a data set gives the same samples each time, by digests of some of them.

A data set that is random at every call, on every rank or at every start of the program has no
spectrum. Some samples, always the same ones, are compared: between two readings, between ranks, and
between this start and an earlier one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hessdist.errors import DataError
from hessdist.parallel.watchdog import reading
from hessdist.workload.datasets import MapDataset, read_sample
from hessdist.workload.nestings import field_names, is_dataclass

Digests = dict[int, str]
"""Digests of samples by their index in the data set."""


# -- digests of samples ----------------------------------------------------------------------


def probe_positions(count: int, seed: int, most: int = 32) -> NDArray[np.int64]:
    """Choose positions among `count` samples, the same ones for the same arguments.

    Args:
        count: The number of samples, 0 or more.
        seed: The seed of the choice.
        most: The largest number of positions.

    Returns:
        The positions, increasing; with `most` of at least two, the first and the last are included.
    """
    if count <= most:
        return np.arange(count, dtype=np.int64)
    ends = [0, count - 1][:most]
    inner = np.random.default_rng(seed).choice(count - 2, max(most - 2, 0), replace=False) + 1
    return np.sort(np.concatenate([ends, inner])).astype(np.int64)


def sample_digest(sample: Any) -> str:
    """Hash a sample: every leaf of its nesting, with dtypes and shapes.

    Args:
        sample: Any nesting of tensors, arrays, numbers, strings. The order of a mapping's keys does
            not matter, and of any other object only its type.

    Returns:
        The hash, 16 hexadecimal digits.
    """
    hashed = hashlib.sha256()
    _add(hashed, sample)
    return hashed.hexdigest()[:16]


def read_digests(dataset: MapDataset, indices: Sequence[int] | NDArray[np.int64]) -> Digests:
    """Read samples and compute their digests.

    Args:
        dataset: The data set.
        indices: The indices of the samples.

    Returns:
        The digests by index.

    Raises:
        DataError: A sample cannot be read.
    """
    digests = {}
    for index in map(int, indices):
        with reading(f"sample {index}"):
            sample = read_sample(dataset, index)
        digests[index] = _digest_of_any(sample)
    return digests


def _digest_of_any(sample: Any) -> str:
    """Return a sample's digest, or the name of its type if its content cannot be read."""
    try:
        return sample_digest(sample)
    except Exception:  # a tensor of a special layout, or a class of the user
        return type(sample).__qualname__


def _add(hashed: Any, value: Any) -> None:
    """Add a value to a hash, so that different values always add different bytes."""

    def update(*words: object) -> None:
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode("utf-8", "replace")
            hashed.update(len(raw).to_bytes(8, "little") + raw)

    if isinstance(value, Tensor):
        update("array", value.dtype, tuple(value.shape), _bytes_of(value))
    elif isinstance(value, (np.ndarray, np.generic)) and not isinstance(value, (str, bytes)):
        if value.dtype.hasobject:
            update("objects", value.shape)
            _add(hashed, np.asarray(value).ravel().tolist())
        else:
            update("array", value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (bool, int, float, complex, str, bytes, type(None))):
        update(type(value).__name__, value if isinstance(value, (str, bytes)) else repr(value))
    elif isinstance(value, Mapping):
        keys = sorted(value, key=repr)
        update("mapping", len(keys))
        for key in keys:
            _add(hashed, key)
            _add(hashed, value[key])
    elif isinstance(value, (tuple, list)):
        update("sequence", len(value))
        for item in value:
            _add(hashed, item)
    elif is_dataclass(value):
        names = field_names(value)
        update("fields", *names)
        for name in names:
            _add(hashed, getattr(value, name))
    elif type(value).__module__.startswith("PIL."):
        _add(hashed, np.asarray(value))
    else:
        update("object", type(value).__module__, type(value).__qualname__)


def _bytes_of(tensor: Tensor) -> bytes:
    """Return the values of a tensor of any layout and dtype as bytes."""
    tensor = tensor.detach()
    if tensor.device.type == "meta":
        return b""
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


# -- comparisons -----------------------------------------------------------------------------


def differing(first: Mapping[int, str], second: Mapping[int, str]) -> list[int]:
    """Return the indices at which digests differ or are missing in one of two sets, increasing."""
    return sorted(index for index in {*first, *second} if first.get(index) != second.get(index))


def require_repeatable(dataset: MapDataset, indices: Sequence[int] | NDArray[np.int64]) -> Digests:
    """Read samples twice, and refuse a data set that does not give the same samples again.

    Args:
        dataset: The data set.
        indices: The indices of the samples to compare.

    Returns:
        The digests by index.

    Raises:
        DataError: The samples differ, or cannot be read.
    """
    first = read_digests(dataset, indices)
    if changed := differing(first, read_digests(dataset, indices)):
        raise DataError(
            f"the data set draws at random: {differ(changed)} when read again",
            "switch augmentation and other random transforms off, so that a sample is the same "
            "each time",
        )
    return first


def require_same_lengths(lengths: Sequence[int]) -> None:
    """Refuse data sets of different lengths on different ranks.

    Args:
        lengths: The lengths of the data set, in rank order.

    Raises:
        DataError: The data sets differ.
    """
    for rank, length in enumerate(lengths):
        if length != lengths[0]:
            raise DataError(
                f"the data set has {lengths[0]} samples on rank 0 and {length} on rank {rank}",
                "make the same data set on every rank",
            )


def require_same_samples(everyone: Sequence[Mapping[int, str]]) -> None:
    """Refuse data sets that give different samples on different ranks.

    Args:
        everyone: The digests of the compared samples, in rank order.

    Raises:
        DataError: The data sets differ.
    """
    for rank, digests in enumerate(everyone):
        if changed := differing(everyone[0], digests):
            raise DataError(
                f"the data set is not the same on all ranks: {differ(changed)} between "
                f"rank 0 and rank {rank}",
                "draw it with a fixed seed, and read the same files on every rank",
            )


def require_unchanged(
    before: Mapping[int, str], now: Mapping[int, str], which: str, remedy: str
) -> None:
    """Refuse a data set that has changed since an earlier start.

    Args:
        before: The digests at the earlier start.
        now: The present digests of the same samples.
        which: The name of the earlier data set in the message.
        remedy: The remedy if the data were changed on purpose.

    Raises:
        DataError: The data sets differ.
    """
    if changed := differing(before, now):
        raise DataError(
            f"the data set is not {which}: {differ(changed)}",
            f"draw it with a fixed seed; if the data were changed on purpose, {remedy}",
        )


def differ(indices: Sequence[int]) -> str:
    """Describe the samples that differ, at most the first five."""
    shown = ", ".join(map(str, indices[:5]))
    if len(indices) == 1:
        return f"sample {shown} differs"
    return f"samples {shown}{f' and {len(indices) - 5} more' if len(indices) > 5 else ''} differ"


# -- JSON ------------------------------------------------------------------------------------


def to_text(digests: Mapping[int, str]) -> str:
    """Format digests as JSON."""
    return json.dumps({str(index): digest for index, digest in sorted(digests.items())}, indent=0)


def from_text(text: str) -> Digests | None:
    """Read digests from JSON; None if the text is truncated or has another form."""
    try:
        digests = json.loads(text)
        return {int(index): str(digest) for index, digest in digests.items()}
    except (ValueError, AttributeError):
        return None
