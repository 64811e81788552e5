"""Initialisation of PETSc and SLEPc with the command line's options, and checks of their builds."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from hessdist.errors import DependencyError, InputError
from hessdist.parallel.gpu_aware import mpi_takes_device_memory
from hessdist.spectrum.eps_options import WITHOUT_EFFECT, ineffective

_INSTALL = (
    "install petsc4py and slepc4py of one version, with real scalars (Debian: "
    "python3-petsc4py-real python3-slepc4py-real; conda-forge: 'petsc=*=real*' slepc4py) and see "
    "`hessdist doctor`"
)


def require() -> None:
    """Check that petsc4py and slepc4py are installed, without initialising them. Not collective.

    Raises:
        DependencyError: A package is missing.
    """
    for name in ("petsc4py", "slepc4py"):
        if find_spec(name) is None:
            raise DependencyError(f"{name} is not installed for {sys.executable}", _INSTALL)


def initialise(options: Sequence[str] = ()) -> Any:
    """Initialise PETSc and SLEPc; only the options of the first call have an effect. Collective.

    Args:
        options: The words of the command line, such as ("-eps_ncv", "60").

    Returns:
        The modules `petsc4py.PETSc` and `slepc4py.SLEPc`.

    Raises:
        DependencyError: A package is missing, they do not fit together, or scalars are complex.
        InputError: PETSc refuses an option at its start.
    """
    # OpenBLAS reads this when it is loaded. By default its threads spin for 2^26 cycles, 30 ms,
    # after every call, on the cores that the next product needs.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")
    errors: list[str] = []
    try:
        if "petsc4py.PETSc" not in sys.modules:
            import petsc4py

            # PETSc's handler writes pages about signals that only end the program. Without this
            # option a PETSc with CUDA ends the run if MPI cannot send device memory.
            aware = str(int(mpi_takes_device_memory()))
            ours = ("-no_signal_handler", "-use_gpu_aware_mpi", aware)
            with _collected_errors() as errors:
                petsc4py.init(["hessdist", *ours, *options])
        from petsc4py import PETSc

        if "slepc4py.SLEPc" not in sys.modules:
            import slepc4py

            slepc4py.init()
        from slepc4py import SLEPc
    except RuntimeError as error:  # an error of PETSc before its class can be imported
        said = _reason(errors) or " ".join(str(error).split())
        raise InputError(
            f"PETSc does not start with these options ({said})", "correct PETSc's options"
        ) from error
    except ImportError as error:
        raise DependencyError(f"PETSc or SLEPc cannot be imported ({error})", _INSTALL) from error
    problem = scalar_problem(PETSc.ScalarType, PETSc.IntType)
    if problem:
        raise DependencyError(problem, _INSTALL)
    return PETSc, SLEPc


@contextmanager
def _collected_errors() -> Iterator[list[str]]:
    """Collect what PETSc writes to standard error in the block, and pass it on if all goes well.

    PETSc writes pages about an error of its start, before petsc4py can turn it into an exception.

    Yields:
        The lines, after an error.
    """
    lines: list[str] = []
    sys.stderr.flush()
    with TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        except BaseException:
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
        file.seek(0)
        sys.stderr.write(file.read().decode(errors="replace"))


def _reason(lines: Sequence[str]) -> str:
    """The sentence in which PETSc says what is wrong; it follows a line about the kind of error."""
    said = [line.split("PETSC ERROR: ", 1)[1] for line in lines if "PETSC ERROR: " in line]
    said = [line for line in said if not line.startswith(("-----", "See https", "#"))]
    return " ".join(said[1].split()) if len(said) > 1 else ""


def scalar_problem(scalar: Any, integer: Any) -> str:
    """Describe why a PETSc build's number types cannot be used.

    Args:
        scalar: The type `PETSc.ScalarType`.
        integer: The type `PETSc.IntType`.

    Returns:
        One line; empty if they can be used.
    """
    if np.dtype(scalar) not in (np.dtype(np.float64), np.dtype(np.float32)):
        return (
            f"PETSc is built with {np.dtype(scalar).name} scalars, and hessdist needs real ones in "
            "single or double precision"
        )
    if np.dtype(integer) not in (np.dtype(np.int32), np.dtype(np.int64)):
        return f"PETSc is built with {np.dtype(integer).name} integers"
    return ""


def require_scalapack() -> None:
    """Check that PETSc has ScaLAPACK in float64. Not collective.

    Raises:
        DependencyError: PETSc has no ScaLAPACK, or is built in single precision.
    """
    from petsc4py import PETSc

    if scalar_bytes() < 8:
        raise DependencyError(
            "an exact spectrum by ScaLAPACK takes float64, and PETSc is built in single precision",
            "let it be LAPACK's on nodes with more memory, or use a PETSc in double precision",
        )
    if not PETSc.Sys.hasExternalPackage("scalapack"):
        raise DependencyError(
            "PETSc is built without ScaLAPACK",
            "run on one rank, or use a PETSc with it (Debian's; --download-scalapack)",
        )


def check_dimension(dimension: int) -> None:
    """Refuse a problem that is too large for PETSc's integers.

    Args:
        dimension: The dimension d.

    Raises:
        InputError: The dimension is too large.
    """
    from petsc4py import PETSc

    largest = np.iinfo(PETSc.IntType).max
    if dimension > largest:
        raise InputError(
            f"{dimension} parameters are more than PETSc's {np.dtype(PETSc.IntType).name} counts",
            "use a PETSc built with 64-bit integers (--with-64-bit-indices)",
        )


def scalar_bytes() -> int:
    """Return the bytes of one of PETSc's numbers. Not collective."""
    from petsc4py import PETSc

    return np.dtype(PETSc.ScalarType).itemsize


def integer_option(name: str, default: int) -> int:
    """Return an option of the command line, such as eps_ncv, or `default` if it is not set."""
    from petsc4py import PETSc

    return int(PETSc.Options().getInt(name, default))


def basis_options(wanted: int, dimension: int) -> tuple[int, int] | None:
    """Return the sizes of the basis that options of the command line set, as SLEPc has them.

    Not collective.

    Args:
        wanted: The number of wanted eigenpairs.
        dimension: The dimension d.

    Returns:
        The sizes after the first cycle and at most; None if no option sets them.
    """
    ncv, mpd = integer_option("eps_ncv", 0), integer_option("eps_mpd", 0)
    if ncv <= 0 and mpd <= 0:
        return None
    most = min(dimension, ncv if ncv > 0 else wanted + mpd)
    return min(most, mpd if mpd > 0 else most), most


def ineffective_options(options: Sequence[str]) -> list[str]:
    """Find options of the command line that a solve overrides or cannot use. Not collective.

    Args:
        options: The words of the command line.

    Returns:
        A warning for each option, with the reason.
    """
    return [f"warning: {text}" for text in ineffective(filter(is_option, options))]


def unused_options(options: Sequence[str]) -> list[str]:
    """Find options of the command line that no PETSc object has read. Not collective.

    Args:
        options: The words of the command line.

    Returns:
        The names with their dash, without those of `ineffective_options`.
    """
    from petsc4py import PETSc

    # petsc4py before 3.19 has no function for this, but the library that it has loaded has.
    is_used = ctypes.CDLL(PETSc.__file__).PetscOptionsUsed
    is_used.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)]
    unused = []
    for word in filter(is_option, options):
        used = ctypes.c_int(0)
        is_used(None, word[1:].encode(), ctypes.byref(used))
        if not used.value and word[1:] not in WITHOUT_EFFECT:
            unused.append(word)
    return unused


def is_option(word: str) -> bool:
    """Return whether a word is the name of a PETSc option, such as -eps_ncv or -log_view."""
    return len(word) > 2 and word[0] == "-" and word[1].isalpha()
