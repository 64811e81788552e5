"""The memory of the process: what the C library keeps, what is available, and the peak."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path

from hessdist.errors import InputError

_KEPT_UP_TO = (1 << 31) - 1  # bytes of a block; a C int cannot count more
_state = {"keeps": False}  # of this process


def keep_freed_memory() -> bool:
    """Make the C library keep freed blocks of up to 2 GiB for later use. Not collective.

    A product allocates and frees hundreds of MB of temporaries. glibc returns blocks above 32 MiB
    to the system at once and takes fresh pages for the next ones, which the kernel fills with
    zeros: a tenth of the time of a product. Kept blocks serve the next product. This settles after
    a few products, because aligned blocks leave holes at first.

    The earlier settings cannot be restored, because glibc does not return them. So only the command
    line calls it, for its own process.

    Returns:
        Whether it was done. It is not without glibc, or if the user has set a variable of glibc,
        such as `MALLOC_TRIM_THRESHOLD_`.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    trim_threshold, mmap_threshold, never = -1, -3, -1  # malloc.h
    libc = ctypes.CDLL(None)
    trim = libc.mallopt(trim_threshold, never)
    _state["keeps"] = bool(libc.mallopt(mmap_threshold, _KEPT_UP_TO) and trim)
    return _state["keeps"]


def return_freed_memory() -> None:
    """Undo `keep_freed_memory`, where it was done: freed blocks above 1 MiB go to the system.

    A process that gathers layers would otherwise keep holes of their sizes. Not collective.
    """
    if not _state["keeps"]:
        return
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 1 << 20)
    libc.mallopt(trim_threshold, 1 << 20)
    libc.malloc_trim(0)
    _state["keeps"] = False


def touch(size: int) -> None:
    """Make all threads fetch the pages of a block that one thread will allocate. Not collective.

    The kernel fills a page with zeros at the first write, and the eigensolver first writes its
    basis with one thread. For 1.7 GiB this takes 3 to 5 s, and 0.9 s with two threads (on a virtual
    machine whose host has to provide the pages, too). The block is freed again, and the C library
    keeps it for the next allocation. Nothing is done without `keep_freed_memory`.

    Args:
        size: The number of bytes. Nothing is done if the C library does not keep so many.
    """
    import torch

    if _state["keeps"] and size <= _KEPT_UP_TO:
        torch.zeros(size, dtype=torch.uint8)


def available_bytes() -> int:
    """Find the available memory of this node, within the limits of its control group.

    Not collective.

    Returns:
        The number of bytes; a large number if the system does not report it.
    """
    limits = [sys.maxsize]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        limits.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError, StopIteration):
        folder = _control_group()
        limit, used = (
            int((folder / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
        limits.append(limit - used)
    return max(0, min(limits))


def total_bytes() -> int:
    """Find the memory of this node, within the limit of its control group. Not collective.

    Returns:
        The number of bytes; a large number if the system does not report it.
    """
    limits = [sys.maxsize]
    with suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError, StopIteration):
        limits.append(int((_control_group() / "memory.max").read_text(encoding="ascii")))
    return min(limit for limit in limits if limit > 0)


def _control_group() -> Path:
    groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    group = next(line for line in groups if line.startswith("0::")).removeprefix("0::/")
    return Path("/sys/fs/cgroup") / group


def require_room(needed: float, what: str, remedy: str) -> None:
    """Check that something fits into the memory of this node. Not collective.

    Args:
        needed: The number of bytes, over all ranks of the node.
        what: The things that take them, in the plural.
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
    """Return the largest memory that this process has used so far. Not collective."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
