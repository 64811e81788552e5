"""Who am I, which device, which samples are mine; every collective the program makes.

No other module communicates, but for what a trainer without MPI agrees on (`crew.py`). The
collectives of the Krylov algebra are PETSc's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hessdist.errors import DependencyError, HessdistError, InputError, RankError, Stopped
from hessdist.parallel.lockstep import Lockstep, OutOfStepError
from hessdist.printable import printable
from hessdist.unforeseen import in_one_line, show_traceback

if TYPE_CHECKING:
    import torch
    from mpi4py import MPI
    from numpy.typing import NDArray

    Buffer = NDArray[Any] | torch.Tensor

# One message of a broadcast stays far below the 2 GiB that a C int can count.
_BROADCAST_BYTES = 1 << 28
_POST = 75  # the tag of messages outside of collectives
_SLICE = 76  # and of slices on their way to rank 0
_NO_STEP = 0xFFFFFFF0  # the batch script, the interactive shell and the like have such numbers


def launched_rank() -> int:
    """This process's number as the launcher's environment says it, before MPI is initialised.

    Returns:
        0 as well where no launcher is known.
    """
    environment = os.environ
    names = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"]
    names += ["RANK"] if _torchrun_copies(environment) > 1 else []
    names += ["SLURM_PROCID"] if _srun_copies(environment) > 1 else []
    return next((number for name in names if (number := _number(environment, name)) >= 0), 0)


def launched_size() -> int:
    """The number of processes that a launcher of MPI's started, as the environment says it.

    Returns:
        0 where none did, which is not one process of a launcher's: that one has mpirun's terminal.
    """
    return max(0, _mpi_copies(os.environ))


def check_launcher(environment: Mapping[str, str], size: int) -> None:
    """Refuse to be one of several copies that know nothing of each other. Not collective.

    Args:
        environment: The environment variables.
        size: The number of ranks that MPI says there are.

    Raises:
        InputError: A launcher has started several processes, and MPI sees each of them alone.
    """
    if size > 1:
        return
    mpi = _mpi_copies(environment)
    if (copies := _srun_copies(environment)) > 1 and mpi != 1:
        launcher = "srun"
        remedy = f"use srun --mpi=pmix (see srun --mpi=list), or mpirun -n {copies}"
    elif (copies := mpi) > 1:
        launcher = "the launcher of an MPI that is not mpi4py's"
        remedy = "use the mpirun of the MPI that `hessdist doctor` names"
    elif (copies := _torchrun_copies(environment)) > 1 and mpi != 1:
        launcher, remedy = "torchrun", f"use mpirun -n {copies}, or srun --mpi=pmix"
    else:
        return
    raise InputError(
        f"{launcher} has started {copies} copies that would all do the same work: each is alone "
        "to MPI",
        f"{remedy}; from Python, comm=MPI.COMM_SELF works alone",
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    """A variable that is a number; -1 where there is none."""
    text = environment.get(name, "").strip()
    return int(text) if text.isascii() and text.isdigit() else -1


def _mpi_copies(environment: Mapping[str, str]) -> int:
    """Processes that an mpirun, or a process manager like one, has started; -1: none did."""
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    return next((number for name in names if (number := _number(environment, name)) >= 0), -1)


def _torchrun_copies(environment: Mapping[str, str]) -> int:
    """Processes that torchrun, or a launcher like it, has started."""
    told = all(_number(environment, name) >= 0 for name in ("RANK", "LOCAL_RANK"))
    elastic = "TORCHELASTIC_RUN_ID" in environment or "MASTER_ADDR" in environment
    return _number(environment, "WORLD_SIZE") if told and elastic else -1


def _srun_copies(environment: Mapping[str, str]) -> int:
    """Tasks of the Slurm step that this process is one of.

    A batch script, and the shell of an allocation, are one process, however many tasks their job
    has: Slurm gives them no step, or one with a number above all of srun's.

    Returns:
        Their number; -1 where there is no step.
    """
    step = _number(environment, "SLURM_STEP_ID")
    if not 0 <= step < _NO_STEP or _number(environment, "SLURM_PROCID") < 0:
        return -1
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS")
    return tasks if tasks >= 0 else _number(environment, "SLURM_NTASKS")


def shard_bounds(total: int, parts: int, part: int) -> tuple[int, int]:
    """Bounds of one of `parts` contiguous shards whose sizes differ by at most one.

    Args:
        total: Number of items.
        parts: Number of shards; may exceed `total`, and then the last shards are empty.
        part: Index of the shard.

    Returns:
        `(begin, end)`, half open. The first `total % parts` shards hold one item more,
        which is also how PETSc lays out a vector.
    """
    quotient, remainder = divmod(total, parts)
    begin = part * quotient + min(part, remainder)
    return begin, begin + quotient + (part < remainder)


def fingerprint_of(value: object) -> str:
    """A hash of a value by its content, the same in every process that has an equal value.

    Args:
        value: Text, bytes, numbers, arrays, dataclasses, and collections of these. Of any other
            object its `repr` counts, so that it should say the content and no address.

    Returns:
        The SHA-256, in hexadecimal digits.
    """
    digest = hashlib.sha256()
    _absorb(digest, value)
    return digest.hexdigest()


def _absorb(digest: hashlib._Hash, value: object) -> None:
    """Add a value to a hash: its kind, its length where it has one, and its content."""
    parts: list[object]
    if hasattr(value, "__array__"):  # its repr leaves out the middle of a long one
        array = np.asarray(value)
        plain = array.dtype.kind != "O"
        content = np.ascontiguousarray(array).tobytes() if plain else array.ravel().tolist()
        parts = [array.dtype.str, array.shape, content]
    elif isinstance(value, Mapping):
        # Not in the mapping's order, which says nothing; the hashes of its items have an order.
        parts = [*sorted(map(fingerprint_of, value.items()))]
    elif isinstance(value, set | frozenset):
        parts = [*sorted(map(fingerprint_of, value))]
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, type) or (hasattr(value, "__qualname__") and callable(value)):
        parts = [getattr(value, "__module__", ""), getattr(value, "__qualname__", "")]
    else:
        raw = bytes(value) if isinstance(value, bytes | bytearray) else repr(value).encode()
        digest.update(f"{type(value).__name__} {len(raw)} ".encode() + raw)
        return
    digest.update(f"{type(value).__name__} {len(parts)} ".encode())
    for part in parts:
        _absorb(digest, part)


def import_mpi() -> Any:
    """Import `mpi4py.MPI`, which initialises MPI.

    Returns:
        The module `mpi4py.MPI`.

    Raises:
        DependencyError: mpi4py is missing, or its MPI library is, or MPI cannot start here.
    """
    try:
        if _lacks_process_manager(os.environ):
            _start_without_process_manager()
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise DependencyError(
            f"mpi4py cannot be imported ({error})",
            "install it (Debian: python3-mpi4py; conda-forge: mpi4py) and see `hessdist doctor`",
        ) from error
    return MPI


def mpi_library() -> str:
    """Return what mpi4py's MPI says of itself, in one line, without initialising it.

    Not collective. It is for programs without ranks: MPI is not initialised afterwards either.

    Returns:
        The line, such as "Open MPI v4.1.4, ..."; empty where mpi4py or its library is missing.
    """
    try:
        import mpi4py

        if "mpi4py.MPI" not in sys.modules:
            mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return ""
    return str(MPI.Get_library_version().split("\n")[0].strip("\0 "))


def _lacks_process_manager(environment: Mapping[str, str]) -> bool:
    """Whether srun has started this process without telling MPI how to find the others."""
    told = any(name.startswith(("PMIX_", "PMI_", "OMPI_COMM_")) for name in environment)
    return _srun_copies(environment) > 0 and not told


def _start_without_process_manager() -> None:
    """Initialise MPI, but not Open MPI, which would end the process with a page of its own."""
    import mpi4py

    if "mpi4py.MPI" not in sys.modules:  # else this comes too late, or it has been said before
        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    from mpi4py import MPI

    if MPI.Is_initialized():
        return
    if MPI.Get_library_version().startswith("Open MPI"):
        raise DependencyError(
            "srun has started this without a process manager, and Open MPI cannot start so",
            "use srun --mpi=pmix (see srun --mpi=list), or mpirun",
        )
    MPI.Init_thread()


class _BystanderError(InputError):
    """The error of a rank that is out of step with the others of its copy."""


class Ranks:
    """A communicator, and what hessdist does with it.

    Every method says whether it is collective. `collectives` counts the calls that move data
    between ranks, by name, on this rank.

    Args:
        comm: The communicator; `MPI.COMM_WORLD` when None.

    Raises:
        InputError: A launcher has started several processes, and `MPI.COMM_WORLD` is one of them.
    """

    def __init__(self, comm: MPI.Comm | None = None) -> None:
        self._mpi = import_mpi()
        self.comm: MPI.Comm = self._mpi.COMM_WORLD if comm is None else comm
        self.rank: int = self.comm.Get_rank()
        self.size: int = self.comm.Get_size()
        if comm is None:
            check_launcher(os.environ, self.size)
        self.collectives: Counter[str] = Counter()
        self._sent: list[MPI.Request] = []
        self._posted: Counter[int] = Counter()  # messages by receiver
        self._received = 0
        self._place: tuple[int, int, int] | None = None  # see `node`
        self.lockstep: Lockstep | None = None  # the ranks of a copy, if parameters are spread

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the one that speaks and writes. Not collective."""
        return self.rank == 0

    def shard(self, total: int) -> tuple[int, int]:
        """Bounds of this rank's shard of `total` items; not collective. See `shard_bounds`."""
        return shard_bounds(total, self.size, self.rank)

    def counts(self, total: int) -> list[int]:
        """Shard sizes of all ranks, in rank order. Not collective."""
        bounds = (shard_bounds(total, self.size, rank) for rank in range(self.size))
        return [end - begin for begin, end in bounds]

    # -- errors ------------------------------------------------------------------------------

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Run a block without collectives; if it fails on any rank, fail on all. Collective.

        Yields:
            Nothing.

        Raises:
            HessdistError: What the lowest failing rank raised (its rank is named when it is not 0);
                an error with a line where that is no `Exception`, such as SystemExit.
            RankError: Likewise for an error that hessdist does not foresee; that rank itself
                raises the error as it is.
            KeyboardInterrupt: On a single rank; it ends several ranks at once.
        """
        mine: BaseException | None = None
        try:
            yield
        except KeyboardInterrupt as interrupt:  # at once: the other ranks may take their time
            if self.size > 1:
                self.abort(interrupt)
            raise
        except BaseException as caught:  # SystemExit included: the other ranks wait for this one
            mine = caught
        if self._mpi.Is_finalized():
            ended = InputError("code of the job has ended MPI", "leave MPI_Finalize to hessdist")
            raise ended.on_all_ranks() from mine
        if self.lockstep is not None:
            mine = self.lockstep.settle(mine)
        self.collectives["allgather"] += 1
        everyone = self.comm.allgather(None if mine is None else self._portable(mine))
        failed = [rank for rank, error in enumerate(everyone) if error is not None]
        # Ranks that only saw another one fail do not know why.
        causes = [rank for rank in failed if not isinstance(everyone[rank], _BystanderError)]
        first = next(iter(causes or failed), None)
        if first is None:
            return
        failure = everyone[first]
        if (
            first == self.rank
            and isinstance(mine, Exception)
            and not isinstance(mine, HessdistError)
        ):
            failure = mine  # with its traceback
        assert failure is not None
        failure.agreed = True
        if first != self.rank or failure is mine:
            raise failure
        if self.rank:
            assert mine is not None
            show_traceback(mine)  # rank 0, which speaks, does not have it
        raise failure from mine

    def _portable(self, error: BaseException) -> Exception:
        """The error in a form that survives pickling, with this rank named unless it is 0."""
        if isinstance(error, HessdistError) and error.what.startswith("rank "):
            return error
        where = f"rank {self.rank}: " if self.rank else ""
        if isinstance(error, HessdistError):
            return type(error)(where + error.what, error.remedy)
        if isinstance(error, OutOfStepError):
            return _BystanderError(
                "the ranks that share the parameters evaluate different layers: the model's path "
                "depends on its data",
                "leave out compute.shards, or let every rank evaluate every layer",
            )
        line = in_one_line(error)
        failure = RankError(where + line.what, line.remedy)
        failure.exit_status = line.exit_status
        return failure

    def require_same(self, what: str, value: object, remedy: str = "") -> None:
        """Refuse to go on where ranks have different values of what should be one. Collective.

        Args:
            what: What it is, such as "job file".
            value: This rank's, compared by `fingerprint_of`.
            remedy: What the user can do about it.

        Raises:
            InputError: On all ranks, naming the first rank whose value is not that of rank 0.
        """
        digests: list[str] = self.collect(fingerprint_of(value))
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                what = f"rank {rank} has another {what} than rank 0"
                raise InputError(what, remedy).on_all_ranks()

    def abort(self, error: BaseException) -> None:
        """End all ranks at once, saying why. Not collective: the rank that failed calls it."""
        show_traceback(error)
        failure = in_one_line(error)
        line = printable(" ".join(str(self._portable(failure)).split()))
        print(f"hessdist: {line}", file=sys.stderr, flush=True)
        self._mpi.COMM_WORLD.Abort(failure.exit_status)

    # -- moving data -------------------------------------------------------------------------

    def gather_vector(self, mine: Buffer, whole: Buffer) -> None:
        """Assemble the vector that is spread over the ranks, on every rank. Collective.

        Tensors may lie on a device where `mpi_takes_device_memory`; MPI waits for no stream, so
        what they hold has to be there already.

        Args:
            mine: This rank's entries, (d_local,), in rank order by `shard`.
            whole: Output, (d,), same dtype.
        """
        self.collectives["allgatherv"] += 1
        self.comm.Allgatherv(mine, [whole, self.counts(len(whole))])

    def reduce_scatter(self, whole: Buffer, mine: Buffer) -> None:
        """Sum vectors over the ranks and leave each rank its slice of the sum. Collective.

        Tensors as in `gather_vector`.

        Args:
            whole: This rank's addend, (d,).
            mine: Output, (d_local,), same dtype.
        """
        self.collectives["reduce_scatter"] += 1
        self.comm.Reduce_scatter(whole, mine, self.counts(len(whole)))

    def exchange(
        self,
        source: NDArray[Any],
        outgoing: list[int],
        target: NDArray[Any],
        incoming: list[int],
    ) -> None:
        """Send every rank its part of an array, and receive a part from every rank. Collective.

        Args:
            source: The parts for all ranks, in rank order.
            outgoing: The sizes of these parts.
            target: Output, the parts of all ranks in rank order, same dtype.
            incoming: The sizes of those parts.
        """
        self.collectives["alltoallv"] += 1
        self.comm.Alltoallv([np.ascontiguousarray(source), outgoing], [target, incoming])

    def reduce_scatter_block(self, whole: NDArray[Any]) -> NDArray[Any]:
        """Sum several vectors over the ranks and leave each rank its slices. Collective.

        Args:
            whole: This rank's addends, (n, d).

        Returns:
            This rank's slices of the sums, (n, d_local), same dtype.
        """
        self.collectives["reduce_scatter"] += 1
        count, size = whole.shape
        shards = (shard_bounds(size, self.size, rank) for rank in range(self.size))
        packed = np.concatenate([whole[:, begin:end].ravel() for begin, end in shards])
        counts = [count * mine for mine in self.counts(size)]
        mine = np.empty((count, counts[self.rank] // max(count, 1)), whole.dtype)
        self.comm.Reduce_scatter(packed, mine, counts)
        return mine

    def gather_vectors(self, mine: NDArray[Any], total: int) -> NDArray[Any]:
        """Assemble several spread vectors on every rank. Collective.

        Args:
            mine: This rank's entries, (n, d_local).
            total: The dimension d.

        Returns:
            The vectors, (n, d), same dtype.
        """
        self.collectives["allgatherv"] += 1
        count = len(mine)
        packed = np.empty(count * total, mine.dtype)
        counts = [count * each for each in self.counts(total)]
        self.comm.Allgatherv(np.ascontiguousarray(mine), [packed, counts])
        parts = np.split(packed, np.cumsum(counts)[:-1])
        return np.concatenate([part.reshape(count, -1) for part in parts], axis=1)

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum a small float64 array over the ranks, on every rank. Collective."""
        self.collectives["allreduce"] += 1
        total = np.empty_like(values)
        self.comm.Allreduce(values, total)
        return total

    def gather_to_root(self, mine: NDArray[Any], total: int) -> NDArray[Any] | None:
        """Assemble a spread vector on rank 0 alone. Collective.

        Args:
            mine: This rank's entries, (d_local,).
            total: the dimension d.

        Returns:
            The vector, (d,), on rank 0; None elsewhere.
        """
        self.collectives["gatherv"] += 1
        whole = np.empty(total, dtype=mine.dtype) if self.is_root else None
        self.comm.Gatherv(np.ascontiguousarray(mine), [whole, self.counts(total)], root=0)
        return whole

    def slices_to_root(self, mine: NDArray[Any], total: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Send a spread vector to rank 0, the slice of one rank after the other. Collective.

        Args:
            mine: This rank's entries, (d_local,).
            total: The dimension d.

        Yields:
            On rank 0, the place of a slice's first entry, and the slice. Nothing elsewhere.
        """
        self.collectives["gatherv"] += 1
        mine = np.ascontiguousarray(mine)
        if not self.is_root:
            self.comm.Send(mine, dest=0, tag=_SLICE)
            return
        yield 0, mine
        for rank in range(1, self.size):
            begin, end = shard_bounds(total, self.size, rank)
            piece = np.empty(end - begin, mine.dtype)
            self.comm.Recv(piece, source=rank, tag=_SLICE)
            yield begin, piece

    def slices_from_root(
        self, read: Callable[[int, int], NDArray[Any]], mine: NDArray[Any], total: int
    ) -> None:
        """Send every rank its slice of a vector that rank 0 reads slice by slice. Collective.

        Args:
            read: Returns the entries from one place to another. It is called on rank 0 only, and
                does not raise.
            mine: Output, this rank's entries, (d_local,).
            total: The dimension d.
        """
        self.collectives["scatterv"] += 1
        if not self.is_root:
            self.comm.Recv(mine, source=0, tag=_SLICE)
            return
        for rank in range(self.size):
            part = read(*shard_bounds(total, self.size, rank)).astype(mine.dtype, copy=False)
            if rank:
                self.comm.Send(np.ascontiguousarray(part), dest=rank, tag=_SLICE)
            else:
                mine[:] = part

    def gather_block(self, mine: NDArray[Any], total: int) -> NDArray[Any] | None:
        """Assemble several spread vectors on rank 0 alone. Collective.

        Args:
            mine: This rank's entries, (n, d_local).
            total: the dimension d.

        Returns:
            The vectors, (n, d), on rank 0; None elsewhere.
        """
        self.collectives["gatherv"] += 1
        counts = [len(mine) * count for count in self.counts(total)]
        packed = np.empty(sum(counts), mine.dtype) if self.is_root else None
        self.comm.Gatherv(np.ascontiguousarray(mine), [packed, counts], root=0)
        if packed is None:
            return None
        pieces = np.split(packed, np.cumsum(counts)[:-1])
        whole: NDArray[Any] = np.hstack([piece.reshape(len(mine), -1) for piece in pieces])
        return whole

    def scatter_block(self, whole: NDArray[Any] | None, like: NDArray[Any]) -> NDArray[Any]:
        """Spread several vectors that rank 0 has. Collective.

        Args:
            whole: (n, d) on rank 0; None elsewhere.
            like: An array of the result's shape and dtype.

        Returns:
            This rank's entries, (n, d_local).
        """
        self.collectives["scatterv"] += 1
        packed, counts = None, None
        if whole is not None:
            shards = [shard_bounds(whole.shape[1], self.size, rank) for rank in range(self.size)]
            packed = np.concatenate([whole[:, begin:end].ravel() for begin, end in shards])
            counts = [len(whole) * (end - begin) for begin, end in shards]
        mine = np.empty(like.shape, like.dtype)
        self.comm.Scatterv([packed, counts], mine, root=0)
        return mine

    def scatter(self, parts: Sequence[NDArray[Any]] | None, mine: NDArray[Any]) -> None:
        """Send each rank its part of an array that rank 0 has. Collective.

        Args:
            parts: The parts of all ranks, on rank 0; None elsewhere.
            mine: Output, this rank's part, same dtype.
        """
        self.collectives["scatterv"] += 1
        packed, counts = None, None
        if parts is not None:
            packed = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))
            counts = [len(part) for part in parts]
        self.comm.Scatterv([packed, counts], mine, root=0)

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Give every rank the (small, picklable) object of one, rank 0. Collective."""
        self.collectives["bcast"] += 1
        return self.comm.bcast(value, root=root)

    def collect(self, value: Any) -> list[Any]:
        """Give every rank the (small, picklable) objects of all, in rank order. Collective."""
        self.collectives["allgather"] += 1
        return list(self.comm.allgather(value))

    def broadcast_array(self, array: NDArray[Any], root: int = 0) -> None:
        """Overwrite a C-contiguous array on every rank by that of one, in pieces. Collective."""
        raw = array.reshape(-1).view(np.uint8)
        for begin in range(0, raw.size, _BROADCAST_BYTES):
            self.collectives["bcast"] += 1
            self.comm.Bcast(raw[begin : begin + _BROADCAST_BYTES], root=root)

    def first(self, count: int) -> Ranks | None:
        """The first ranks as a communicator of their own; None on the others. Collective."""
        self.node()
        color = 0 if self.rank < count else self._mpi.UNDEFINED
        comm = self.comm.Split(color, self.rank)
        return None if comm == self._mpi.COMM_NULL else self._group(comm)

    def split(self, groups: int) -> tuple[int, Ranks]:
        """Split the ranks into groups of neighbours whose sizes differ by at most one. Collective.

        Args:
            groups: Their number, no more than there are ranks.

        Returns:
            The index of this rank's group, and the group's ranks.
        """
        self.node()
        ends = [shard_bounds(self.size, groups, group)[1] for group in range(groups)]
        mine = next(group for group, end in enumerate(ends) if self.rank < end)
        return mine, self._group(self.comm.Split(mine, self.rank))

    def any(self, here: bool) -> bool:
        """Whether something is so on any rank. Collective."""
        self.collectives["any"] += 1
        return bool(self.comm.allreduce(here, self._mpi.LOR))

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait for all ranks, asleep: a barrier would keep the waiting ranks' cores busy.

        Collective.

        Args:
            meanwhile: Called now and then.
        """
        self.collectives["barrier"] += 1
        request = self.comm.Ibarrier()
        while not request.Test():
            meanwhile()
            time.sleep(0.01)

    def are_all_here(self, seconds: float) -> bool:
        """Whether all ranks come to this call within a time. Collective, if they do.

        Args:
            seconds: How long to wait for them.

        Returns:
            False where one did not come, with which nothing more can be done but to abort.
        """
        self.collectives["barrier"] += 1
        request, end = self.comm.Ibarrier(), time.monotonic() + seconds
        while not request.Test():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    @contextmanager
    def asleep_until_all_are_done(self) -> Iterator[None]:
        """Work without collectives that takes its time; who waits leaves the core to others.

        Collective. Ranks that were told to stop end together; any other error of one rank of
        several ends them all at once: the others may have hours to go.

        Yields:
            Nothing.

        Raises:
            Stopped: On all ranks.
        """
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            if self.size > 1 and not isinstance(error, Stopped):
                self.abort(error)
            failure = error
        self.wait()
        with self.agreeing():
            if failure is not None:
                raise failure

    def post(self, message: Any, to: int) -> None:
        """Send a (small, picklable) object that its receiver looks for when it likes.

        Not collective, and waits for nobody.

        Args:
            message: The object.
            to: The rank.
        """
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self.comm.isend(message, to, _POST))
        self._posted[to] += 1

    def received(self) -> list[Any]:
        """Objects that other ranks have posted to this one since the last call. Not collective."""
        found = []
        while self.comm.Iprobe(self._mpi.ANY_SOURCE, _POST):
            found.append(self.comm.recv(None, self._mpi.ANY_SOURCE, _POST))
        self._received += len(found)
        return found

    def finish_posts(self, read: Callable[[], None]) -> None:
        """Wait until all that was posted has been received. Collective.

        Args:
            read: Calls `received`.
        """
        expected = sum(posted[self.rank] for posted in self.collect(self._posted))
        while self._received < expected:
            read()
            time.sleep(0.001)

    # -- devices and threads -----------------------------------------------------------------

    def node(self) -> tuple[int, int, int]:
        """Find the place of this rank on its node. Collective.

        The ranks of a group have the places that they have among all ranks of the run, so that
        groups share neither a GPU nor cores.

        Returns:
            `(index, ranks, threads)`: the index among the ranks of the node, their number, and the
            threads that are this rank's share of the cores on which it may run.
        """
        if self._place is None:
            node = self.comm.Split_type(self._mpi.COMM_TYPE_SHARED)
            cores = frozenset(os.sched_getaffinity(0))
            sharing = sum(other == cores for other in node.allgather(cores))
            self._place = node.Get_rank(), node.Get_size(), max(1, len(cores) // sharing)
            node.Free()
        return self._place

    def _group(self, comm: MPI.Comm) -> Ranks:
        group = Ranks(comm)
        group._place = self._place
        return group


def choose_device(requested: str, node_index: int) -> torch.device:
    """The device of a rank: the GPU of its node-local index, or the CPU. Not collective.

    Args:
        requested: "auto", "cpu" or "cuda".
        node_index: Index of the rank among those of its node.

    Returns:
        The device.

    Raises:
        InputError: A GPU is asked for and PyTorch sees none.
    """
    import torch

    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            "compute.device is 'cuda' and PyTorch sees no GPU on this node",
            "use 'auto' or 'cpu', or see `hessdist doctor`",
        )
    # A launcher that shows each rank one device (srun --gpus-per-task) leaves only index 0.
    return torch.device("cuda", node_index % torch.cuda.device_count())
