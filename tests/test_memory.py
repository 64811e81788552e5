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


ONE_THREAD = """
import resource, torch
from hessdist.parallel.memory import keep_freed_memory, touch
keep_freed_memory()
size = 500 << 20
if {touched}:
    touch(size + (1 << 16))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(size, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
@pytest.mark.parametrize(("touched", "few"), [(False, False), (True, True)])
def test_a_touched_block_is_there_for_the_next_allocation(touched: bool, few: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_THREAD.format(touched=touched)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert (int(done.stdout) < 1000) is few


def test_the_peak_covers_what_was_used() -> None:
    block = bytearray(200 << 20)
    block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    assert peak_bytes() >= 200 << 20
