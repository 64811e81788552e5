"""What differs between the versions and the builds of PETSc and SLEPc, behind one interface.

The versions are 3.18 and later. The builds have scalars in double or in single precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray


def set_entries(vector: Any, entries: NDArray[Any]) -> None:
    """Copy this rank's entries to a PETSc vector, rounded to PETSc's scalars. Not collective.

    Args:
        vector: The vector.
        entries: The entries, (d_local,), of any real dtype. petsc4py takes no float64 where
            PETSc is built in single precision.
    """
    from petsc4py import PETSc

    vector.setArray(np.asarray(entries, PETSc.ScalarType))


def set_dimensions(
    eps: Any, wanted: int, basis: int | None = None, projected: int | None = None
) -> None:
    """Set the sizes of an eigensolver; those that are None are SLEPc's to choose. Not collective.

    SLEPc up to 3.21 chooses sizes that are left out, and later versions keep the previous ones,
    which need not fit another method.

    Args:
        eps: The solver, of slepc4py.
        wanted: The number of wanted pairs, SLEPc's nev.
        basis: The most vectors of the basis, SLEPc's ncv.
        projected: The most vectors of the projected problem, SLEPc's mpd.
    """
    from petsc4py import PETSc

    sizes = (PETSc.DECIDE if size is None else size for size in (basis, projected))
    eps.setDimensions(wanted, *sizes)


def tao_reasons() -> Any:
    """Return the class of the reasons why TAO ended: ConvergedReason, or Reason before 3.22."""
    from petsc4py import PETSc

    found = getattr(PETSc.TAO, "ConvergedReason", None)
    return PETSc.TAO.Reason if found is None else found


@contextmanager
def raising_petsc_errors() -> Iterator[None]:
    """Raise an error of PETSc as itself. Not collective.

    From version 3.26 on, slepc4py hides it as the cause of a SystemError.

    Yields:
        Nothing.

    Raises:
        SystemError: As the body raises it, with another cause.
    """
    from petsc4py import PETSc

    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, PETSc.Error):
            raise error.__cause__ from None
        raise
