"""The precision of the PETSc that the tests run on, from which tolerances follow."""

from __future__ import annotations

import numpy as np


def petsc_epsilon() -> float:
    """The rounding of PETSc's scalars: 2.2e-16, or 1.2e-7 of a build in single precision."""
    from hessdist.spectrum import petsc

    return float(np.finfo(petsc.initialise()[0].ScalarType).eps)


def within(tolerance: float, roundings: float = 20) -> float:
    """A tolerance for double precision, or as many roundings of PETSc's scalars if that is more."""
    return max(tolerance, roundings * petsc_epsilon())
