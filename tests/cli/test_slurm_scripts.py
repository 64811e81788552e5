"""The scripts of `slurm/`: what of them can be run without Slurm, CUDA or a network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPTS = sorted((ROOT / "slurm").rglob("*.sh"))
BUILD = ROOT / "slurm" / "build_petsc_cuda.sh"
KIT = ROOT / "slurm" / "gpu_kit.sh"
RUN_ALL = ROOT / "slurm" / "gpu_kit" / "run_all.sh"
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


def bash(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run bash in the repository's root, with no variable of the build script's but these."""
    names = ("PETSC_ARCHIVE", "SLEPC_ARCHIVE", "PRECISION", "INDICES", "CUDA_ARCH", "PYTHON")
    names += ("MPICC", "MPICXX", "MPIFC", "PETSC_CONFIGURE_OPTIONS", "PREFIX", "PETSC", "BLAS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        ["bash", *map(str, words)],
        cwd=ROOT,
        env={**environment, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """A folder with empty files of the right names."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for name in ("petsc-3.21.4.tar.gz", "slepc-3.21.2.tar.gz"):
        (folder / name).touch()
    return folder


def refused(done: subprocess.CompletedProcess[str], what: str) -> None:
    """One line on the error stream, nothing done, status 2."""
    assert done.returncode == 2, done
    assert what in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@each_script
def test_the_syntax_is_right(script: Path) -> None:
    assert bash("-n", script).returncode == 0


@each_script
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "script", [path for path in SCRIPTS if path.name.startswith("spectrum")], ids=lambda p: p.name
)
def test_spectrum_without_a_job_says_how(script: Path) -> None:
    done = bash(script)
    assert done.returncode == 1
    assert f"usage: sbatch slurm/{script.name} JOB.toml" in done.stderr


def test_help() -> None:
    done = bash(BUILD, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: build_petsc_cuda.sh")
    assert "PRECISION" in done.stdout


def test_wrong_words_are_refused(archives: Path) -> None:
    refused(bash(BUILD), "give the folder of the archives and the prefix")
    refused(bash(BUILD, archives), "give the folder of the archives and the prefix")
    refused(bash(BUILD, "--fast", archives, "there"), "unknown option --fast")


def test_missing_archives_are_named(tmp_path: Path, archives: Path) -> None:
    prefix = tmp_path / "prefix"
    refused(bash(BUILD, tmp_path / "nowhere", prefix), "nowhere does not exist")
    (archives / "slepc-3.21.2.tar.gz").unlink()
    refused(bash(BUILD, archives, prefix), "has no slepc-3.X.Y.tar.gz: fetch it")
    (archives / "petsc-3.21.4.tar.gz").unlink()
    refused(bash(BUILD, archives, prefix), "has no petsc-3.X.Y.tar.gz: fetch it")
    assert not prefix.exists()


def test_several_archives_want_a_name(tmp_path: Path, archives: Path) -> None:
    (archives / "petsc-3.22.1.tar.gz").touch()
    words = (BUILD, "--dry-run", archives, tmp_path / "prefix")
    refused(bash(*words, CUDA_ARCH="90"), "2 archives of petsc: name one in PETSC_ARCHIVE")
    name = "petsc-3.21.4.tar.gz"
    assert bash(*words, CUDA_ARCH="90", PETSC_ARCHIVE=name).returncode == 0
    refused(bash(*words, PETSC_ARCHIVE="petsc-3.99.9.tar.gz"), "has no such file")
    refused(bash(*words, PETSC_ARCHIVE="petsc-3.22.1.tar.gz"), "not of one minor version")


def test_versions_whose_basis_stays_on_the_host_are_refused(tmp_path: Path) -> None:
    for name in ("petsc-3.19.6.tar.gz", "slepc-3.19.2.tar.gz"):
        (tmp_path / name).touch()
    refused(bash(BUILD, tmp_path, tmp_path / "prefix"), "PETSc 3.19 is too old")


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("PRECISION", "half", "use single or double"),
        ("INDICES", "48", "use 32 or 64"),
        ("CUDA_ARCH", "hopper", "set CUDA_ARCH"),
    ],
)
def test_wrong_variables_are_refused(
    tmp_path: Path, archives: Path, variable: str, value: str, what: str
) -> None:
    refused(bash(BUILD, archives, tmp_path / "prefix", **{variable: value}), what)


def test_missing_tools_are_named(tmp_path: Path, archives: Path) -> None:
    done = bash(BUILD, archives, tmp_path / "prefix", CUDA_ARCH="90", MPICC="no-such-mpicc")
    refused(done, "no-such-mpicc is not on the PATH")


def test_the_commands_of_a_build(tmp_path: Path, archives: Path) -> None:
    prefix = tmp_path / "prefix"
    more = "--with-x=0 --with-blaslapack-dir=/opt/blas"
    done = bash(
        *(BUILD, "--dry-run", archives, prefix),
        CUDA_ARCH="90",
        PRECISION="single",
        INDICES="64",
        PETSC_CONFIGURE_OPTIONS=more,
    )
    assert done.returncode == 0, done.stderr
    assert not prefix.exists()
    commands = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    configures = [line for line in commands if "./configure" in line]
    assert len(configures) == 2
    for word in (
        f"--prefix={prefix}/petsc",
        "--with-scalar-type=real",
        "--with-precision=single",
        "--with-64-bit-indices=1",
        "--with-debugging=0",
        "--with-fc=0",
        "--with-cuda=1",
        "--with-cuda-arch=90",
        "--with-petsc4py=1",
        more,
    ):
        assert word in configures[0]
    assert f"--prefix={prefix}/slepc --with-slepc4py=1" in configures[1]
    assert not [line for line in commands if "download" in line]
    assert sum(" install" in line for line in commands) == 2
    assert f"export PYTHONPATH={prefix}/petsc/lib:{prefix}/slepc/lib" in done.stdout
    assert commands[-1].endswith("-m pytest -m gpu")
    unchecked = bash(BUILD, "--dry-run", "--no-check", archives, prefix, CUDA_ARCH="90")
    assert "-m pytest" not in unchecked.stdout
    assert "--with-precision=double" in unchecked.stdout


# -- the kit of a first GPU ------------------------------------------------------------------

PARTS = ["doctor", "tests", "lenet", "solve", "gpt", "lenet-tf32", "lenet-bfloat16", "gpt-numbers"]


def test_the_kits_scripts_have_help_and_refuse_wrong_words(tmp_path: Path) -> None:
    for script in (KIT, RUN_ALL):
        done = bash(script, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: {script.name}")
        refused(bash(script, "--fast"), "--fast")
    refused(bash(KIT), "give the folder of the kit")
    kit = tmp_path / "kit"
    refused(bash(KIT, kit, PREFIX="here"), "PREFIX is here")
    refused(bash(KIT, kit, PYTHON="no-such-python"), "there is no no-such-python")
    refused(bash(KIT, kit, PYTHON="bash", BLAS="/no/blas"), "name one in BLAS")
    refused(bash(RUN_ALL), "there is no kit.env beside it")
    refused(bash(RUN_ALL, "--device", "tpu"), "use cuda or cpu")
    refused(bash(RUN_ALL, "--seconds", "soon"), "give a whole number")
    refused(bash(RUN_ALL, "--out"), "--out wants a value")
    assert not kit.exists()


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit whose stack is empty, and a Python that says what it is started with."""
    folder, empty = tmp_path / "kit", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    for name, letter in (("stack.tar.xz", "J"), ("hessdist.tar.gz", "z")):
        subprocess.run(["tar", f"-c{letter}f", folder / name, "-C", empty, "."], check=True)
    shutil.copy(RUN_ALL, folder)
    settings = f"prefix={tmp_path / 'prefix'}\npython=3.12\nmade=now\n"
    (folder / "kit.env").write_text(settings, encoding="utf-8")
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        'if [ "$1" = -c ]; then echo 3.12; exit; fi\n'
        'echo "started with $*, $PYTHONPATH"\n'
        'case "$*" in *gpu_solve.py*) exit 3 ;; *bfloat16\\ --json*lenet*) exit 124 ;; esac\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    return folder


def test_a_part_that_fails_keeps_none_from_running(tmp_path: Path, kit: Path) -> None:
    words = ("--device", "cpu", "--small", "--out", tmp_path / "figures")
    done = bash(kit / "run_all.sh", *words, "--python", tmp_path / "python")
    assert done.returncode == 1
    summary = (tmp_path / "figures" / "summary.txt").read_text(encoding="utf-8")
    found = [line for line in summary.splitlines() if line.startswith("== ")]
    assert [line[3:].split(":")[0] for line in found] == PARTS
    assert "== solve: FAILED with status 3" in summary
    assert "== lenet-bfloat16: ENDED at its limit" in summary
    assert sum(": done in" in line for line in found) == len(PARTS) - 2
    lenet = (tmp_path / "figures" / "lenet.txt").read_text(encoding="utf-8")
    assert "gpu.py --device cpu --samples 64" in lenet
    assert f"{tmp_path}/prefix:{tmp_path}/prefix/env/lib/python3.12/site-packages" in lenet


def test_nothing_starts_when_the_time_is_over(tmp_path: Path, kit: Path) -> None:
    words = ("--seconds", "0", "--out", tmp_path / "figures", "--python", tmp_path / "python")
    done = bash(kit / "run_all.sh", *words)
    assert done.returncode == 1
    summary = (tmp_path / "figures" / "summary.txt").read_text(encoding="utf-8")
    assert summary.count("NOT RUN, the 0 seconds are over") == len(PARTS)


def test_a_kit_for_another_python_is_refused(tmp_path: Path, kit: Path) -> None:
    (kit / "kit.env").write_text("prefix=/nowhere\npython=3.13\nmade=now\n", encoding="utf-8")
    done = bash(kit / "run_all.sh", "--python", tmp_path / "python")
    refused(done, "is Python 3.12, and the kit is built for 3.13")
    refused(bash(kit / "run_all.sh", "--python", "no-such"), "there is no Python no-such")


def test_the_place_where_a_kit_was_built_is_left_alone(tmp_path: Path, kit: Path) -> None:
    program = tmp_path / "prefix" / "env" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.touch()
    done = bash(kit / "run_all.sh", "--python", tmp_path / "python", "--out", tmp_path / "out")
    refused(done, "the place in which a kit was built")
