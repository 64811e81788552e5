"""What doctor says of parts that are right alone and wrong together."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hessdist.cli import doctor, mismatches
from hessdist.errors import DependencyError


def compiled(source: str, library: Path, *words: str) -> Path:
    """A shared library of C."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    words = (compiler, "-shared", "-fPIC", "-x", "c", "-", "-x", "none", "-o", str(library), *words)
    subprocess.run(words, input=source, text=True, check=True)
    return library


def test_petsc_of_another_mpi_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two are loaded for real: an MPI of a name that mpi4py's library has not."""
    other = compiled("int MPI_Init(void) { return 0; }", tmp_path / "libmpi.so.12")
    package = tmp_path / "petsc4py"
    (package / "lib" / "arch").mkdir(parents=True)
    extension = package / "lib" / "arch" / "PETSc.so"
    soname = (f"-Wl,-rpath,{tmp_path}", "-Wl,--no-as-needed", str(other))
    compiled("int MPI_Init(void); int f(void) { return MPI_Init(); }", extension, *soname)
    ours, found = mismatches.foreign_mpi(extension)
    assert found == str(other)
    assert "libmpi" in ours
    with pytest.raises(DependencyError) as caught:
        doctor._require_one_mpi(package)
    assert str(other) in caught.value.what
    assert "one MPI" in caught.value.remedy


def test_petsc_of_the_same_mpi_is_no_mismatch(tmp_path: Path) -> None:
    import petsc4py

    doctor._require_one_mpi(Path(petsc4py.__file__).parent)
    alone = compiled("int f(void) { return 0; }", tmp_path / "PETSc.so")
    assert mismatches.foreign_mpi(alone) == ("", "")
    assert mismatches.foreign_mpi(tmp_path / "nothing.so") == ("", "")


def test_libraries_beside_mpi_are_not_another_mpi() -> None:
    line = "/a/libmpi.so.40.30.4 /a/libmpi_cxx.so.40 /a/libmpi_mpifh.so.40 /b/libmpifort.so.12"
    assert mismatches._mpi_libraries(line) == {"/a/libmpi.so.40.30.4"}
    cray = "/c/libmpi_cray.so.12 /c/libmpich.so.12 /c/libmpi_gnu_123.so.12"
    assert mismatches._mpi_libraries(cray) == set(cray.split())


LIST = "MPI plugin types are...\\n\\tnone\\n\\tpmi2\\n\\tpmix\\nspecific pmix plugins: pmix_v4\\n"


@pytest.mark.parametrize(
    ("library", "listed", "said", "remedy"),
    [
        ("Open MPI v5.0.7", LIST, "srun --mpi=pmix", ""),
        ("Open MPI v4.1.4", "srun: MPI types are...\\nsrun: pmi2\\n", "srun --mpi=pmi2", ""),
        ("Open MPI v5.0.7", "srun: none\\nsrun: pmi2\\n", "would be alone", "plugin pmix"),
        ("MPICH Version: 4.2.1", LIST, "srun --mpi=pmi2", ""),
        ("MPI VERSION : CRAY MPICH version 8.1", "cray_shasta none", "srun --mpi=cray_shasta", ""),
        ("MPICH Version: 4.2.1", "none\\n", "has none", "mpirun"),
    ],
)
def test_srun_is_told_the_word_of_this_mpi(
    tmp_path: Path, library: str, listed: str, said: str, remedy: str
) -> None:
    srun = tmp_path / "srun"
    srun.write_text(f"#!/bin/sh\nprintf '{listed}' >&2\n", encoding="utf-8")
    srun.chmod(0o755)
    environment = {"SLURM_JOB_ID": "7", "PATH": str(tmp_path)}
    found = mismatches.slurm_launch(library, environment)
    assert found is not None
    assert said in found[0]
    assert remedy in found[1]
    assert bool(found[1]) == bool(remedy)
    assert mismatches.slurm_launch(library, {"PATH": str(tmp_path)}) is None  # no allocation
    assert mismatches.slurm_launch(library, {"SLURM_JOB_ID": "7", "PATH": "/nowhere"}) is None


@pytest.mark.parametrize(
    ("threads", "share", "here", "cores", "remedy"),
    [
        (None, 4, 2, 8, ""),
        ("4", 4, 2, 8, ""),
        ("8", 4, 2, 8, "OMP_NUM_THREADS=4"),
        ("8,2", 4, 2, 8, "OMP_NUM_THREADS=4"),
        ("many", 4, 2, 8, ""),
        (None, 1, 9, 8, "at most 8 ranks"),
    ],
)
def test_threads_above_cores(
    threads: str | None, share: int, here: int, cores: int, remedy: str
) -> None:
    found = mismatches.thread_surplus(threads, share, here, cores)
    assert remedy in found
    assert bool(found) == bool(remedy)


def test_doctor_counts_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    (cores,) = doctor._threads()
    assert "OMP_NUM_THREADS=" in cores.remedy
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (cores,) = doctor._threads()
    assert not cores.remedy


@pytest.mark.parametrize(
    "said",
    [
        "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.5.1 as it may crash.",
        "numpy.core.multiarray failed to import (auto-generated because you didn't call ...)",
        "module compiled against ABI version 0x2000000 but this version of numpy is 0x1000009",
        "numpy.dtype size changed, may indicate binary incompatibility. Expected 96, got 88",
        "No module named 'numpy._core'",
        "Numpy is not available",
    ],
)
@pytest.mark.parametrize(("version", "wanted"), [("1.26.4", "'numpy>=2'"), ("2.5.1", "'numpy<2'")])
@pytest.mark.parametrize("kind", [ImportError, ValueError, RuntimeError, DependencyError])
def test_a_module_for_another_numpy(
    said: str, version: str, wanted: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mismatches.np, "__version__", version)

    def _hdf5() -> Any:
        raise kind(said)

    (found,) = doctor._guarded(_hdf5)
    assert said in found.found
    assert wanted in found.remedy


def test_other_errors_of_an_import_are_not_hidden() -> None:
    def _hdf5() -> Any:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        doctor._guarded(_hdf5)


def test_what_is_missing_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_torch() -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    def without_mpi() -> Any:
        raise DependencyError("mpi4py cannot be imported", "install it")

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for check in ("_torch", "_gpus", "_memory"):
        monkeypatch.setattr(doctor, check, without_torch)
    monkeypatch.setattr(doctor, "import_mpi", without_mpi)
    names = [part.what for part in doctor.examine() if part.remedy]
    assert names.count("torch") == 1
    assert "mpi" in names
    assert "slurm" not in names


def test_packages_have_the_names_that_pip_knows() -> None:
    def _library() -> Any:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.datasets")

    (found,) = doctor._guarded(_library)
    assert found.what == "sklearn"
    assert found.remedy == "pip install scikit-learn"


@pytest.mark.parametrize(
    ("value", "refusal", "said", "remedy"),
    [
        ("", None, "on, on ", ""),
        ("TRUE", None, "on, on ", ""),
        ("FALSE", None, "off by HDF5_USE_FILE_LOCKING=FALSE", ""),
        ("", errno.ENOSYS, "HDF5 opens no file", "HDF5_USE_FILE_LOCKING=FALSE"),
        ("", 524, "HDF5 opens no file", "HDF5_USE_FILE_LOCKING=FALSE"),
        ("FALSE", errno.ENOLCK, "off, on ", ""),
        ("BEST_EFFORT", errno.ENOLCK, "as far as they go", ""),
        ("", errno.EACCES, "not tried", ""),
    ],
)
def test_locks_of_hdf5(
    value: str,
    refusal: int | None,
    said: str,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def flock(file: Any, kind: int) -> None:
        if refusal is not None:
            raise OSError(refusal, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    found = mismatches.file_locks(tmp_path, {"HDF5_USE_FILE_LOCKING": value} if value else {})
    assert said in found[0]
    assert remedy in found[1]
    assert bool(found[1]) == bool(remedy)


def test_file_systems_have_names() -> None:
    assert mismatches._file_system(Path("/proc/self")) == "proc"


def test_tf32_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
    monkeypatch.delenv(name, raising=False)
    assert not mismatches.tf32_remedy(os.environ)
    monkeypatch.setenv(name, "0")
    assert not mismatches.tf32_remedy(os.environ)
    monkeypatch.setenv(name, "1")
    assert name in mismatches.tf32_remedy(os.environ)


@pytest.mark.parametrize(
    ("takes", "forced", "said", "remedy"),
    [
        (True, "", "from GPU to GPU", ""),
        (False, "", "through host memory", ""),
        (True, "1", "says so", "unset HESSDIST_GPU_AWARE_MPI"),
    ],
)
def test_gpu_memory_in_mpi(takes: bool, forced: str, said: str, remedy: str) -> None:
    found = mismatches.gpu_memory_of_mpi(takes, {"HESSDIST_GPU_AWARE_MPI": forced})
    assert said in found[0]
    assert remedy in found[1]
    assert bool(found[1]) == bool(remedy)


@pytest.mark.parametrize(("error", "wrong"), [(3e-8, False), (3e-4, True)])
def test_doctor_measures_the_products_of_a_gpu(
    error: float, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mismatches, "product_error", lambda: error)
    monkeypatch.delenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", raising=False)
    found = {one.what: one for one in doctor._gpus()}
    assert bool(found["TF32"].remedy) == wrong
    assert set(found) == {"GPU memory", "TF32"}
