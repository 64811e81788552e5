"""Compressed chunks of a dataset, checked before HDF5 unpacks them.

HDF5 unpacks a chunk into as much memory as its bytes give, whatever the size of the chunk is: a
few megabytes can become gigabytes.
"""

from __future__ import annotations

import math
import zlib
from itertools import product
from typing import Any

import h5py

from hessdist.errors import UntrustedError

FILTERS = frozenset({
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
})
"""The filters that hessdist writes, and checksums."""
_SMALL = 1 << 20  # bytes of a stored chunk: deflate makes at most 1,032 times as many


def is_compressed(layout: h5py.h5p.PropDCID) -> bool:
    """Return whether a dataset is compressed.

    Args:
        layout: The properties with which the dataset was created.

    Returns:
        True if one of its filters is deflate.
    """
    kinds = (layout.get_filter(i)[0] for i in range(layout.get_nfilters()))
    return h5py.h5z.FILTER_DEFLATE in kinds


def require_honest_chunks(dataset: h5py.Dataset, rows: Any, where: str) -> None:
    """Refuse to read chunks that unpack to more than their size.

    Args:
        dataset: A compressed dataset.
        rows: What is read of it: (), a row, or a row and a slice of it.
        where: The file and the name of the dataset, for messages.

    Raises:
        UntrustedError: A chunk holds more than it declares.
    """
    declared = math.prod(dataset.chunks) * dataset.dtype.itemsize
    chosen = rows if isinstance(rows, tuple) else (rows,)
    for place in product(*(_starts(dataset, axis, chosen) for axis in range(dataset.ndim))):
        stored = dataset.id.get_chunk_info_by_coord(place)
        if not stored.size or stored.size <= _SMALL:
            continue
        _, packed = dataset.id.read_direct_chunk(place)
        unpacked = zlib.decompressobj()
        if len(unpacked.decompress(packed, declared + 1)) > declared:
            raise UntrustedError(
                f"{where} unpacks to more than its size",
                "get the file again from where it was made",
            )


def _starts(dataset: h5py.Dataset, axis: int, chosen: tuple[Any, ...]) -> range:
    """Return where the chunks begin that a selection touches along an axis."""
    length, chunk = dataset.shape[axis], dataset.chunks[axis]
    first, last = 0, length
    if axis < len(chosen) and isinstance(chosen[axis], slice):
        first, last, _ = chosen[axis].indices(length)
    elif axis < len(chosen):
        first = int(chosen[axis]) % length if length else 0
        last = first + 1
    return range(first - first % chunk, min(last, length), chunk)
