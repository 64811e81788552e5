"""Groups of ranks take checkpoints from one queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sweeps import completed, prepare, same

STEPS = tuple(range(0, 80, 10))


@pytest.fixture(scope="module")
def one_group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of one rank."""
    folder = tmp_path_factory.mktemp("one")
    prepare(folder, STEPS)
    sweep(folder, 1)
    return folder


def sweep(folder: Path, ranks: int, *words: str, status: int = 0) -> str:
    done = completed(folder, "spectrum", "job.toml", *words, ranks=ranks)
    assert done.returncode == status, done.stderr
    return done.stdout if not status else done.stderr


@pytest.mark.parametrize("groups", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_groups_of_one_rank_find_what_one_rank_finds(
    tmp_path: Path, one_group: Path, groups: int
) -> None:
    prepare(tmp_path, STEPS, seconds=0.01)
    text = sweep(tmp_path, groups, "--groups", str(groups), "--metrics", "m.jsonl")
    assert f"in {groups} groups" in text
    assert f"({len(STEPS)} solved, 0 done before)" in text
    same(tmp_path, one_group)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    firsts = [(line["step"], line["group"]) for line in lines if line["product"] == 1]
    assert sorted(step for step, _ in firsts) == list(STEPS)
    assert {group for _, group in firsts} == set(range(groups))
    for step in STEPS:  # every line comes from rank 0, once
        assert text.count(f"step {step}: loss") == 1
    assert f"({0} solved, {len(STEPS)} done before)" in sweep(tmp_path, 2, "--groups", "2")


@pytest.mark.slow
def test_a_group_of_two_beside_one_of_one(tmp_path: Path, one_group: Path) -> None:
    prepare(tmp_path, STEPS)
    sweep(tmp_path, 3, "--groups", "2")
    import hessdist

    found, expected = (
        hessdist.open_run(folder / "results" / "run.h5") for folder in (tmp_path, one_group)
    )
    assert list(found.steps) == list(expected.steps)
    assert found.eigenvalues_largest == pytest.approx(expected.eigenvalues_largest, rel=1e-6)
    assert found.eigenvalues_smallest == pytest.approx(expected.eigenvalues_smallest, rel=1e-6)


def test_more_groups_than_ranks_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path, STEPS)
    assert "3 groups of 2 ranks" in sweep(tmp_path, 2, "--groups", "3", status=2)


@pytest.mark.slow
def test_a_checkpoint_set_aside_by_one_group_stops_no_other(tmp_path: Path) -> None:
    prepare(tmp_path, STEPS, seconds=0.01)
    (tmp_path / "checkpoints" / "step-00000030.pt").write_bytes(b"nothing")
    line = sweep(tmp_path, 2, "--groups", "2", status=2)
    assert "step-00000030.pt is truncated or damaged" in line
    assert f"({len(STEPS) - 1} solved" not in line
    parts = list((tmp_path / "results" / "run.checkpoints").glob("step-*.h5"))
    assert len(parts) == len(STEPS) - 1
