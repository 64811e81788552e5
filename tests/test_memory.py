"""What the C library keeps, as a process of its own sees it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from hessdist.parallel.memory import keep_freed_memory, peak_bytes

FAULTS = """
import resource, torch
from hessdist.parallel.memory import keep_freed_memory
assert keep_freed_memory() is {expected}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # aligned blocks take some rounds to settle in the holes that they leave
    torch.ones(40 << 20)
before = faults()
for _ in range(5):
    torch.ones(40 << 20)
print(faults() - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")


def count_faults(expected: bool, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(expected=expected)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@glibc
def test_freed_blocks_are_used_again_without_fresh_pages() -> None:
    assert count_faults(True) < 100


@glibc
def test_the_users_own_setting_wins() -> None:
    assert count_faults(False, MALLOC_MMAP_THRESHOLD_="1048576") > 1000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


FRESH = """
import ctypes, numpy
from hessdist.parallel.memory import (
    fresh_array, fresh_zeros, keep_freed_memory, resident_bytes, reusable_bytes
)
keep_freed_memory()
size = 400 << 20
before = resident_bytes()
block = fresh_zeros(size)
array = fresh_array((4, size // 16), numpy.dtype(numpy.float32))
assert resident_bytes() - before < 8 << 20
assert not array[::2, :: 1 << 12].any()
ctypes.memset(block, 1, 100 << 20)
array[0] = 1
assert 195 << 20 < resident_bytes() - before < 230 << 20
libc = ctypes.CDLL(None)
libc.free.argtypes = [ctypes.c_void_p]
libc.free(block)
del array
assert resident_bytes() - before < 8 << 20  # all of it is given back
kept = numpy.ones(size, numpy.uint8)
assert reusable_bytes() < size // 2
del kept
assert reusable_bytes() > size // 2  # for later blocks
"""


@glibc
def test_fresh_pages_take_memory_at_the_first_write_and_are_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_peak_covers_what_was_used() -> None:
    block = bytearray(200 << 20)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    assert peak_bytes() >= 200 << 20
