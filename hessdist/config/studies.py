"""The registry of studies: those of hessdist, and those of installed packages.

A study is declared by an object with a name and a class of settings, as `hessdist.studies.base`
defines it. It lives in a package that has them in a tuple `STUDIES`. The registry knows such
packages by name, so that this room imports none of them.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from hessdist.errors import DependencyError

BUILT_IN = (
    "hessdist.studies.negative_curvature",
    "hessdist.studies.stability",
    "hessdist.studies.class_structure",
    "hessdist.studies.sharpness",
    "hessdist.studies.singularity",
    "hessdist.studies.paths",
    "hessdist.studies.eigenspaces",
    "hessdist.studies.debugging",
    "hessdist.studies.random_matrices",
)
ENTRY_POINTS = "hessdist.studies"  # the group by which packages add studies


@lru_cache
def registry() -> dict[str, Any]:
    """The declared studies by name, in the order in which they are computed and shown.

    Returns:
        Instances of `hessdist.studies.base.Study`.

    Raises:
        DependencyError: An installed package cannot be imported, or takes a name that is in use.
    """
    found: dict[str, Any] = {}
    for module in BUILT_IN:
        found |= {study.name: study for study in import_module(module).STUDIES}
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            declared = entry.load()
            added = {study.name: study for study in declared}
        except Exception as error:
            raise DependencyError(
                f"the studies of {entry.value} cannot be loaded ({type(error).__name__}: {error})",
                "correct or uninstall the package",
            ) from error
        if taken := sorted(set(added) & set(found)):
            raise DependencyError(
                f"{entry.value} declares the study '{taken[0]}', which exists already",
                "rename it in that package",
            )
        found |= added
    return found
