"""Whether the MPI library in use takes pointers to a GPU's memory."""

from __future__ import annotations

import ctypes
import os
from typing import Any

OVERRIDE = "HESSDIST_GPU_AWARE_MPI"
"""The environment variable, 0 or 1, that has the last word."""

# Libraries that take device memory if they are told to before they start, by a word of what they
# say of themselves. Cray's, with the switch on, does not start at all where it cannot.
_SWITCHES = {"cray": "MPICH_GPU_SUPPORT_ENABLED", "mvapich2": "MV2_USE_CUDA"}
_MPIX_GPU_SUPPORT_CUDA = 0  # MPICH's mpi.h


def mpi_takes_device_memory() -> bool:
    """Whether a CUDA tensor may be given to MPI as it is. Not collective.

    `HESSDIST_GPU_AWARE_MPI` in the environment, 0 or 1, overrides what is found. Where anything is
    doubtful the answer is no: a library that cannot follow the pointer ends the process.

    Returns:
        Whether mpi4py and the MPI library below it take device memory.
    """
    given = os.environ.get(OVERRIDE, "")
    if given in ("0", "1"):
        return given == "1"
    try:
        import mpi4py
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return False
    if not mpi4py_takes_tensors(mpi4py.__version__):
        return False
    if not MPI.Is_initialized() or MPI.Is_finalized():
        return False
    said = MPI.Get_library_version().lower()
    for word, switch in _SWITCHES.items():
        if word in said:
            return os.environ.get(switch) == "1"
    try:
        library = ctypes.CDLL(MPI.__file__)  # loaded already: this finds it, with its libmpi
        return _says_yes(library, said)
    except (OSError, AttributeError, TypeError):  # no extension module, or no such function in it
        return False


def mpi4py_takes_tensors(version: str) -> bool:
    """Whether this release of mpi4py takes CUDA tensors as buffers: from 3.1 on. Not collective."""
    numbers = version.split(".")[:2]
    return all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) >= (3, 1)


def _says_yes(library: Any, said: str) -> bool:
    """What a library that can be asked says of its build and of this run."""
    if "open mpi" in said:
        return bool(library.MPIX_Query_cuda_support() == 1)
    if "mpich" in said:  # its MPIX_Query_cuda_support ends the process in some releases
        yes = ctypes.c_int(0)
        status = library.MPIX_GPU_query_support(_MPIX_GPU_SUPPORT_CUDA, ctypes.byref(yes))
        return bool(status == 0 and yes.value == 1)
    return False
