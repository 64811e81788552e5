"""The batch script, compared with files kept here, and what `submit` says and refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, Run

from hessdist.service.slurm import Batch, batch_script, process_manager

GOLDEN = Path(__file__).parent / "golden"

BATCHES = {
    "one_node": Batch(
        job=Path("jobs/lenet_mnist.toml"),
        name="lenet-mnist",
        command="/home/me/hessdist/.venv/bin/hessdist",
        log=Path("lenet-mnist-%j.log"),
        tasks_per_node=4,
        cpus_per_task=8,
        memory="64G",
    ),
    "gpus": Batch(
        job=Path("my jobs/resnet.toml"),
        name="resnet",
        command="/home/me/hessdist/.venv/bin/hessdist",
        log=Path("logs/%x-%j.log"),
        nodes=4,
        tasks_per_node=4,
        cpus_per_task=12,
        gpus_per_task=1,
        time="1-00:00:00",
        signal="USR2",
        ahead=300,
        partition="gpu",
        account="p1234",
        qos="long",
        directives=["--constraint=a100"],
        arguments=["--set", "spectrum.largest=50", "-eps_ncv", "150"],
    ),
    "array": Batch(
        job=Path("jobs/lenet_mnist.toml"),
        name="sweep",
        command="/home/me/hessdist/.venv/bin/hessdist",
        log=Path("sweep-%A_%a.log"),
        array="0-7%4",
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_script_is_the_one_that_is_kept(name: str) -> None:
    kept = GOLDEN / f"{name}.sh"
    if os.environ.get("HESSDIST_REWRITE"):
        kept.write_text(batch_script(BATCHES[name]), encoding="utf-8")
    assert batch_script(BATCHES[name]) == kept.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("library", "manager"),
    [
        ("Open MPI v4.1.4, package: Debian OpenMPI", "pmix"),
        ("MPICH Version:      4.3.2", "pmi2"),
        ("MVAPICH2 Version      :\t2.3.7", "pmi2"),
        ("Intel(R) MPI Library 2021.14 for Linux* OS", "pmi2"),
        ("CRAY MPICH version 8.1.29.17", ""),
        ("", "pmix"),
    ],
)
def test_srun_starts_ranks_as_their_mpi_wants_it(library: str, manager: str) -> None:
    assert process_manager(library) == manager
    text = batch_script(replace(BATCHES["one_node"], mpi=manager))
    assert f"mpi={manager} this=" in text


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("tool", ["bash", "shellcheck"])
def test_the_script_is_sound_bash(name: str, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    words = ["-n"] if tool == "bash" else []
    path = GOLDEN / f"{name}.sh"
    done = subprocess.run([tool, *words, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_of_the_repository_have_the_same_body() -> None:
    """`slurm/` shows the same to read."""
    body = batch_script(BATCHES["one_node"]).partition("\n\nexport OMP")[2]
    for path in sorted((ROOT / "slurm").glob("spectrum*.sh")):
        text = path.read_text(encoding="utf-8")
        assert text.partition("\n\nexport OMP")[2] == body, path
        for word in ("--requeue", "--open-mode=append", "--signal=B:USR1@"):
            assert f"#SBATCH {word}" in text, (path, word)


def test_a_dry_run_prints_the_script_and_needs_no_slurm(run: Run, job: Path) -> None:
    done = run(
        "submit", str(job), "--nodes", "2", "--tasks-per-node", "4", "--gpus-per-task", "1",
        "--time", "2:00:00", "--array", "4", "--checkpoints", "0:20", "--journal", "--dry-run",
        "--set", "spectrum.largest=3", "-eps_ncv", "60", env={"PATH": "/nowhere"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = (
        "--nodes=2", "--gpus-per-task=1", "--time=2:00:00", "--array=0-3", "--requeue",
        "--signal=B:USR1@120", "--open-mode=append", "--output=digits-%A_%a.log",
    )  # fmt: skip
    for word in directives:
        assert f"#SBATCH {word}" in lines
    (program,) = [line for line in lines if line.startswith("program=(")]
    assert program.endswith(
        f"hessdist spectrum {job} --share --set spectrum.largest=3 --set service.journal=true "
        "--checkpoints 0:20 -eps_ncv 60)"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--time", "soon"), "--time soon is not a time"),
        (("--array", "a-b"), "--array a-b is not a range"),
        (("--partition", "a b"), "'a b' has a space in it"),
        (("--nodes", "0"), "--nodes"),
        (("--set", "spectrum.larges=3"), "did you mean 'largest'"),
    ],
)
def test_what_cannot_be_submitted_is_refused(
    run: Run, job: Path, words: tuple[str, ...], says: str
) -> None:
    done = run("submit", str(job), *words, "--dry-run")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line


def test_without_slurm_it_says_so(run: Run, job: Path, tmp_path: Path) -> None:
    done = run("submit", str(job), env={"PATH": str(tmp_path)})
    assert done.returncode == 2
    assert "there is no sbatch on this machine" in done.stderr
