"""The wheel, the archive of the source, and the packages of conda-forge and Spack."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from written import write_run

import hessdist

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ROOT / "slurm" / "packages"
OTHER_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
"""Names of conda-forge, and those of PyPI."""

Bounds = dict[str, str]


def declared(*extras: str) -> Bounds:
    """The lowest versions of the packages that hessdist takes, with the extras."""
    found: Bounds = {}
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][name] for name in extras)]
    for requirement in (word for words in lists for word in words):
        if inner := re.fullmatch(r"hessdist\[([\w,]+)\]", requirement):
            found |= declared(*inner.group(1).split(","))
        else:
            found |= bounds_of(requirement)
    return found


def bounds_of(requirement: str) -> Bounds:
    """The name and the lowest version of `name>=1.2` or `name >=1.2`."""
    matched = re.fullmatch(r"([\w.-]+) ?(?:>=([\d.]+))?", requirement)
    assert matched, requirement
    name = matched.group(1)
    return {OTHER_NAMES.get(name, name): matched.group(2) or ""}


def without_builds(requirements: list[str]) -> Bounds:
    """Bounds of conda's requirements, without Python, pip and those that choose a build."""
    found: Bounds = {}
    for requirement in requirements:
        if "*" not in requirement and requirement not in ("pip", "mpich"):
            found |= bounds_of(requirement)
    assert found.pop("python") == PROJECT["requires-python"].removeprefix(">=")
    return found


# -- wheels ----------------------------------------------------------------------------------


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel")
    (wheel,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = archive.read(metadata).decode()
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hessdist").rglob("*.*")}
    ours = {name for name in ours if "__pycache__" not in name}
    assert {name for name in names if not name.startswith("hessdist-")} == ours
    for suffix in ("html", "js", "css"):
        assert f"hessdist/present/page.{suffix}" in names
    assert f"Version: {hessdist.__version__}\n" in said
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert Path(wheel).stat().st_size < 1_500_000


def test_mpi_is_all_that_solving_takes() -> None:
    wanted = {"mpi4py", "petsc4py", "slepc4py", "h5py", "torch", "threadpoolctl", "scikit-learn"}
    assert wanted <= set(declared("mpi"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the archive of the source, built by pip's own ways."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("archives")
    words = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode and "hatchling" in done.stdout + done.stderr:
        pytest.skip("hatchling cannot be had: no network")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_archives_pass_the_check_of_an_index(archives: Path) -> None:
    pytest.importorskip("twine")
    files = sorted(map(str, archives.iterdir()))
    words = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2
    (source,) = archives.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"hessdist/present/page.html", "LICENSE", "README.md", "pyproject.toml"} <= names
    assert not [name for name in names if name.startswith((".venv", "results", "data"))]


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(archives: Path, tmp_path: Path) -> None:
    """It shows, draws and reports a result without MPI, PETSc and PyTorch."""
    (wheel,) = archives.glob("*.whl")
    venv.create(tmp_path / "empty", with_pip=True)
    programs = tmp_path / "empty" / "bin"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, words)), cwd=tmp_path, env=clean,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = run(
        programs / "python", "-m", "pip", "install", "-q", f"hessdist[report] @ {wheel.as_uri()}"
    )
    if "onnection" in done.stderr or "No matching distribution" in done.stderr:
        pytest.skip("packages cannot be had: no network")
    assert done.returncode == 0, done.stderr
    assert run(programs / "python", "-c", "import mpi4py").returncode == 1
    write_run(tmp_path / "run.h5", steps=2)
    version = run(programs / "hessdist", "--version")
    assert version.stdout == f"hessdist {hessdist.__version__}\n"
    for command in ("show", "plot", "report"):
        done = run(programs / "hessdist", command, "run.h5")
        assert done.returncode == 0, done.stderr
    (page,) = (path for path in tmp_path.rglob("*.html") if "empty" not in path.parts)
    assert "</html>" in page.read_text(encoding="utf-8")
    done = run(programs / "hessdist", "spectrum", "run.h5")
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1


# -- conda-forge and Spack -------------------------------------------------------------------


def test_the_environment_of_conda_is_that_of_the_project() -> None:
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((PACKAGES / "environment.yml").read_text(encoding="utf-8"))
    assert content["channels"] == ["conda-forge"]
    assert "petsc=*=real*" in content["dependencies"]
    assert without_builds(content["dependencies"]) == declared("mpi")


def test_the_recipe_of_conda_is_that_of_the_project() -> None:
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((PACKAGES / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
    assert content["package"] == {"name": PROJECT["name"], "version": hessdist.__version__}
    assert (PACKAGES / "conda" / content["source"]["path"]).resolve() == ROOT
    script = PROJECT["scripts"]["hessdist"]
    assert content["build"]["python"]["entry_points"] == [f"hessdist = {script}"]
    assert "petsc * real*" in content["requirements"]["run"]
    assert without_builds(content["requirements"]["run"]) == declared("mpi")
    assert (ROOT / content["about"]["license_file"]).is_file()
    assert content["about"]["summary"] == PROJECT["description"]


def spack_words(node: ast.AST, function: str) -> list[str]:
    """The first words of all calls of a directive below a node, with the variant they are for."""
    calls = [part for part in ast.walk(node) if isinstance(part, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == function]
    return [ast.literal_eval(call.args[0]) for call in named]


def spack_bounds(words: list[str]) -> Bounds:
    """Bounds of `py-name@1.2:`; words without a version say how a package is built."""
    matches = [re.fullmatch(r"py-([\w-]+)@([\d.]+):", word) for word in words]
    return {found.group(1): found.group(2) for found in matches if found}


def test_the_package_of_spack_is_that_of_the_project() -> None:
    tree = ast.parse((PACKAGES / "spack" / "package.py").read_text(encoding="utf-8"))
    (package,) = (part for part in tree.body if isinstance(part, ast.ClassDef))
    assert package.name == "PyHessdist"
    assert spack_words(package, "version") == [hessdist.__version__]
    conditions: dict[str, Any] = {}
    for part in ast.walk(package):
        if isinstance(part, ast.With):
            for variant in spack_words(part.items[0].context_expr, "when"):
                conditions[variant] = part
    core = set(declared())
    for variant in ("mpi", "language", "report", "xarray"):
        found = spack_bounds(spack_words(conditions[f"+{variant}"], "depends_on"))
        wanted = declared(variant)
        assert found == {name: bound for name, bound in wanted.items() if name not in core}
    everything = spack_words(package, "depends_on")
    assert {*declared().items()} <= {*spack_bounds(everything).items()}
    assert f"python@{PROJECT['requires-python'].removeprefix('>=')}:" in everything
    assert "petsc~complex" in everything
    assert set(conditions) <= {f"+{name}" for name in spack_words(package, "variant")}
