"""The samples of a rank in fixed batches and a fixed order: kept on the device, or streamed."""

from __future__ import annotations

import copy
import functools
import logging
import warnings
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hessdist.errors import DataError, HessdistError
from hessdist.parallel.watchdog import reading
from hessdist.workload.collate import Collate, make_batch, range_of
from hessdist.workload.datasets import MapDataset, read_sample
from hessdist.workload.factories import one_line
from hessdist.workload.grouping import by_number, by_tokens, lengths_of
from hessdist.workload.nestings import Batch, count_bytes, map_tensors, place
from hessdist.workload.sending import end_with_parent, why_not_sent, without_main_module

_log = logging.getLogger("hessdist")


class Shard:
    """The batches of one rank; batch b starts with sample b * batch_size.

    Args:
        dataset: The whole data set.
        indices: The indices of this rank's samples, (n_local,) int64; may be empty.
        batch_size: The largest number of samples in a batch.
        batch_tokens: The number of tokens in a batch, if the data set knows the lengths of its
            samples; None: batches have `batch_size` samples.
        device: The device for batches.
        dtype: The dtype for floating tensors; complex ones get the complex dtype of its precision.
        memory: The bytes that the shard may take on the device. A larger shard is read again, batch
            by batch, at every iteration.
        workers: The number of processes that read a streamed shard ahead, if the data set can be
            sent to them.
        collate: The function that makes a batch of a list of samples; None: leaves are stacked.
        quiet: Whether to log no warnings, because another rank logs them.
    """

    def __init__(
        self,
        dataset: MapDataset,
        indices: NDArray[np.int64],
        *,
        batch_size: int,
        batch_tokens: int | None = None,
        device: torch.device,
        dtype: torch.dtype,
        memory: float = 8 * 2**30,
        workers: int = 2,
        collate: Collate | None = None,
        quiet: bool = False,
    ) -> None:
        self._samples = _Samples(dataset, collate)
        self._device, self._dtype = device, dtype
        self._workers, self._quiet = workers, quiet
        lengths = None if batch_tokens is None else lengths_of(dataset)
        self._indices = (
            by_number(indices, batch_size)
            if lengths is None or batch_tokens is None
            else by_tokens(indices, lengths[indices], batch_tokens, batch_size)
        )
        self._ends = list(accumulate(map(len, self._indices)))
        self.batch_size = batch_size if lengths is None else max(map(len, self._indices), default=1)
        self.num_samples = len(indices)
        self._loader: tuple[list[int], DataLoader[_Sent]] | None = None
        self.kept_bytes = 0  # of batches that stay on the device
        self._kept = self._keep(memory) if self.num_samples else None

    @property
    def is_streamed(self) -> bool:
        """Return whether batches are read again at every iteration."""
        return self._kept is None

    @cached_property
    def reads_in_process(self) -> bool:
        """Return whether this process reads the samples itself."""
        if not (self._workers and self.is_streamed and self.num_samples):
            return True
        reason = why_not_sent((self._samples, self._samples.read(self._indices[0][:1])))
        if reason is not None and not self._quiet:
            _warn(reason)
        return reason is not None

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._indices)

    def in_parts(self, size: int) -> Shard:
        """Return the same samples in smaller batches, which this process reads when they are used.

        Args:
            size: The largest number of samples in a batch.

        Returns:
            The shard.
        """
        small = copy.copy(self)
        small._indices = [
            each[begin : begin + size]
            for each in self._indices
            for begin in range(0, len(each), size)
        ]
        small._ends = list(accumulate(map(len, small._indices)))
        small.batch_size = min(self.batch_size, size)
        small._kept, small._loader, small._workers = None, None, 0
        small.__dict__.pop("reads_in_process", None)
        return small

    def head(self, count: int) -> Batch:
        """Read the first `count` samples as a batch from the data set."""
        return self.fetch(list(range(min(count, self.num_samples))))

    def fetch(self, positions: list[int]) -> Batch:
        """Read samples by their positions in the shard as a batch from the data set.

        Args:
            positions: At least one number of 0 ... num_samples - 1.

        Returns:
            The batch on the device.

        Raises:
            DataError: A sample cannot be read, the samples make no batch, or there are none.
        """
        if not (positions and self.num_samples):
            raise DataError("the data set has no sample", "check that it is not empty")
        batches = [bisect_right(self._ends, position) for position in positions]
        return self._read([
            self._indices[batch][position - self._ends[batch]]  # counted from the end
            for batch, position in zip(batches, positions, strict=True)
        ])

    def positions_of(self, number: int) -> range:
        """Return the positions in the shard of the samples of a batch."""
        end = self._ends[number]
        return range(end - len(self._indices[number]), end)

    def batch_of(self, position: int) -> range:
        """Return the positions of the samples that are evaluated with the one at a position."""
        return self.positions_of(bisect_right(self._ends, position))

    def batches(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, Batch]]:
        """Iterate over batches in order.

        Args:
            wanted: The numbers of the batches; None for all.

        Yields:
            The number of a batch, and the batch on the device.

        Raises:
            DataError: A sample cannot be read, or the samples make no batch.
        """
        numbers = sorted(range(len(self)) if wanted is None else wanted)
        if self._kept is not None:
            yield from ((number, self._kept[number]) for number in numbers)
        elif self.reads_in_process:
            yield from ((number, self._read(self._indices[number])) for number in numbers)
        elif numbers:
            yield from zip(numbers, self._read_ahead(numbers), strict=True)

    def _keep(self, memory: float) -> list[Batch] | None:
        """Read all batches to the device; None if they take too much memory."""
        if self.num_samples * count_bytes(self.head(1)) > memory:
            return None
        kept, taken = [], 0
        for indices in self._indices:
            kept.append(self._read(indices))
            taken += count_bytes(kept[-1])
            if taken > memory:  # samples have different sizes, or batches are padded
                return None
        self.kept_bytes = taken
        return kept

    def _read(self, indices: list[int]) -> Batch:
        with reading(range_of(indices)):
            batch = self._samples.read(indices)
        return self._place(batch, indices)

    def _place(self, batch: Batch, indices: list[int]) -> Batch:
        try:
            return place(batch, self._device, self._dtype)
        except Exception as error:  # out of memory, or tensors of a class of the user
            raise DataError(
                f"{range_of(indices)} cannot be moved to {self._device} ({one_line(error)})",
                "lower compute.batch_size and compute.data_gib, or make samples smaller",
            ) from error

    def _read_ahead(self, numbers: list[int]) -> Iterator[Batch]:
        try:
            with without_main_module(), warnings.catch_warnings():
                # The number of processes is the user's choice, and all ranks would warn.
                warnings.filterwarnings("ignore", "This DataLoader will create")
                stream = iter(self._stream(numbers))
            for number in numbers:
                sent = _next(stream, self._indices[number])
                yield self._place(sent.batch, self._indices[number])
        except DataError:
            self._loader = None
            raise

    def _stream(self, numbers: list[int]) -> DataLoader[_Sent]:
        """Return a loader of these batches, which is kept for the next pass over them."""
        if self._loader is None or self._loader[0] != numbers:
            self._loader = (
                numbers,
                DataLoader(
                    self._samples,
                    batch_sampler=[self._indices[number] for number in numbers],
                    collate_fn=_unchanged,
                    num_workers=self._workers,
                    worker_init_fn=_begin,
                    pin_memory=self._device.type == "cuda",
                    # Forked copies of a process that runs MPI are not safe.
                    multiprocessing_context="forkserver",
                    persistent_workers=True,
                ),
            )
        return self._loader[1]


@dataclass(frozen=True)
class _Sent:
    """The result of a process that reads ahead: a batch, or an error."""

    batch: Batch
    failure: tuple[str, str] | None = None  # what, remedy

    def pin_memory(self, *_: Any) -> _Sent:
        """Copy the batch to pinned memory; PyTorch's loader calls this method."""
        return _Sent(map_tensors(self.batch, Tensor.pin_memory), self.failure)


class _Samples(Dataset[Any]):
    """The user's data set and collate function, of which processes that read ahead have copies."""

    def __init__(self, dataset: MapDataset, collate: Collate | None) -> None:
        self._dataset = dataset
        self._collate = collate or getattr(dataset, "collate_fn", None)

    def read(self, numbers: list[int]) -> Batch:
        """Read samples by their numbers in the data set, as a batch."""
        among = range_of(numbers) if len(numbers) > 1 else ""
        samples = [read_sample(self._dataset, number, among) for number in numbers]
        return make_batch(samples, numbers, self._collate)

    def __getitems__(self, numbers: list[int]) -> _Sent:
        """Read samples in a process ahead; an error is sent back as text, which always works."""
        try:
            return _Sent(self.read(numbers))
        except HessdistError as error:
            return _Sent(None, (error.what, error.remedy))


def _unchanged(sent: Any) -> Any:
    return sent


def _begin(_: int) -> None:
    """Prepare a process that reads ahead; PyTorch calls it with the number of the process."""
    end_with_parent()


def _next(stream: Iterator[_Sent], numbers: list[int]) -> _Sent:
    """Return the next batch from the processes that read ahead."""
    try:
        with reading(range_of(numbers)):
            sent = next(stream)
    except Exception as error:
        raise DataError(
            f"a process that reads {range_of(numbers)} ahead has ended ({one_line(error)})",
            "set compute.workers = 0, so that no such process is used",
        ) from error
    if sent.failure is not None:
        raise DataError(*sent.failure)
    return sent


@functools.cache
def _warn(reason: str) -> None:
    """Log once why samples are not read ahead."""
    _log.warning(
        "samples are read without processes that read ahead, because the data set cannot be given "
        "to one (%s)",
        reason,
    )
