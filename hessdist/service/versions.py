"""Versions of the libraries that numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def library_versions() -> Mapping[str, str]:
    """Versions of the libraries that numbers depend on, by lower-case name. Not collective."""
    import h5py
    import petsc4py
    import slepc4py

    from hessdist.parallel.ranks import import_mpi

    mpi = import_mpi()
    return {
        "torch": str(torch.__version__),  # a subclass of str
        "petsc": petsc4py.__version__,
        "slepc": slepc4py.__version__,
        "mpi": mpi.Get_library_version().split("\n")[0].split(",")[0].strip("\0"),
        "hdf5": h5py.version.hdf5_version,
    }
