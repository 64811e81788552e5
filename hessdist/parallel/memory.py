"""The process's memory: what the C library keeps, and how much there was at the peak."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path

from hessdist.errors import InputError

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_UP_TO = (1 << 31) - 1  # larger blocks go back to the system; a C int counts no more
_NEVER = -1


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks of up to 2 GiB for the next time. Not collective.

    A product allocates and frees hundreds of MB of temporaries. glibc gives blocks above 32 MiB
    back to the system at once and takes fresh pages for the next ones, which the kernel has to
    fill with zeros: a tenth of the time of a product. What is kept serves the next product, which
    settles after a few: aligned blocks leave holes at first.

    Returns:
        Whether it was done: not without glibc, nor where a variable of its own, such as
        `MALLOC_TRIM_THRESHOLD_`, says already what to keep.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    trim = libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_UP_TO) and trim)


def touch(size: int) -> None:
    """Have all threads fetch the pages of a block that one thread will allocate. Not collective.

    The kernel fills a page with zeros when it is first written, and the eigensolver writes its
    basis first with one thread: 3 to 5 s for 1.7 GiB where two threads take 0.9 (on a virtual
    machine whose host has to find the pages, too). The block is freed again and the C library
    keeps it for the allocation that is to come; where it does not, a moment is lost.

    Args:
        size: Bytes; more than the C library keeps are left alone.
    """
    import torch

    if size <= _KEPT_UP_TO:
        torch.zeros(size, dtype=torch.uint8)


def available_bytes() -> int:
    """Memory that this node can still give, within the limits of its control group.

    Not collective.

    Returns:
        Bytes; a large number where the system does not say.
    """
    limits = [sys.maxsize]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        limits.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError, StopIteration):
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        group = next(line for line in groups if line.startswith("0::")).removeprefix("0::/")
        folder = Path("/sys/fs/cgroup") / group
        limit, used = (
            int((folder / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        limits.append(limit - used)
    return max(0, min(limits))


def require_room(needed: float, what: str, remedy: str) -> None:
    """Check that something fits into the memory of this node. Not collective.

    Args:
        needed: Bytes, of all ranks of the node.
        what: What takes them, in the plural.
        remedy: What the user can do.

    Raises:
        InputError: It does not fit.
    """
    free = available_bytes()
    if needed > free:
        raise InputError(
            f"{what} take {needed / 2**30:.1f} GiB, where {free / 2**30:.1f} GiB are free", remedy
        )


def peak_bytes() -> int:
    """The most memory that this process has had in use so far. Not collective."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
