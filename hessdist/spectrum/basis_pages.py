"""The pages of the Krylov basis: taken as the basis grows, and given back after the solve.

PETSc allocates the largest basis at once and writes zeros into it, so that all of it would be in
memory from the start, while most solves stop before they have filled it. In `lazily` the zeros come
from `calloc`, which takes fresh pages from the system; they cost memory at the first write only.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from hessdist.parallel.memory import fresh_zeros

_LARGE = 1 << 26  # bytes of a block that counts as a basis
_DONTNEED = 4  # of madvise, on Linux
_Allocate = ctypes.CFUNCTYPE(
    ctypes.c_int,  # PetscErrorCode
    ctypes.c_size_t,  # bytes
    ctypes.c_int,  # PetscBool: whether they are to be zero; some versions set the low byte only
    ctypes.c_int,  # line
    ctypes.c_void_p,  # name of the function
    ctypes.c_void_p,  # name of the file
    ctypes.POINTER(ctypes.c_void_p),
)


@contextmanager
def lazily() -> Iterator[None]:
    """Take pages of large blocks that PETSc allocates only when they are written. Not collective.

    It replaces PETSc's pointer to its allocator (`PetscTrMalloc`) within the block. Where that is
    not its usual allocator, as in builds for debugging, nothing is changed.

    Yields:
        Nothing.
    """
    from petsc4py import PETSc

    pointer = usual = None
    if platform.libc_ver()[0] == "glibc":  # of which PETSc's `free` takes every block
        library = ctypes.CDLL(PETSc.__file__)
        with suppress(ValueError, AttributeError):
            pointer = ctypes.c_void_p.in_dll(library, "PetscTrMalloc")
            usual = ctypes.cast(library.PetscMallocAlign, ctypes.c_void_p).value
    if pointer is None or pointer.value != usual or usual is None:
        yield
        return
    allocate = _Allocate(usual)

    def allocate_lazily(size: int, zero: int, line: int, function: Any, file: Any, to: Any) -> int:
        block = fresh_zeros(size) if zero & 0xFF and size >= _LARGE else None
        if block is None:
            return int(allocate(size, zero, line, function, file, to))
        to[0] = block
        return 0

    ours = _Allocate(allocate_lazily)
    pointer.value = ctypes.cast(ours, ctypes.c_void_p).value
    try:
        yield
    finally:
        pointer.value = usual


def fetch(basis: Any, begin: int, end: int) -> None:
    """Make all threads fetch the pages of some columns, which one thread would write first.

    The kernel fills a page with zeros at the first write. For 1 GiB this takes one thread 1 to 3 s
    on a virtual machine. The columns must be unused, because they are overwritten. Not collective.

    Args:
        basis: The basis, a `SLEPc.BV` in the memory of the host.
        begin: The first column.
        end: One after the last column.
    """
    for column in range(begin, end):
        vector = basis.getColumn(column)
        torch.from_numpy(vector.getArray()).zero_()
        basis.restoreColumn(column, vector)


def give_back(entries: Any) -> None:
    """Give the pages of an array back to the system; its values are lost. Not collective.

    Args:
        entries: A contiguous NumPy array of private memory, such as a column of a basis.
    """
    page, address = mmap.PAGESIZE, entries.ctypes.data
    begin = -(-address // page) * page
    size = (address + entries.nbytes) // page * page - begin
    if platform.system() == "Linux" and size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _DONTNEED)
