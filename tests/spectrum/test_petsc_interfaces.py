"""What differs between versions and builds of PETSc and SLEPc."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import petsc
from hessdist.spectrum.petsc_interfaces import (
    raising_petsc_errors,
    set_dimensions,
    set_entries,
    tao_reasons,
)


@pytest.fixture
def modules() -> tuple[Any, Any]:
    return petsc.initialise()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_entries_of_either_precision(modules: tuple[Any, Any], dtype: type) -> None:
    vector = modules[0].Vec().createMPI((3, 3), comm=Ranks().comm)
    set_entries(vector, np.array([0.5, -2, 1], dtype))
    assert vector.getArray().tolist() == [0.5, -2, 1]
    vector.destroy()


def test_sizes_that_are_left_out_are_slepcs_to_choose(modules: tuple[Any, Any]) -> None:
    eps = modules[1].EPS().create(Ranks().comm)
    undecided = eps.getDimensions()[1:]
    set_dimensions(eps, 3, 40, 20)
    assert tuple(eps.getDimensions()) == (3, 40, 20)
    set_dimensions(eps, 5)
    assert eps.getDimensions()[0] == 5
    assert tuple(eps.getDimensions()[1:]) == tuple(undecided)
    eps.destroy()


def test_the_reasons_of_tao_have_their_names(
    modules: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("CONVERGED_GATOL", "DIVERGED_USER", "DIVERGED_LS_FAILURE", "DIVERGED_MAXFCN")
    assert all(hasattr(tao_reasons(), name) for name in names)
    later = SimpleNamespace(TAO=SimpleNamespace(ConvergedReason="later"))
    monkeypatch.setattr("petsc4py.PETSc", later)
    assert tao_reasons() == "later"


def test_a_hidden_error_of_petsc_is_raised_as_itself(modules: tuple[Any, Any]) -> None:
    hidden = modules[0].Error(55)
    with pytest.raises(modules[0].Error) as raised, raising_petsc_errors():
        raise SystemError("returned a result with an exception set") from hidden
    assert raised.value is hidden
    with pytest.raises(SystemError), raising_petsc_errors():
        raise SystemError("of another kind") from ValueError("x")
