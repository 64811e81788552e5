"""Copies that know nothing of each other are told, and only those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hessdist.cli.doctor import examine
from hessdist.errors import InputError
from hessdist.parallel.ranks import check_launcher, launched_rank

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node1"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environment", "launcher", "remedy"),
    [
        (TORCHRUN, "torchrun", "mpirun -n 4"),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}, "torchrun", "mpirun -n 4"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "4"}, "srun", "--mpi=pmix"),
        (STEP, "srun", "mpirun -n 4"),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "8"}, "srun has started 8", "mpirun -n 8"),
        ({**STEP, "PMI_SIZE": "4", "PMI_RANK": "2"}, "srun", "--mpi=pmix"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "an MPI that is not mpi4py's", "doctor"),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "an MPI that is not mpi4py's has started 3", "doctor"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "an MPI that is not mpi4py's", "doctor"),
    ],
)
def test_copies_are_told(environment: dict[str, str], launcher: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        check_launcher(environment, 1)
    assert launcher in caught.value.what
    assert remedy in caught.value.remedy
    check_launcher(environment, 2)  # MPI sees them


@pytest.mark.parametrize(
    "environment",
    [
        {},
        BATCH,
        {**BATCH, "SLURM_STEP_ID": "4294967291"},  # the batch script as a step
        {**BATCH, "SLURM_STEP_ID": "4294967290"},  # salloc's shell
        {**BATCH, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # srun -n 1 within a larger job
        {**STEP, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},  # mpirun -n 1 in it
        {"OMPI_COMM_WORLD_SIZE": "1"},
        {"RANK": "3"},
        {"WORLD_SIZE": "4"},
        {**TORCHRUN, "WORLD_SIZE": "1"},
        {"RANK": "1", "WORLD_SIZE": "4"},  # somebody's own variables
        {**TORCHRUN, "WORLD_SIZE": "many"},
    ],
)
def test_one_process_is_one(environment: dict[str, str]) -> None:
    check_launcher(environment, 1)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        (TORCHRUN, 1),
        ({**TORCHRUN, "OMPI_COMM_WORLD_RANK": "3"}, 3),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "4"}, 2),
        ({**BATCH, "SLURM_PROCID": "2"}, 0),
        ({"RANK": "3"}, 0),
        ({"PMIX_RANK": "5", "SLURM_PROCID": "6"}, 5),
    ],
)
def test_the_copy_that_speaks(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("OMPI_COMM", "PMI", "MV2", "SLURM", "RANK", "WORLD", "LOCAL_RANK")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank


def test_one_line_from_one_copy(tmp_path: Path) -> None:
    (tmp_path / "job.toml").touch()
    said = []
    for rank in (0, 1):
        copy = {**os.environ, **TORCHRUN, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        done = subprocess.run(
            [sys.executable, "-m", "hessdist", "bench", "job.toml"],
            cwd=tmp_path, env=copy, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        said += done.stderr.splitlines()
    (line,) = said
    assert line.startswith("hessdist: torchrun has started 4 copies")


def test_doctor_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [finding.what for finding in examine() if "copies" in finding.remedy]
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert [finding.what for finding in examine() if "copies" in finding.remedy] == ["ranks"]
