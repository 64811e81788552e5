"""The base class of all sections of the job file, and the types of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FilePath = Annotated[Path, Field(strict=False)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Steps = list[Count]
Operator = Literal["hessian", "gauss_newton", "empirical_fisher", "residual"]


class Section(BaseModel):
    """A table of the job file. Its keys are the fields, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,  # neither true nor "4" is a number
        protected_namespaces=(),  # keys may have names such as model_config
        use_attribute_docstrings=True,
    )


def distinct(section: Section, *names: str) -> None:
    """Refuse lists of a section that have the same value twice."""
    for name in names:
        values = getattr(section, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} has a value twice")
