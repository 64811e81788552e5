"""Faults that a sweep survives: kills, full disks, damaged files, others at work."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest
from sweeps import completed, kill_all, parts, prepare, readable, same, started, until, workers

import hessdist
from hessdist.results import seal

STEPS = tuple(range(0, 60, 10))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep of six checkpoints on two ranks."""
    folder = tmp_path_factory.mktemp("finished")
    prepare(folder, STEPS)
    assert sweep(folder).returncode == 0
    return folder


def sweep(folder: Path, *words: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    return completed(folder, "spectrum", "job.toml", *words, ranks=ranks)


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished sweep."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_killed_rank_ends_all_and_costs_no_finished_checkpoint(
    tmp_path: Path, finished: Path
) -> None:
    prepare(tmp_path, STEPS, seconds=0.05)
    with started(tmp_path, "spectrum", "job.toml", "--journal", ranks=2) as process:
        until(lambda: len(parts(tmp_path)) == 2)
        os.kill(workers(process)[-1], signal.SIGKILL)
        process.communicate(timeout=20)
    assert process.returncode not in (0, 75)
    assert readable(tmp_path) >= 1
    done = len(parts(tmp_path))
    again = sweep(tmp_path, "--journal")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already done") == done
    same(tmp_path, finished)


@pytest.mark.parametrize(
    ("kills", "journal"),
    [
        pytest.param(3, True, marks=pytest.mark.slow),
        pytest.param(20, True, marks=pytest.mark.slow),
        pytest.param(20, False, marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments_change_nothing(
    tmp_path: Path, finished: Path, kills: int, journal: bool
) -> None:
    prepare(tmp_path, STEPS, seconds=0.03 if kills < 10 else 0.1)
    moments = random.Random(kills)
    words = ["--journal"] if journal else []
    for _ in range(kills):
        with started(tmp_path, "spectrum", "job.toml", *words, ranks=2) as process:
            try:
                process.wait(moments.uniform(1.5, 6))
            except subprocess.TimeoutExpired:
                kill_all(process)
            process.communicate(timeout=20)
        readable(tmp_path)
    assert sweep(tmp_path, *words).returncode == 0
    same(tmp_path, finished)
    left = {path.name for path in (tmp_path / "results").rglob("*") if path.is_file()}
    assert not [name for name in left if name.endswith((".partial", ".claim"))]


# -- disks -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, but: int) -> Path:
    """Leave only so many bytes free."""
    status = os.statvfs(place)
    filler = place / "filler"
    filler.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - but)))
    return filler


def test_a_disk_that_is_full_when_a_result_is_written(
    folder: Path, finished: Path, small_disk: Path
) -> None:
    words = ("--set", f"output.path={small_disk}/results/run.h5")
    assert sweep(folder, *words, "--checkpoints", "0,10").returncode == 0
    filler = fill(small_disk, but=20_000)
    done = sweep(folder, *words)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hessdist: ")]
    assert "cannot be written" in line
    assert "free some space" in line
    assert readable(small_disk) >= 2
    filler.unlink()
    assert sweep(folder, *words).returncode == 0
    same(small_disk, finished)


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_journal_is_written(
    folder: Path, finished: Path, small_disk: Path
) -> None:
    words = ("--set", f"output.path={small_disk}/results/run.h5", "--journal")
    assert sweep(folder, *words, "--checkpoints", "0").returncode == 0
    # Room for the result, which is larger than the few products that the journal gets in.
    (small_disk / "results" / "run.checkpoints" / "journal").mkdir()
    limited = small_disk / "results" / "run.checkpoints" / "journal"
    tiny = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(limited)]
    subprocess.run(tiny, check=True)
    try:
        done = sweep(folder, *words)
        assert done.returncode == 0, done.stderr
        assert "the journal ends here" in done.stdout
        assert "No space left" in done.stdout or "no space left" in done.stdout
    finally:
        subprocess.run(["umount", str(limited)], check=True)
    same(small_disk, finished)


def test_a_finished_journal_makes_way_for_its_result(
    folder: Path, finished: Path, small_disk: Path
) -> None:
    words = ("--set", f"output.path={small_disk}/results/run.h5", "--journal")
    assert sweep(folder, *words, "--checkpoints", "0", ranks=0).returncode == 0
    run = hessdist.open_run(finished / "results" / "run.h5")
    journal = 1024 + int(run.products[1]) * (64 + 8 * run.num_parameters)
    fill(small_disk, but=journal + parts(small_disk)[0].stat().st_size - 8192)
    done = sweep(folder, *words, "--checkpoints", "10", ranks=0)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "No space left on device): its journal makes way" in done.stdout
    assert list(hessdist.open_run(small_disk / "results" / "run.h5").steps) == [0, 10]
    assert not (small_disk / "results" / "run.checkpoints" / "journal").exists()


def remove(results: Path) -> None:
    shutil.rmtree(results)


def replace_by_a_file(results: Path) -> None:
    results.rename(results.with_name("moved"))
    results.write_text("in the way", encoding="utf-8")


def make_read_only(results: Path) -> None:
    bind = ["mount", "--bind", str(results), str(results)]
    if os.geteuid() or subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system takes root")
    subprocess.run(["mount", "-o", "remount,ro,bind", str(results)], check=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(remove, "have been removed from", marks=pytest.mark.slow),
        (replace_by_a_file, "Not a directory"),
        pytest.param(make_read_only, "Read-only file system", marks=pytest.mark.slow),
    ],
)
def test_an_output_folder_that_goes_during_a_sweep_ends_it_with_one_line(
    tmp_path: Path, change: Callable[[Path], None], says: str
) -> None:
    prepare(tmp_path, (0, 10), seconds=0.05)
    results = tmp_path / "results"
    try:
        with started(tmp_path, "spectrum", "job.toml", "--journal", ranks=2) as process:
            until(lambda: len(parts(tmp_path)) == 1)
            until(lambda: (results / "run.checkpoints" / ".step-00000010.claim").exists())
            change(results)
            _, err = process.communicate(timeout=60)
    finally:
        subprocess.run(["umount", str(results)], capture_output=True, check=False)
    assert process.returncode == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("hessdist: ")]
    assert says in line
    assert "Traceback" not in err


# -- damaged files ---------------------------------------------------------------------------


def cut(part: Path) -> None:
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size // 2)


def empty(part: Path) -> None:
    part.write_bytes(b"")


def flip(part: Path) -> None:
    """One bit in the middle of the eigenvectors, which no table shows."""
    with h5py.File(part, "r") as file:
        where = file["eigenvectors_largest"].id.get_offset()
    data = bytearray(part.read_bytes())
    data[where + seal.BLOCK + 11 if where < seal.BLOCK else where + 11] ^= 4
    part.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, empty, flip])
def test_a_damaged_result_is_found_set_aside_and_computed_again(
    folder: Path, finished: Path, damage: object
) -> None:
    part = parts(folder)[3]
    damage(part)  # type: ignore[operator]
    done = sweep(folder)
    assert done.returncode == 0, done.stderr
    assert f"step 30: its result is damaged, set aside as {part.relative_to(folder)}" in done.stdout
    assert done.stdout.count("already done") == 5
    assert part.with_name(f"{part.name}.damaged").exists()
    same(folder, finished)


def test_the_seal_is_what_sha256sum_says(finished: Path) -> None:
    part = parts(finished)[0]
    text = subprocess.run(
        ["bash", "-c", f"head -c 512 '{part}'; tail -c +513 '{part}' | sha256sum"],
        capture_output=True, check=True,
    ).stdout.decode()  # fmt: skip
    word = text.split("\n")[0].removeprefix("hessdist sha256 ")
    assert text.rstrip("\n").split("\n")[-1].lstrip("\0").startswith(word)
    assert len(word) == 64


def test_damaged_checkpoints_are_set_aside_and_the_others_go_on(folder: Path) -> None:
    shutil.rmtree(folder / "results")
    for step in (10, 40):
        (folder / "checkpoints" / f"step-{step:08d}.pt").write_bytes(b"nothing")
    done = sweep(folder)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("hessdist: ")]
    assert len(lines) == 1
    assert "checkpoints of steps 10, 40 were set aside" in lines[0]
    assert done.stdout.count("set aside: the checkpoint") == 2
    assert list(hessdist.open_run(folder / "results" / "run.h5").steps) == [0, 20, 30, 50]


@pytest.mark.slow
def test_a_sweep_whose_first_checkpoints_are_all_wrong_gives_up(folder: Path) -> None:
    shutil.rmtree(folder / "results")
    for step in STEPS:
        (folder / "checkpoints" / f"step-{step:08d}.pt").write_bytes(b"nothing")
    done = sweep(folder)
    assert done.returncode == 2
    assert done.stdout.count("set aside") == 3


# -- others at the same time -----------------------------------------------------------------


@pytest.mark.slow
def test_a_second_sweep_on_the_same_output_is_told_and_leaves(
    tmp_path: Path, finished: Path
) -> None:
    prepare(tmp_path, STEPS, seconds=0.05)
    with started(tmp_path, "spectrum", "job.toml", ranks=2) as process:
        until(lambda: len(parts(tmp_path)) == 1)
        second = sweep(tmp_path)
        assert second.returncode == 2
        assert "another sweep (process" in second.stderr
        assert second.stderr.count("hessdist: ") == 1
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, (out, err)
    same(tmp_path, finished)


@pytest.mark.slow
def test_sweeps_that_share_a_result_lose_and_double_nothing(tmp_path: Path, finished: Path) -> None:
    prepare(tmp_path, STEPS, seconds=0.05)
    words = ("spectrum", "job.toml", "--share", "--metrics", "metrics.jsonl")
    with (
        started(tmp_path, *words, ranks=2) as one,
        started(tmp_path, *words, ranks=2) as other,
    ):
        texts = [process.communicate(timeout=100) for process in (one, other)]
    assert [one.returncode, other.returncode] == [0, 0], texts
    solved = [out.split(" solved")[0].rsplit("(", 1)[1] for out, _ in texts]
    assert sum(map(int, solved)) == len(STEPS)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    firsts = [line["step"] for line in lines if line["product"] == 1]
    assert sorted(firsts) == list(STEPS)
    same(tmp_path, finished)


def test_a_reader_that_holds_the_result_open_is_not_in_the_way(
    folder: Path, finished: Path
) -> None:
    parts(folder)[2].unlink()
    with h5py.File(folder / "results" / "run.h5", "r") as held:
        assert sweep(folder).returncode == 0
        assert len(held["step"]) == len(STEPS)  # what it has opened stays as it was
    same(folder, finished)


@pytest.mark.slow
def test_a_clock_that_jumps_back_is_no_matter(folder: Path, finished: Path) -> None:
    shutil.rmtree(folder / "results")
    future = time.time() + 86_400
    for path in (folder / "checkpoints").iterdir():
        os.utime(path, (future, future))
    assert sweep(folder, "--checkpoints", "0:20").returncode == 0
    for path in parts(folder):
        os.utime(path, (future, future))
    assert sweep(folder).returncode == 0
    same(folder, finished)


@pytest.mark.slow
def test_a_checkpoint_that_is_rewritten_during_its_solve_is_solved_again(
    tmp_path: Path, finished: Path
) -> None:
    prepare(tmp_path, STEPS, seconds=0.05)
    right = tmp_path / "checkpoints" / "step-00000010.pt"
    kept = right.read_bytes()
    shutil.copy(tmp_path / "checkpoints" / "step-00000050.pt", right)
    words = ("spectrum", "job.toml", "--metrics", "metrics.jsonl")
    with started(tmp_path, *words, ranks=2) as process:
        metrics = tmp_path / "metrics.jsonl"
        until(lambda: metrics.exists() and '"step": 10, "product": 3' in metrics.read_text())
        new = right.with_name("new")
        new.write_bytes(kept)
        new.replace(right)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert "step 10: its checkpoint was written anew meanwhile" in out
    same(tmp_path, finished)
