"""The service on a real Slurm of three nodes: placed, signalled, preempted, cut off, in arrays."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from slurm_cluster import Cluster, missing
from sweeps import completed, parts, prepare, readable

import hessdist
from hessdist.service.slurm import Batch, batch_script

STEPS = tuple(range(0, 60, 10))

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed: no {missing()}"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a single process."""
    folder = tmp_path_factory.mktemp("alone")
    prepare(folder, STEPS)
    assert completed(folder, "spectrum", "job.toml").returncode == 0
    return folder


def submit(cluster: Cluster, folder: Path, *words: str) -> str:
    """`hessdist submit`; the job's number."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hessdist")), "submit", "job.toml", *words],
        cwd=folder, env=cluster.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return re.search(r"submitted: job (\d+)", done.stdout)[1]  # type: ignore[index]


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("slow-*.log")))


def agrees(folder: Path, alone: Path) -> None:
    found, expected = (hessdist.open_run(at / "results" / "run.h5") for at in (folder, alone))
    assert list(found.steps) == list(expected.steps)
    for name in ("eigenvalues_largest", "eigenvalues_smallest", "loss"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)
    assert np.array_equal(found.converged_largest, expected.converged_largest)


TWO_NODES = ("--nodes", "2", "--tasks-per-node", "2", "--time", "5")


def test_two_nodes_and_four_ranks_give_the_result_of_one_process(
    cluster: Cluster, tmp_path: Path, alone: Path
) -> None:
    prepare(tmp_path, STEPS)
    number = submit(cluster, tmp_path, *TWO_NODES)
    job = cluster.until_over(number)
    assert job["JobState"] == "COMPLETED", logs(tmp_path)
    assert hessdist.open_run(tmp_path / "results" / "run.h5").attributes["ranks"] == 4
    agrees(tmp_path, alone)


def test_the_signal_ahead_of_the_time_limit_requeues_a_job_that_then_finishes(
    cluster: Cluster, tmp_path: Path, alone: Path
) -> None:
    prepare(tmp_path, STEPS, seconds=0.3)  # at work when the signal comes
    limits = ("--tasks-per-node", "2", "--time", "1", "--ahead", "50")
    number = submit(cluster, tmp_path, *limits, "--journal")
    cluster.until(lambda: "ends with status 75" in logs(tmp_path), 100)
    assert readable(tmp_path) < len(STEPS)
    _hurry(tmp_path)
    assert cluster.until_over(number)["JobState"] == "COMPLETED", logs(tmp_path)
    assert "start 2 on" in logs(tmp_path)
    # Slurm may send the signal a minute early: where the ranks do not listen yet, none has stopped.
    assert ("from the journal" in logs(tmp_path)) == ("stopped on a signal" in logs(tmp_path))
    assert len(list(tmp_path.glob("slow-*.log"))) == 1
    agrees(tmp_path, alone)


def _hurry(folder: Path) -> None:
    """Make products quick from the next start on."""
    module = folder / "slow.py"
    text = module.read_text().replace('os.environ.get("SECONDS_A_PRODUCT", seconds)', "0")
    module.write_text(text)


EVERYTHING = ("--nodes", "3", "--time", "5", "--sbatch=--exclusive")


def preempt(cluster: Cluster) -> None:
    """Let an urgent job take all nodes."""
    urgent = cluster.ask(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--time=1",
        "--output=/dev/null", "--wrap", "sleep 1",
    ).strip()  # fmt: skip
    assert cluster.until_over(urgent)["JobState"] == "COMPLETED"


@pytest.mark.slow
@pytest.mark.parametrize("user_signal", [True, False])
def test_a_preempted_job_is_requeued_and_finishes(
    cluster: Cluster, tmp_path: Path, alone: Path, user_signal: bool
) -> None:
    """In its time of grace it gets the signal, or TERM, and only the ranks get that."""
    prepare(tmp_path, STEPS, seconds=0.1)
    words = "=preempt_send_user_signal", "=no_quick_restart"
    if not user_signal:
        cluster.configure(*words)
    try:
        number = submit(cluster, tmp_path, *EVERYTHING)
        cluster.until(lambda: len(parts(tmp_path)) >= 1, 60)
        preempt(cluster)
    finally:
        if not user_signal:
            cluster.configure(*reversed(words))
    assert "stopped on a signal" in logs(tmp_path)
    _hurry(tmp_path)
    assert cluster.until_over(number)["JobState"] == "COMPLETED", logs(tmp_path)
    assert "start 2 on" in logs(tmp_path)
    agrees(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["requeued", "cancelled"])
def test_a_job_that_is_preempted_without_grace_finishes(
    cluster: Cluster, tmp_path: Path, alone: Path, partition: str
) -> None:
    prepare(tmp_path, STEPS, seconds=0.1)
    number = submit(cluster, tmp_path, *EVERYTHING, "--partition", partition)
    cluster.until(lambda: len(parts(tmp_path)) >= 1, 60)
    preempt(cluster)
    _hurry(tmp_path)
    cluster.until(lambda: "start 2 on" in logs(tmp_path), 60)
    assert cluster.until_over(number)["JobState"] == "COMPLETED", logs(tmp_path)
    assert "start 3 on" not in logs(tmp_path)
    agrees(tmp_path, alone)


@pytest.mark.slow
def test_a_job_that_the_time_limit_ends_in_a_product_finishes(
    cluster: Cluster, tmp_path: Path, alone: Path
) -> None:
    prepare(tmp_path, STEPS, seconds=100)
    number = submit(cluster, tmp_path, "--tasks-per-node", "2", "--time", "1", "--ahead", "30")
    cluster.until(lambda: cluster.state(number) == "RUNNING", 30)
    cluster.until(lambda: cluster.state(number) != "RUNNING", 150)
    _hurry(tmp_path)
    cluster.until(lambda: "start 2 on" in logs(tmp_path), 60)
    assert cluster.until_over(number)["JobState"] == "COMPLETED", logs(tmp_path)
    agrees(tmp_path, alone)


DELAYS = tuple(0.25 * number for number in range(9))
"""Moments of the first two seconds of a job, at which it gets a signal."""


def signalled_early(
    cluster: Cluster, folder: Path, delays: Sequence[float], *words: str, seconds: float = 0.0
) -> dict[str, Path]:
    """Jobs that get a signal by scancel, each at its moment after its start; their folders."""
    jobs = {}
    for delay in delays:
        place = folder / f"{delay:g}"
        prepare(place, STEPS, seconds=seconds)
        number = submit(cluster, place, "--tasks-per-node", "2", "--time", "5")
        cluster.until(lambda n=number: cluster.state(n) == "RUNNING", 120)
        time.sleep(delay)
        cluster.ask("scancel", *words, number)
        jobs[number] = place
    return jobs


@pytest.mark.parametrize("delays", [(0.5,), pytest.param(DELAYS, marks=pytest.mark.slow)])
def test_scancel_in_the_first_two_seconds_cancels(
    cluster: Cluster, tmp_path: Path, delays: Sequence[float]
) -> None:
    jobs = signalled_early(cluster, tmp_path, delays, seconds=0.3)
    for number, place in jobs.items():
        is_cancelled(cluster, number, place)


def test_scancel_of_a_job_at_work_cancels(cluster: Cluster, tmp_path: Path) -> None:
    prepare(tmp_path, STEPS, seconds=0.1)
    number = submit(cluster, tmp_path, *TWO_NODES)
    cluster.until(lambda: len(parts(tmp_path)) >= 1, 60)
    cluster.ask("scancel", number)
    is_cancelled(cluster, number, tmp_path)
    assert readable(tmp_path) >= 1


def is_cancelled(cluster: Cluster, number: str, folder: Path) -> None:
    """A requeued job would be pending by now."""
    job = cluster.until_over(number)
    assert job["JobState"] == "CANCELLED", logs(folder)
    assert job["Restarts"] == "0"
    assert "start 2 on" not in logs(folder)


@pytest.mark.parametrize(
    ("delays", "to"),
    [
        ((0.5,), ("--batch",)),
        pytest.param(DELAYS, ("--batch",), marks=pytest.mark.slow),
        pytest.param(DELAYS[2:], (), marks=pytest.mark.slow),  # to the ranks alone
    ],
)
def test_the_signal_in_the_first_two_seconds_requeues(
    cluster: Cluster, tmp_path: Path, alone: Path, delays: Sequence[float], to: Sequence[str]
) -> None:
    jobs = signalled_early(cluster, tmp_path, delays, "--signal=USR1", *to, seconds=0.2)
    for place in jobs.values():
        _hurry(place)
    for number, place in jobs.items():
        assert cluster.until_over(number)["JobState"] == "COMPLETED", logs(place)
        assert cluster.job(number)["Restarts"] == "1", logs(place)
        agrees(place, alone)


@pytest.mark.slow
def test_names_arrive_at_slurm_as_they_are(cluster: Cluster, tmp_path: Path) -> None:
    prepare(tmp_path, STEPS)
    comment = "--comment=a 'b' # é $(touch canary) `touch canary` | %j"
    number = submit(
        cluster, tmp_path, "--set", "name='a/b $(touch canary) é'", f"--sbatch={comment}",
        "--log=-my 'log' # %% %j.txt", "--time", "5",
    )  # fmt: skip
    assert cluster.until_over(number)["JobState"] == "COMPLETED", list(tmp_path.iterdir())
    assert "ends with status 0" in (tmp_path / f"-my 'log' # % {number}.txt").read_text()
    shown = cluster.ask("scontrol", "show", "job", number)
    assert f"Comment={comment.partition('=')[2]}" in shown
    assert "JobName=a-b-touch-canary-é\n" in shown
    assert not (tmp_path / "canary").exists()


@pytest.mark.slow
def test_a_node_that_dies_under_the_job_is_replaced_by_a_spare_one(
    cluster: Cluster, tmp_path: Path, alone: Path
) -> None:
    prepare(tmp_path, STEPS, seconds=0.1)
    number = submit(cluster, tmp_path, *TWO_NODES)
    cluster.until(lambda: len(parts(tmp_path)) >= 2, 60)
    done = len(parts(tmp_path))
    (nodes,) = (
        cluster.ask("scontrol", "show", "hostnames", cluster.job(number)["NodeList"]).split()
        for _ in range(1)
    )
    cluster.cut_power(nodes[-1])
    try:
        _hurry(tmp_path)
        assert readable(tmp_path) >= done - 1
        assert cluster.until_over(number)["JobState"] == "COMPLETED", logs(tmp_path)
    finally:
        cluster.restore(nodes[-1])
    assert logs(tmp_path).count("already done") >= done
    agrees(tmp_path, alone)


@pytest.mark.slow
def test_an_array_of_four_shares_twelve_checkpoints(cluster: Cluster, tmp_path: Path) -> None:
    steps = tuple(range(0, 120, 10))
    prepare(tmp_path, steps, seconds=0.02)
    metrics = ("--set", "service.metrics=metrics.jsonl")
    number = submit(cluster, tmp_path, "--array", "4", "--time", "5", *metrics)
    cluster.until(lambda: not cluster.queued(), 120)
    assert cluster.state(number) == "COMPLETED", logs(tmp_path)
    assert len(list(tmp_path.glob(f"slow-{number}_*.log"))) == 4
    run = hessdist.open_run(tmp_path / "results" / "run.h5")
    assert list(run.steps) == list(steps)
    assert run.converged_largest.all()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted(line["step"] for line in lines if line["product"] == 1) == list(steps)
    solved = [int(found) for found in re.findall(r"\((\d+) solved", logs(tmp_path))]
    assert sum(solved) == len(steps)


def test_each_rank_gets_a_gpu_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    """The devices are not real: what is looked at is what the ranks are given."""
    program = tmp_path / "hessdist"
    program.write_text(
        '#!/bin/bash\necho "rank $SLURM_PROCID node $SLURM_NODEID gpu $CUDA_VISIBLE_DEVICES $*"\n'
    )
    program.chmod(0o755)
    batch = Batch(
        job=Path("job.toml"), name="gpus", command=str(program), log=tmp_path / "gpus.log",
        nodes=2, tasks_per_node=2, gpus_per_task=1, time="1",
    )  # fmt: skip
    number = cluster.ask("sbatch", "--parsable", input=batch_script(batch), cwd=tmp_path).strip()
    assert cluster.until_over(number)["JobState"] == "COMPLETED"
    text = (tmp_path / "gpus.log").read_text()
    found = re.findall(r"rank (\d) node (\d) gpu (\d) spectrum job.toml", text)
    assert sorted((int(rank), int(node)) for rank, node, _ in found) == [
        (0, 0), (1, 0), (2, 1), (3, 1)
    ]  # fmt: skip
    for node in "01":
        assert sorted(gpu for _, at, gpu in found if at == node) == ["0", "1"]


def test_what_slurm_refuses_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    prepare(tmp_path, STEPS)
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hessdist")), "submit", "job.toml",
         "--partition", "nowhere"],
        cwd=tmp_path, env=cluster.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "sbatch refuses the job" in line
    assert "nowhere" in line
    assert os.linesep not in line
