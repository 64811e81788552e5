"""Memory that is not there has its own line, with how much was wanted, and a remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import PrescribedSpectrum

from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import petsc
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.shell import ShellMatrix
from hessdist.unforeseen import in_one_line, memory_shortage

PETSC_TEXT = """error code {code}
[0] EPSSetUp() at ./src/eps/interface/epssetup.c:323
[0] PetscMallocAlign() at ./src/sys/memory/mal.c:55
[0] Out of memory. Allocated: 0, Used by process: 143
[0] Memory requested 6400000000"""


def error_of(kind: str) -> BaseException:
    try:
        if kind == "numpy":
            np.empty(1 << 60, np.uint8)
        if kind == "torch":
            torch.empty(1 << 60, dtype=torch.uint8)
        if kind == "python":
            bytes(1 << 62)
    except (MemoryError, RuntimeError) as error:
        return error
    return RuntimeError(PETSC_TEXT.format(code=kind))


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("numpy", "1.00 EiB"),
        ("torch", "1.07e+09 GiB"),
        ("python", ""),
        ("55", "5.96 GiB"),
        ("3112", "5.96 GiB"),  # PETSc 3.18 gives the line's number in the place of its code
    ],
)
def test_an_allocation_that_fails_says_how_much_was_wanted(kind: str, wanted: str) -> None:
    line = in_one_line(error_of(kind))
    assert isinstance(line, InputError)
    assert line.what.startswith("the memory does not suffice")
    assert wanted in line.what
    assert "more ranks" in line.remedy


@pytest.mark.parametrize("text", ["allocate the weights", "memory format is not supported", ""])
def test_other_errors_are_no_shortage(text: str) -> None:
    assert memory_shortage(RuntimeError(text)) is None


def test_a_basis_beyond_the_memory_is_refused_before_it_is_made() -> None:
    operator = PrescribedSpectrum(np.linspace(-1, 1, 100))
    shell = ShellMatrix(operator, Ranks(), memory=10_000)
    with pytest.raises(InputError, match=r"vectors of 100 parameters need .* GiB a rank"):
        extreme_eigenpairs(shell, largest=2, smallest=1)
    assert shell.products == 0


def test_a_tolerance_that_is_infinite_is_refused() -> None:
    options = petsc.initialise()[0].Options()
    options.setValue("eps_tol", "inf")
    try:
        operator = PrescribedSpectrum(np.linspace(-1, 1, 100))
        with pytest.raises(InputError, match=r"-eps_tol inf is not finite|value inf"):
            extreme_eigenpairs(ShellMatrix(operator, Ranks()), largest=2, smallest=1)
    finally:
        options.delValue("eps_tol")
