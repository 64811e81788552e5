"""PETSc's options on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run

from hessdist.cli import split_petsc_options


@pytest.mark.parametrize(
    ("words", "ours", "petsc"),
    [
        ("spectrum job.toml -eps_ncv 60", "spectrum job.toml", "-eps_ncv 60"),
        ("spectrum -eps_monitor job.toml", "spectrum job.toml", "-eps_monitor"),
        ("spectrum job.toml -eps_target -0.5", "spectrum job.toml", "-eps_target -0.5"),
        ("spectrum -log_view :log.txt job.toml", "spectrum job.toml", "-log_view :log.txt"),
        ("plot run.h5 -o here", "plot run.h5 -o here", ""),
        ("show run.h5 --set a.b=-1", "show run.h5 --set a.b=-1", ""),
    ],
)  # fmt: skip
def test_petsc_s_options_are_told_from_ours(words: str, ours: str, petsc: str) -> None:
    assert split_petsc_options(words.split()) == (ours.split(), petsc.split())


@pytest.mark.slow
def test_an_option_that_nobody_asks_for_is_warned_about(run: Run, job: Path) -> None:
    assert run("train", str(job)).returncode == 0
    done = run("spectrum", str(job), "-eps_ncw", "30", "-eps_max_it", "77")
    assert done.returncode == 0, done.stderr
    assert "warning: PETSc option -eps_ncw was not used" in done.stdout
    assert "-eps_max_it" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "option",
    [("-eps_type", "nonsense"), ("-eps_ncv", "2")],
)
def test_an_option_that_petsc_refuses_is_bad_input(
    run: Run, job: Path, option: tuple[str, str], ranks: int
) -> None:
    assert run("train", str(job), "--set", "training.checkpoint_steps=[40]").returncode == 0
    done = run("spectrum", str(job), *option, ranks=ranks)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("hessdist:")]
    assert len(said) == 1
    assert "PETSc refuses the options" in said[0]
    assert "Traceback" not in done.stderr


def test_a_command_that_does_not_solve_takes_none(run: Run, job: Path) -> None:
    done = run("train", str(job), "-eps_ncv", "30")
    assert done.returncode == 2
    assert done.stderr.startswith("hessdist: hessdist train takes no option -eps_ncv")
