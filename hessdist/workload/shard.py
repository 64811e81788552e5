"""This rank's samples, in fixed batches and in a fixed order: kept on the device, or streamed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from hessdist.errors import DataError
from hessdist.workload.datasets import MapDataset
from hessdist.workload.losses import Batch


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Apply a function to every tensor of a nesting of tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, change) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [map_tensors(value, change) for value in batch]
    return batch


def count_bytes(batch: Batch) -> int:
    """Bytes of all the tensors in a nesting of tuples, lists and mappings."""
    sizes: list[int] = []

    def add(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    map_tensors(batch, add)
    return sum(sizes)


class Shard:
    """The batches of one rank: batch b holds samples b * batch_size and on.

    Args:
        dataset: The whole data set.
        indices: Which of its samples are this rank's, (n_local,) int64; may be empty.
        batch_size: Samples in a batch.
        device: Where batches are wanted.
        dtype: Floating tensors of a batch are converted to it.
        memory: Bytes that the shard may take on the device; a larger one is read again, batch by
            batch, whenever it is iterated over.
        workers: Processes that read a streamed shard ahead.
    """

    def __init__(
        self,
        dataset: MapDataset,
        indices: NDArray[np.int64],
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        memory: float = 8 * 2**30,
        workers: int = 2,
    ) -> None:
        self._dataset = dataset
        self._device, self._dtype = device, dtype
        self._workers = workers
        starts = range(0, len(indices), batch_size)
        self._indices = [indices[start : start + batch_size].tolist() for start in starts]
        self.num_samples = len(indices)
        self._loader: tuple[list[int], DataLoader[Batch]] | None = None
        self._kept: list[Batch] | None = None
        if self.num_samples and self.num_samples * count_bytes(self.head(1)) <= memory:
            self._kept = [self._collate(batch) for batch in self._indices]

    @property
    def is_streamed(self) -> bool:
        """Whether batches are read anew at every iteration."""
        return self._kept is None

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._indices)

    def head(self, count: int) -> Batch:
        """The first `count` samples as a batch, read anew from the data set."""
        return self.fetch(list(range(min(count, self.num_samples))))

    def fetch(self, positions: list[int]) -> Batch:
        """Samples of the shard by their position in it, as a batch, read anew."""
        size = len(self._indices[0])
        return self._collate([self._indices[p // size][p % size] for p in positions])

    def batches(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, Batch]]:
        """Go through batches in order.

        Args:
            wanted: Numbers of the batches; all when None.

        Yields:
            The number of a batch, and the batch on the device.
        """
        numbers = sorted(range(len(self)) if wanted is None else wanted)
        if self._kept is not None:
            yield from ((number, self._kept[number]) for number in numbers)
        elif numbers:
            stream = iter(self._stream(numbers))
            for number in numbers:
                with _reading(self._indices[number]):
                    batch = next(stream)
                yield number, self._place(batch)

    def _stream(self, numbers: list[int]) -> DataLoader[Batch]:
        """A loader of these batches, kept for the next pass over the same ones."""
        if self._loader is None or self._loader[0] != numbers:
            parallel: dict[str, Any] = {}
            if self._workers:
                # Forked copies of a process that runs MPI are not safe; fresh ones are.
                parallel = {"multiprocessing_context": "forkserver", "persistent_workers": True}
            self._loader = (
                numbers,
                DataLoader(
                    _AsDataset(self._dataset),
                    batch_sampler=[self._indices[number] for number in numbers],
                    num_workers=self._workers,
                    pin_memory=self._device.type == "cuda",
                    **parallel,
                ),
            )
        return self._loader[1]

    def _collate(self, indices: list[int]) -> Batch:
        with _reading(indices):
            return self._place(default_collate([self._dataset[index] for index in indices]))

    def _place(self, batch: Batch) -> Batch:
        def place(tensor: Tensor) -> Tensor:
            dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.to(self._device, dtype, non_blocking=True)

        return map_tensors(batch, place)


@contextmanager
def _reading(indices: list[int]) -> Iterator[None]:
    """Name the samples when the user's data set fails on them."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a worker's error has its traceback in the message
        reason = (str(error).strip().splitlines() or ["no message"])[-1][:200]
        name = type(error).__name__
        said = reason if reason.startswith(name) else f"{name}: {reason}"
        raise DataError(
            f"samples {indices[0]} ... {indices[-1]} of the data set cannot be read as a batch "
            f"({said})",
            "check that each sample is a tensor, or a tuple or dictionary of tensors of one shape",
        ) from error


class _AsDataset(Dataset[Any]):
    """A map-style data set of the user's as PyTorch's type; spawned workers unpickle it."""

    def __init__(self, dataset: MapDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]
