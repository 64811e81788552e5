"""When a CUDA tensor may be given to MPI as it is."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import mpi4py
import pytest
from mpi4py import MPI

from hessdist.parallel.gpu_aware import OVERRIDE, mpi4py_takes_tensors, mpi_takes_device_memory

OPEN_MPI = "Open MPI v5.0.3, package: Open MPI root@node, ident: 5.0.3"
MPICH = "MPICH Version:      4.2.1\nMPICH ABI:          16:1:4"
CRAY = "MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)"
MVAPICH2 = "MVAPICH2 Version      :\t2.3.7"
INTEL = "Intel(R) MPI Library 2021.11 for Linux* OS"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (OVERRIDE, "MPICH_GPU_SUPPORT_ENABLED", "MV2_USE_CUDA"):
        monkeypatch.delenv(name, raising=False)


def use(monkeypatch: pytest.MonkeyPatch, said: str, **functions: Any) -> None:
    """Have mpi4py stand on another library, which exports these functions."""
    monkeypatch.setattr(MPI, "Get_library_version", lambda: said)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace(**functions))


def gpu_query(status: int, answer: int) -> Any:
    def query(kind: int, result: Any) -> int:
        assert kind == 0
        result._obj.value = answer
        return status

    return query


def test_the_library_here_takes_none() -> None:
    assert not mpi_takes_device_memory()


@pytest.mark.parametrize(("answer", "expected"), [(1, True), (0, False), (-1, False)])
def test_open_mpi_is_asked(monkeypatch: pytest.MonkeyPatch, answer: int, expected: bool) -> None:
    use(monkeypatch, OPEN_MPI, MPIX_Query_cuda_support=lambda: answer)
    assert mpi_takes_device_memory() is expected


@pytest.mark.parametrize(
    ("status", "answer", "expected"), [(0, 1, True), (0, 0, False), (1, 1, False)]
)
def test_mpich_is_asked(
    monkeypatch: pytest.MonkeyPatch, status: int, answer: int, expected: bool
) -> None:
    use(monkeypatch, MPICH, MPIX_GPU_query_support=gpu_query(status, answer))
    assert mpi_takes_device_memory() is expected


@pytest.mark.parametrize("said", [OPEN_MPI, MPICH, INTEL])
def test_a_library_that_cannot_be_asked_takes_none(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    use(monkeypatch, said)
    monkeypatch.setenv("MPICH_GPU_SUPPORT_ENABLED", "1")  # it is Cray's
    monkeypatch.setenv("MV2_USE_CUDA", "1")
    assert not mpi_takes_device_memory()


def test_a_library_that_cannot_be_opened_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise OSError(path)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert not mpi_takes_device_memory()


@pytest.mark.parametrize(
    ("said", "switch"), [(CRAY, "MPICH_GPU_SUPPORT_ENABLED"), (MVAPICH2, "MV2_USE_CUDA")]
)
def test_others_are_switched_on_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, said: str, switch: str
) -> None:
    use(monkeypatch, said, MPIX_Query_cuda_support=lambda: 1)
    assert not mpi_takes_device_memory()
    monkeypatch.setenv(switch, "0")
    assert not mpi_takes_device_memory()
    monkeypatch.setenv(switch, "1")
    assert mpi_takes_device_memory()


def test_an_old_mpi4py_passes_no_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, OPEN_MPI, MPIX_Query_cuda_support=lambda: 1)
    monkeypatch.setattr(mpi4py, "__version__", "3.0.3")
    assert not mpi_takes_device_memory()


def test_before_mpi_is_initialised_and_after_it_is_finalised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, OPEN_MPI, MPIX_Query_cuda_support=lambda: 1)
    with monkeypatch.context() as early:
        early.setattr(MPI, "Is_initialized", lambda: False)
        assert not mpi_takes_device_memory()
    monkeypatch.setattr(MPI, "Is_finalized", lambda: True)
    assert not mpi_takes_device_memory()


@pytest.mark.parametrize(
    ("version", "expected"),
    [("3.0.3", False), ("3.1.0", True), ("3.1.4", True), ("4.0.0rc1", True), ("main", False)],
)
def test_releases_of_mpi4py(version: str, expected: bool) -> None:
    assert mpi4py_takes_tensors(version) is expected


@pytest.mark.parametrize("answer", [0, 1])
def test_the_override_has_the_last_word(monkeypatch: pytest.MonkeyPatch, answer: int) -> None:
    use(monkeypatch, OPEN_MPI, MPIX_Query_cuda_support=lambda: answer)
    monkeypatch.setenv(OVERRIDE, str(1 - answer))
    assert mpi_takes_device_memory() is bool(1 - answer)
    monkeypatch.setenv(OVERRIDE, "perhaps")  # no answer
    assert mpi_takes_device_memory() is bool(answer)
