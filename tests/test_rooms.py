"""What a room may import, where import-linter (`make check`) cannot say it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hessdist

PACKAGE = Path(hessdist.__file__).parent
SHOWS = ("settings", "figures", "tables", "page", "remarks", "histograms")
WITHOUT = """
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {without!r}:
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Missing())
for module in {modules!r}:
    importlib.import_module(module)
"""


def modules_of(*places: str) -> list[str]:
    """Names of the modules in rooms, or of single modules."""
    paths = [
        p for place in places for p in [PACKAGE / f"{place}.py", *PACKAGE.glob(f"{place}/**/*.py")]
    ]
    found = [path.relative_to(PACKAGE.parent).with_suffix("") for path in paths if path.exists()]
    return [".".join(path.parts).removesuffix(".__init__") for path in found]


def import_without(modules: list[str], *without: str) -> None:
    code = WITHOUT.format(modules=modules, without=set(without))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_shown_needs_neither_torch_nor_mpi() -> None:
    """The job file, results, figures, tables and the page, of every study."""
    shows = [name for name in modules_of("studies") if name.split(".")[-1].endswith(SHOWS)]
    assert len(shows) > 15
    rooms = modules_of(
        "__init__", "config", "results", "present", "export", "studies/base", "studies/shows"
    )
    declared = [
        f"hessdist.studies.{path.parent.name}" for path in PACKAGE.glob("studies/*/__init__.py")
    ]
    import_without([*rooms, *declared, *shows], "torch", "mpi4py", "petsc4py", "slepc4py")


def test_the_python_interface_needs_no_job_file() -> None:
    """Nor a library for it, nor what draws and prints."""
    import_without(["hessdist.api"], "pydantic", "tomlkit", "typer", "rich", "matplotlib")


def test_results_need_h5py_and_numpy_alone() -> None:
    results = [name for name in modules_of("results") if name != "hessdist.results.compare"]
    without = ("torch", "mpi4py", "petsc4py", "pydantic", "tomlkit", "typer", "rich", "matplotlib")
    import_without(["hessdist", *results], *without, "scipy", "xarray", "pandas")


def test_callbacks_import_a_trainer_or_mpi_when_they_are_used() -> None:
    names = [name for name in modules_of("callbacks") if not name.endswith(("solves", "place"))]
    import_without(names, "transformers", "accelerate", "lightning", "mpi4py", "petsc4py")
    import_without(["hessdist.callbacks"], "torch", "pydantic")


def test_every_declared_function_is_there() -> None:
    """Studies name their functions; each is imported when it is called."""
    from importlib import import_module

    from hessdist.config.studies import registry

    hooks = ("compute", "check", "prepare", "determined_by", "remarks", "figures", "tables", "page",
             "histograms")  # fmt: skip
    for study in registry().values():
        named = [getattr(study, hook) for hook in hooks] + [study.needs.options]
        for name in filter(None, named):
            module, _, function = name.partition(":")
            assert callable(getattr(import_module(module), function)), name
