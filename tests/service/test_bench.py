"""`hessdist bench`: what it measures holds together, and what is wrong is said before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import DIGITS_JOB, Run

from hessdist.spectrum import petsc

BLOCKS = """
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        wide = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)]
        self.layers = nn.Sequential(*wide)

    def forward(self, x):
        return x + self.layers(x)


def build():
    blocks = [Block() for _ in range(3)]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), *blocks, nn.Linear(4, 10))
"""


def measured(run: Run, job: Path, *words: str, ranks: int) -> dict[str, Any]:
    done = run("bench", str(job), "--repeat", "2", *words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert "products" in done.stdout or "--no-solve" in words
    written = done.stdout.split("written: ")[1].strip()
    found: dict[str, Any] = json.loads((job.parent / written).read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_parts_add_up(run: Run, job: Path, ranks: int) -> None:
    assert run("train", str(job)).returncode == 0
    found = measured(run, job, ranks=ranks)
    assert found["ranks"] == ranks
    assert found["num_parameters"] == 610
    assert found["num_samples"] == 100
    assert found["checkpoint"] == "step-00000040.pt"
    assert set(found["products"]) == {"kept", "rebuilt", "finite difference"}
    for name, seconds in {"gradient": found["gradient"], **found["products"]}.items():
        assert 0 < seconds["least"] <= seconds["median"] <= seconds["most"], name

    solve = found["solve"]
    parts = ["graphs", "gather", "product", "reduction", "algebra"]
    assert sum(solve[f"seconds_{part}"] for part in parts) == pytest.approx(solve["seconds"])
    assert solve["algebra_share"] == pytest.approx(solve["seconds_algebra"] / solve["seconds"])
    assert solve["converged"]
    assert solve["products"] >= 6

    for rank in found["memory"]:
        assert 6 <= rank["basis"] <= 30
        column = -(-610 // ranks) * petsc.scalar_bytes()
        assert rank["parts"]["Krylov basis"] == (rank["basis"] + 1) * column
        assert rank["peak"] == pytest.approx(rank["planned"], rel=0.1)
        assert rank["planned"] < rank["budget"]
    assert sum(rank["batches"] for rank in found["kept"]) >= 100 / 32

    counts = sorted({1, 2, ranks} & set(range(ranks + 1)))
    assert [each["ranks"] for each in found["strong"]] == counts
    assert [each["samples"] for each in found["strong"]] == [100] * len(counts)
    assert [each["samples"] for each in found["weak"]] == [100 * p // ranks for p in counts]
    assert found["strong"][0]["efficiency"] == found["weak"][0]["efficiency"] == 1


def test_before_there_is_any_checkpoint(run: Run, job: Path) -> None:
    found = measured(
        run, job, "--no-solve", "--json", "here/bench.json",
        "--set", "spectrum.operator=gauss_newton", ranks=2,
    )  # fmt: skip
    assert found["checkpoint"] == "initial parameters"
    assert found["solve"] is None
    assert set(found["products"]) == {"kept", "rebuilt"}
    assert found["graph_bytes"]["kept"] == found["graph_bytes"]["rebuilt"] > 0


def test_memory_and_time_of_every_form(run: Run, tmp_path: Path) -> None:
    (tmp_path / "blocks.py").write_text(BLOCKS, encoding="utf-8")
    job = tmp_path / "job.toml"
    job.write_text(
        DIGITS_JOB.replace('"mlp"', '"blocks:build"').replace("arguments =", "arguments = {} #"),
        encoding="utf-8",
    )
    found = measured(run, job, "--no-solve", "--set", "data.samples=20", ranks=0)
    forms = {"kept", "recomputed by block", "rebuilt", "finite difference"}
    assert set(found["products"]) == set(found["graph_bytes"]) == forms
    sizes = found["graph_bytes"]
    assert 0 < sizes["recomputed by block"] < sizes["finite difference"] < sizes["kept"]


@pytest.mark.slow
def test_the_cache_s_budget_is_kept(run: Run, job: Path) -> None:
    every = measured(run, job, "--no-solve", ranks=1)["kept"][0]
    budget = every["bytes"] * 0.6
    some = measured(
        run, job, "--no-solve", "--set", f"compute.cache_gib={budget / 2**30:.12f}", ranks=1
    )["kept"][0]
    assert 0 < some["kept_batches"] < every["kept_batches"] == every["batches"]
    assert some["bytes"] <= budget


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "7"], "there is no checkpoint of step 7"),
        (["--repeat", "0"], "--repeat 0 measures nothing"),
        (["--json", "job.toml/x.json"], "cannot be written"),
        (["--set", "data.dataset=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(run: Run, job: Path, words: list[str], said: str) -> None:
    (job.parent / "checkpoints").mkdir()
    (job.parent / "checkpoints" / "step-1.pt").touch()
    done = run("bench", str(job), *words, ranks=2)
    assert done.returncode == 2
    complaints = [line for line in done.stderr.splitlines() if line.startswith("hessdist:")]
    assert len(complaints) == 1
    assert said in complaints[0]
    assert "Traceback" not in done.stderr
