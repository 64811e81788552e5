"""Collectives inside of computation graphs, which all ranks of a copy of θ make in one order.

Every collective is preceded by a small one in which the ranks compare what they are about to do. So
two ranks that go through different layers, or a rank that has failed, are found before data of
different layers is added, and before anyone waits for a message that does not come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.parallel.gpu_aware import mpi_takes_device_memory

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch import Tensor

# The keys of collectives that belong to no layer; those of layers are smaller.
_END, _TOTALS, _LARGEST = -1, 1 << 40, 1 << 41


class OutOfStepError(BaseException):
    """Another rank of the copy has failed, or goes through other layers; on all of its ranks.

    It is no `Exception`, so that no model and no check goes on after it.

    Args:
        what: A description for the case that no rank has failed.
    """

    def __init__(self, what: str = "another rank has failed") -> None:
        super().__init__(what)


class Lockstep:
    """The ranks that hold one copy of the parameters between them.

    Args:
        comm: The communicator of these ranks.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        from mpi4py import MPI

        self._max, self._sum = MPI.MAX, MPI.SUM
        self.comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.counts: Counter[str] = Counter()  # collectives by name, on this rank
        self.is_absent = False
        self._device_memory: bool | None = None

    # -- staying in step -----------------------------------------------------------------------

    def meet(self, key: int, failed: bool = False) -> None:
        """Compare what the ranks are about to do. Collective over the copy.

        Args:
            key: A number for the next collective, 0 or more.
            failed: Whether this rank has failed and goes no further.

        Raises:
            OutOfStepError: A rank has failed, or has another key; on every rank.
        """
        mine = np.array([key, -key, failed], np.int64)
        all_of_them = np.empty_like(mine)
        self.comm.Allreduce(mine, all_of_them, op=self._max)
        if all_of_them[2]:
            raise OutOfStepError
        if all_of_them[0] != -all_of_them[1]:
            raise OutOfStepError("ranks evaluate different layers")

    def settle(self, mine: BaseException | None) -> BaseException | None:
        """Close a block of collectives, in which this rank may have failed. Collective.

        Args:
            mine: The error of this rank, if any.

        Returns:
            The error of this rank; an OutOfStepError if it has none and another rank is not here.
        """
        if isinstance(mine, OutOfStepError):  # the others know
            return mine
        try:
            self.meet(_END, failed=mine is not None)
        except OutOfStepError as out_of_step:
            return mine or out_of_step
        return mine

    @contextmanager
    def absent(self) -> Iterator[None]:
        """Take part in the collectives of the block, but add nothing to the sums.

        Yields:
            Nothing.
        """
        before, self.is_absent = self.is_absent, True
        try:
            yield
        finally:
            self.is_absent = before

    # -- moving data ---------------------------------------------------------------------------

    def gather(self, key: int, mine: Tensor, counts: Sequence[int]) -> Tensor:
        """Join the pieces of all ranks. Collective over the copy.

        Args:
            key: The number of what is gathered, for `meet`.
            mine: This rank's piece, (counts[rank],).
            counts: The sizes of the pieces of all ranks.

        Returns:
            The pieces in rank order, (Σ counts,), same dtype and device.
        """
        self.meet(key)
        self.counts["gather"] += 1
        source = self._outgoing(mine)
        whole = source.new_empty(sum(counts))
        self.comm.Allgatherv(_buffer(source), [_buffer(whole), list(counts)])
        return whole.to(mine.device)

    def reduce(self, key: int, whole: Tensor, counts: Sequence[int]) -> Tensor:
        """Sum over the ranks, and leave each rank its piece of the sum. Collective over the copy.

        Args:
            key: The number of what is reduced, for `meet`.
            whole: This rank's addend, (Σ counts,); what an absent rank gives does not count.
            counts: The sizes of the pieces of all ranks.

        Returns:
            This rank's piece, (counts[rank],), same dtype and device.
        """
        self.meet(key)
        self.counts["reduce"] += 1
        source = self._outgoing(whole)
        mine = source.new_empty(counts[self.rank])
        self.comm.Reduce_scatter(_buffer(source), _buffer(mine), list(counts))
        return mine.to(whole.device)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sum a few numbers over the ranks. Collective over the copy."""
        self.meet(_TOTALS + len(values))
        mine = np.array(values, np.float64)
        sums = np.empty_like(mine)
        self.comm.Allreduce(mine, sums)
        return [float(value) for value in sums]

    def most(self, value: int) -> int:
        """Return the largest of the ranks' values. Collective over the copy."""
        self.meet(_LARGEST)
        mine = np.array([value], np.int64)
        largest = np.empty_like(mine)
        self.comm.Allreduce(mine, largest, op=self._max)
        return int(largest[0])

    def _outgoing(self, tensor: Tensor) -> Tensor:
        """Return a contiguous tensor in memory that MPI takes."""
        tensor = tensor.detach().contiguous()
        if tensor.device.type == "cpu":
            return tensor
        if self._device_memory is None:
            self._device_memory = mpi_takes_device_memory()
        if not self._device_memory:
            return tensor.cpu()
        import torch

        torch.cuda.synchronize(tensor.device)  # MPI waits for no stream
        return tensor


def _buffer(tensor: Tensor) -> Any:
    """Return a tensor as a buffer for mpi4py."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
