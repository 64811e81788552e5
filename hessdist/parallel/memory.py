"""The memory of the process: what the C library keeps, what is available, and the peak."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def fresh_zeros(size: int) -> int | None:
    """Allocate zeros in fresh pages, which take memory at the first write. Not collective.

    Args:
        size: The number of bytes.

    Returns:
        The address of a block for `free` of the C library; None if there is no such memory.
    """
    libc = ctypes.CDLL(None)
    libc.calloc.restype, libc.calloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_size_t]
    mmap_threshold, mmap_max = -3, -4  # malloc.h
    if _state["keeps"]:  # then a kept block would be used again, and filled with zeros
        libc.mallopt(mmap_max, 1 << 16)  # the default, which Open MPI may set to 0
        libc.mallopt(mmap_threshold, 1 << 20)
    block: int | None = libc.calloc(1, size)
    if _state["keeps"]:
        libc.mallopt(mmap_threshold, _KEPT_UP_TO)
    return block


def fresh_array(shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Make an array of zeros in pages of its own. Not collective.

    A page takes memory at its first write, and all pages go back to the system with the array.

    Args:
        shape: The numbers of rows and columns.
        dtype: The dtype.

    Returns:
        The array.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    if not size or platform.system() == "Windows":
        return np.zeros(shape, dtype)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype).reshape(shape)


def resident_bytes() -> int:
    """Return the memory that this process has at present. Not collective."""
    return _status("VmRSS") or peak_bytes()


def _status(name: str) -> int:
    """Return a number of bytes that Linux reports about this process; 0 elsewhere."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith(name))
        return int(line.split()[1]) * 1024
    return 0


class _MallInfo(ctypes.Structure):
    """The struct mallinfo2 of glibc 2.33 and newer."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def reusable_bytes() -> int:
    """Return the freed memory that the C library keeps for later blocks. Not collective.

    Returns:
        The number of bytes; 0 if the C library does not tell.
    """
    libc = ctypes.CDLL(None)
    if not _state["keeps"] or not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _MallInfo
    return int(libc.mallinfo2().fordblks)


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
    # `getrusage` counts what the process had before it was replaced by this program.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)
