"""The processes of a trainer, and what they agree on: MPI's, torch.distributed's, or one alone.

A crew has three collectives. All that a solve over several ranks communicates goes by MPI, as in
`Ranks`; where the trainer has no MPI, rank 0 solves alone and the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch.distributed as dist

from hessdist.errors import DependencyError, HessdistError, InputError, RankError
from hessdist.parallel.ranks import Ranks, import_mpi, launched_size
from hessdist.unforeseen import in_one_line

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

_SECONDS = 600.0
"""How long the processes wait for each other at the first call."""


class Crew(Protocol):
    """All processes of a trainer, which call every method together."""

    size: int
    is_root: bool

    def told(self, value: T) -> T:
        """Give every process the (small, picklable) value of the first. Collective."""

    def lead(self, work: Callable[[], None]) -> None:
        """Let the first process work alone, and raise on all what it raises. Collective."""

    def collected(self, value: T) -> list[T]:
        """Give every process the (small, picklable) values of all, in order. Collective."""


class Alone:
    """A trainer of one process."""

    size, is_root = 1, True

    def told(self, value: T) -> T:
        """Return the value."""
        return value

    def lead(self, work: Callable[[], None]) -> None:
        """Do the work."""
        work()

    def collected(self, value: T) -> list[T]:
        """Return the value in a list."""
        return [value]


class MpiCrew:
    """The ranks of an MPI communicator. To make one is collective.

    Args:
        comm: The communicator; None: `MPI.COMM_WORLD`.

    Raises:
        InputError: Not all ranks call it.
    """

    def __init__(self, comm: MPI.Comm | None = None) -> None:
        self.ranks = Ranks(comm)
        self.size, self.is_root = self.ranks.size, self.ranks.is_root
        if not self.ranks.are_all_here(_SECONDS):
            raise InputError(
                f"only some of the {self.size} ranks have called the monitor",
                "call it on every rank, not on rank 0 alone",
            )

    def told(self, value: T) -> T:
        """Give every rank the value of rank 0. Collective."""
        given: T = self.ranks.broadcast(value)
        return given

    def lead(self, work: Callable[[], None]) -> None:
        """Let rank 0 work alone, and raise on all ranks what it raises. Collective."""
        with self.ranks.agreeing():
            if self.is_root:
                work()

    def collected(self, value: T) -> list[T]:
        """Give every rank the values of all. Collective."""
        return self.ranks.collect(value)


class TorchCrew:
    """The processes of torch.distributed's default group. To make one is collective.

    They talk by a group of their own of the backend gloo, whatever the trainer uses, since the
    others may wait long for rank 0.

    Raises:
        DependencyError: PyTorch was built without gloo.
    """

    def __init__(self) -> None:
        if not dist.is_gloo_available():
            raise DependencyError(
                "this PyTorch has no backend 'gloo' for torch.distributed",
                "install PyTorch's own wheel, or start the trainer by mpirun",
            )
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
        self.size, self.is_root = dist.get_world_size(), dist.get_rank() == 0

    def told(self, value: T) -> T:
        """Give every process the value of rank 0. Collective."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def lead(self, work: Callable[[], None]) -> None:
        """Let rank 0 work alone, and raise on all processes what it raises. Collective.

        Args:
            work: What rank 0 does.

        Raises:
            HessdistError: What rank 0 raised; an error with a line where it is not foreseen.
        """
        mine: Exception | None = None
        if self.is_root:
            try:
                work()
            except Exception as error:
                mine = error
        said = self.told(None if mine is None else _portable(mine))
        if mine is not None:
            raise mine
        if said is not None:
            raise said

    def collected(self, value: T) -> list[T]:
        """Give every process the values of all. Collective."""
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value, group=self._group)
        return everyone


def _portable(error: Exception) -> HessdistError:
    """Return an error that survives pickling."""
    if isinstance(error, HessdistError):
        return type(error)(error.what, error.remedy)
    line = in_one_line(error)
    return RankError(line.what, line.remedy)


def writing_crew() -> Crew:
    """Find the processes of the trainer, for what rank 0 does alone. Collective.

    Returns:
        Those of torch.distributed where it is initialised; otherwise the ranks that MPI has
        started; otherwise this process alone.
    """
    if _trainers() > 1:
        return TorchCrew()
    return MpiCrew() if launched_size() > 1 else Alone()


def solving_crew(comm: MPI.Comm | None) -> MpiCrew | TorchCrew:
    """Find the processes of the trainer, for solves. Collective.

    Args:
        comm: The communicator; None: `MPI.COMM_WORLD`.

    Returns:
        MPI's ranks. Where torch.distributed has several processes, and each is alone to MPI, as
        under torchrun, those of torch.distributed.

    Raises:
        InputError: MPI has another number of ranks than torch.distributed.
        DependencyError: mpi4py is missing or cannot be used.
    """
    trainers = _trainers()
    if trainers <= 1:
        return MpiCrew(comm)
    mpi = import_mpi()
    size = (mpi.COMM_WORLD if comm is None else comm).Get_size()
    if size == 1 and mpi.COMM_WORLD.Get_size() == 1:
        return TorchCrew()
    if size != trainers:
        raise InputError(
            f"torch.distributed has {trainers} processes, and the communicator {size} ranks",
            "start one rank of MPI for each process of the trainer",
        )
    return MpiCrew(mpi.COMM_WORLD if comm is None else comm)


def _trainers() -> int:
    """Return the number of processes of torch.distributed; 1 where it is not used."""
    there = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if there else 1
