"""PETSc and SLEPc: initialised once, with the command line's options, and checked."""

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

_SPIN = "10"  # 2^10 cycles; OpenBLAS's default is 2^26
_INSTALL = (
    "install petsc4py and slepc4py of one version, with real scalars (Debian: "
    "python3-petsc4py-real python3-slepc4py-real; conda-forge: 'petsc=*=real*' slepc4py) and see "
    "`hessdist doctor`"
)


def require() -> None:
    """Find out whether petsc4py and slepc4py are there, without initialising them. Not collective.

    Raises:
        DependencyError: One is missing.
    """
    for name in ("petsc4py", "slepc4py"):
        if find_spec(name) is None:
            raise DependencyError(f"{name} is not installed for {sys.executable}", _INSTALL)


def initialise(options: Sequence[str] = ()) -> Any:
    """Initialise PETSc and SLEPc; the options of the first call count. Collective.

    Args:
        options: Words of the command line, such as ("-eps_ncv", "60").

    Returns:
        The modules `petsc4py.PETSc` and `slepc4py.SLEPc`.

    Raises:
        DependencyError: One is missing, they do not fit together, or scalars are complex.
        InputError: PETSc refuses an option of its own start.
    """
    # OpenBLAS, which reads this when it is loaded, lets its threads spin for some 30 ms after every
    # call, on the cores that the next product needs.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", _SPIN)
    errors: list[str] = []
    try:
        if "petsc4py.PETSc" not in sys.modules:
            import petsc4py

            # PETSc's handler writes pages about signals that only mean to end the program.
            # Where MPI takes no device memory, a PETSc with CUDA wants to be told, or ends the run.
            aware = str(int(mpi_takes_device_memory()))
            ours = ("-no_signal_handler", "-use_gpu_aware_mpi", aware)
            with _collected_errors() as errors:
                petsc4py.init(["hessdist", *ours, *options])
        from petsc4py import PETSc

        if "slepc4py.SLEPc" not in sys.modules:
            import slepc4py

            slepc4py.init()
        from slepc4py import SLEPc
    except RuntimeError as error:  # PETSc's own, before its name can be imported
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
    """What is wrong with a PETSc build's number types; empty where they serve.

    Args:
        scalar: `PETSc.ScalarType`.
        integer: `PETSc.IntType`.

    Returns:
        One line, or nothing.
    """
    if np.dtype(scalar) not in (np.dtype(np.float64), np.dtype(np.float32)):
        return f"PETSc is built with {np.dtype(scalar).name} scalars, and hessdist needs real ones"
    if np.dtype(integer) not in (np.dtype(np.int32), np.dtype(np.int64)):
        return f"PETSc is built with {np.dtype(integer).name} integers"
    return ""


def require_scalapack() -> None:
    """Find out whether PETSc has ScaLAPACK. Not collective.

    Raises:
        DependencyError: It has not.
    """
    from petsc4py import PETSc

    if not PETSc.Sys.hasExternalPackage("scalapack"):
        raise DependencyError(
            "PETSc is built without ScaLAPACK",
            "run on one rank, or use a PETSc with it (Debian's; --download-scalapack)",
        )


def check_dimension(dimension: int) -> None:
    """Refuse a problem that PETSc's integers cannot count.

    Args:
        dimension: the dimension d.

    Raises:
        InputError: d does not fit.
    """
    from petsc4py import PETSc

    largest = np.iinfo(PETSc.IntType).max
    if dimension > largest:
        raise InputError(
            f"{dimension} parameters are more than PETSc's {np.dtype(PETSc.IntType).name} counts",
            "use a PETSc built with 64-bit integers (--with-64-bit-indices)",
        )


def scalar_bytes() -> int:
    """Bytes of a number of PETSc's. Not collective."""
    from petsc4py import PETSc

    return np.dtype(PETSc.ScalarType).itemsize


def integer_option(name: str, default: int) -> int:
    """An option of the command line, such as eps_ncv, or `default` where it is not given."""
    from petsc4py import PETSc

    return int(PETSc.Options().getInt(name, default))


def ineffective_options(options: Sequence[str]) -> list[str]:
    """Options of the command line that a solve here overrules or cannot use. Not collective.

    Args:
        options: Words of the command line.

    Returns:
        A warning for each, with its reason.
    """
    return [f"warning: {text}" for text in ineffective(filter(is_option, options))]


def unused_options(options: Sequence[str]) -> list[str]:
    """Options of the command line that no PETSc object has asked for. Not collective.

    Args:
        options: Words of the command line.

    Returns:
        Names, with their dash, but for those that `ineffective_options` tells of.
    """
    from petsc4py import PETSc

    # petsc4py has no call for it before 3.19; the library that it has loaded does.
    asked = ctypes.CDLL(PETSc.__file__).PetscOptionsUsed
    asked.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int)]
    unused = []
    for word in filter(is_option, options):
        used = ctypes.c_int(0)
        asked(None, word[1:].encode(), ctypes.byref(used))
        if not used.value and word[1:] not in WITHOUT_EFFECT:
            unused.append(word)
    return unused


def is_option(word: str) -> bool:
    """Whether a word of the command line is the name of a PETSc option: -eps_ncv, -log_view."""
    return len(word) > 2 and word[0] == "-" and word[1].isalpha()
