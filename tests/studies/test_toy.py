"""A study of a package of its own: installed, computed on two ranks, and shown everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import h5py
import numpy as np
import pytest

import hessdist

TOY = Path(__file__).parent / "toy"
JOB = """
name = "toy"
[model]
factory = "mlp"
arguments = { widths = [2, 4, 2] }
[data]
dataset = "blobs"
arguments = { samples = 40 }
[training]
steps = 20
checkpoint_steps = [0, 20]
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 2
smallest = 2
tolerance = 1e-6
[compute]
dtype = "float64"
workers = 0
[output]
path = "run.h5"
[study.gradient_curvature]
scale = 2.0
"""
Run = Callable[..., CompletedProcess[str]]


def install(package: Path, target: Path) -> dict[str, str]:
    """Install a package into a folder, and return the environment that has it."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(target), str(package)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    paths = [str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("toy")
    return install(shutil.copytree(TOY, folder / "source"), folder / "installed")


def test_it_is_computed_and_shown(tmp_path: Path, run: Run, environment: dict[str, str]) -> None:
    (tmp_path / "job.toml").write_text(JOB)

    def succeed(*words: str, ranks: int = 0) -> str:
        done = run(*words, ranks=ranks, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    succeed("train", "job.toml")
    assert "step 0: gᵀHg / gᵀg = " in succeed("study", "job.toml", ranks=2)
    assert "(0 units done, 2 done before)" in succeed("study", "job.toml")
    with h5py.File(tmp_path / "run.h5") as file:
        stored = file["studies/gradient_curvature/curvature"]
        assert stored.attrs["units"] == "1"
        assert stored.shape == (2,)
    # The numbers: a reader needs no package of the study.
    values = hessdist.open_run(tmp_path / "run.h5").studies["gradient_curvature"]["curvature"]
    succeed("study", "job.toml", "--overwrite", "--set", "study.gradient_curvature.scale=1.0")
    halves = hessdist.open_run(tmp_path / "run.h5").studies["gradient_curvature"]["curvature"]
    assert values == pytest.approx(2 * halves, rel=1e-9)
    assert np.isfinite(halves).all()
    assert f"{halves[1]:.5g}" in succeed("show", "run.h5")
    succeed("plot", "run.h5", "--format", "png")
    assert (tmp_path / "run-gradient-curvature.png").stat().st_size > 1000
    succeed("report", "run.h5")
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "<h2>Curvature along the gradient</h2>" in page
    assert 'id="gradient-curvature"' in page


def test_its_section_is_validated(tmp_path: Path, run: Run, environment: dict[str, str]) -> None:
    (tmp_path / "job.toml").write_text(JOB.replace("scale =", "scal ="))
    done = run("study", "job.toml", env=environment)
    assert done.returncode == 2
    assert "'study.gradient_curvature.scal'; did you mean 'scale'?" in done.stderr
    (tmp_path / "job.toml").write_text(JOB)
    done = run("study", "job.toml")  # without the package
    assert done.returncode == 2
    assert "unknown key 'study.gradient_curvature'" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name="gradient_curvature"', 'name="lines"', "the study 'lines', which exists already"),
        ("from __future__", "import missing_library\nfrom __future__", "cannot be loaded"),
        ("STUDIES = (", "STUDIES = 7\n(", "cannot be loaded"),
    ],
)
def test_a_broken_package_is_one_line(
    tmp_path: Path, run: Run, old: str, new: str, complaint: str
) -> None:
    source = shutil.copytree(TOY, tmp_path / "source")
    module = source / "toy_study" / "__init__.py"
    module.write_text(module.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    (tmp_path / "job.toml").write_text(JOB)
    done = run("study", "job.toml", env=install(source, tmp_path / "installed"))
    assert done.returncode == 2, done.stderr
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
