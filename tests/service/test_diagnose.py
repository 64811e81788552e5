"""`hessdist diagnose`: the note, JSON, the file, what was done before, complaints."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from studied import JOB, MODULE

import hessdist
from hessdist.config.loader import load_job
from hessdist.errors import CheckpointError, InputError, JobError, OutputError, Stopped
from hessdist.landscape.diagnosis import Point, findings, note_of
from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements
from hessdist.service.console import Console
from hessdist.service.diagnose import diagnose
from hessdist.service.sweep import sweep
from hessdist.service.train import train_job
from hessdist.service.units import Unit, WorkDone
from hessdist.studies.shows import tables

DIAGNOSIS = "[diagnosis]\npoints = 8\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diagnosed")
    (folder / "ours.py").write_text(MODULE, encoding="utf-8")
    (folder / "job.toml").write_text(JOB + DIAGNOSIS, encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        train_job(load_job(Path("job.toml"))[0], Console(enabled=False))
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the checkpoints, which is the working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def steps_of(units: list[Unit]) -> list[int | None]:
    return [unit.step for unit in units]


def diagnosed(*overrides: str, **options: Any) -> WorkDone:
    job, text = load_job(Path("job.toml"), overrides)
    return diagnose(job, text, Ranks(), Console(enabled=True), **options)


def stored() -> Measurements:
    return hessdist.open_run("results/run.h5").studies["diagnosis"]


def test_end_to_end(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """On two ranks, as users start it; and the same as on one."""
    done = run("diagnose", "job.toml", "--json", "found/d.json", ranks=2)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    begin = lines.index(next(line for line in lines if line.startswith("step 20: loss")))
    section = stored()
    assert list(section["step"]) == [20]
    assert note_of(section, 0) == str(section["note"][0]).splitlines()
    count = len(note_of(section, 0))
    assert lines[begin : begin + count] == note_of(section, 0)
    document = json.loads((folder / "found" / "d.json").read_text(encoding="utf-8"))
    assert document["json_version"] == 1
    (one,) = document["diagnoses"]
    assert one["step"] == 20
    assert one["kind"] == "no critical point"
    expected = [vars(finding) for finding in findings(Point.of(section, 0))]
    assert one["findings"] == expected
    assert all(set(finding) == {"topic", "text", "source"} for finding in one["findings"])
    numbers = one["numbers"]
    assert numbers.keys() == set(section) - {"step", "note"}
    for name in ("loss", "gradient_curvature", "escape_loss_change"):
        assert numbers[name] == section[name][0]
    assert np.allclose(numbers["loss_along_gradient"], section["loss_along_gradient"][0])
    # The same command tells it again without a solve.
    again = diagnosed()
    assert (steps_of(again.done), steps_of(again.skipped)) == ([], [20])
    assert lines[begin : begin + count] == capsys.readouterr().out.splitlines()[2 : 2 + count]
    assert steps_of(diagnosed('output.path="results/alone.h5"').done) == [20]
    alone = hessdist.open_run("results/alone.h5").studies["diagnosis"]
    for name, values in alone.items():
        if values.dtype.kind == "f" and name != "seconds":
            assert section[name] == pytest.approx(values, rel=1e-5, abs=1e-12, nan_ok=True), name


def test_eigenpairs_of_the_sweep_are_taken(folder: Path) -> None:
    solved = diagnosed(everything=True)
    assert (steps_of(solved.done), steps_of(solved.skipped)) == ([0, 20], [])
    alone = stored()
    assert alone["solved_here"].all()
    job, text = load_job(Path("job.toml"))
    sweep(job, text, Ranks(), Console(enabled=False))
    assert list(stored()["step"]) == [0, 20]  # a sweep leaves it
    for unit in Path("results/run.checkpoints").glob("study-*"):
        unit.unlink()
    diagnosed(everything=True)
    taken = stored()
    assert not taken["solved_here"].any()
    assert taken["products"].tolist() == [1, 1]  # along the gradient
    for name, values in alone.items():
        if name not in {"seconds", "products", "solved_here", "note"}:
            if values.dtype.kind == "f":
                assert values == pytest.approx(taken[name], rel=1e-5, nan_ok=True), name
            else:
                assert np.array_equal(values, taken[name]), name
    # Of another content of the checkpoint, they are not.
    shutil.copy("checkpoints/step-00000000.pt", "checkpoints/step-00000020.pt")
    assert steps_of(diagnosed(step=20).done) == [20]
    assert stored()["solved_here"][list(stored()["step"]).index(0)] == False  # noqa: E712


def test_a_step_too_long_is_predicted_and_measured_to_raise_the_loss(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diagnosed("training.learning_rate=8.0")
    section = stored()
    assert section["loss_change"][0] > 0
    assert section["predicted_loss_change"][0] > 0
    told = capsys.readouterr().out
    assert "is predicted to raise the loss" in told
    assert "measured to raise the loss" in told
    with pytest.raises(OutputError, match="other settings"):
        diagnosed()
    assert steps_of(diagnosed(overwrite=True).done) == [20]
    assert stored()["loss_change"][0] < 0


def test_the_table_and_the_note_in_show(folder: Path) -> None:
    from rich.console import Console

    diagnosed(everything=True)
    console = Console(width=400, file=io.StringIO(), record=True, highlight=False)
    for table in tables(hessdist.open_run("results/run.h5")):
        console.print(table)
    shown = console.export_text()
    assert "no critical point" in shown
    heading, *_ = note_of(stored(), 1)
    assert heading in shown
    for finding in findings(Point.of(stored(), 1)):
        assert f"{finding.text} [{finding.source}]" in shown


def test_figures(folder: Path) -> None:
    from hessdist.studies.shows import figures

    diagnosed(everything=True)
    made = dict(figures(hessdist.open_run("results/run.h5"), "title"))
    assert {
        "diagnosis-gradient", "diagnosis-rates", "diagnosis-changes", "diagnosis-escape",
        "diagnosis-lines-step-0", "diagnosis-lines-step-20",
    } <= set(made)  # fmt: skip
    left, right = made["diagnosis-lines-step-20"].axes
    drawn = left.get_lines()[0].get_ydata()
    assert drawn == pytest.approx(stored()["loss_along_gradient"][1])
    assert right.get_lines()[0].get_xdata() == pytest.approx(stored()["distance"])


def test_pairs_that_did_not_converge_are_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from petsc4py import PETSc

    options = PETSc.Options()
    options["eps_max_it"], options["eps_ncv"] = 1, 8
    try:
        found = diagnosed()
    finally:
        options.delValue("eps_max_it")
        options.delValue("eps_ncv")
    assert steps_of(found.unconverged) == [20]
    assert "have not converged" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_finite_is_set_aside(folder: Path) -> None:
    state = torch.load("checkpoints/step-00000000.pt", weights_only=True)
    next(iter(state.values()))[:] = float("nan")
    torch.save(state, "checkpoints/step-00000000.pt")
    with pytest.raises(CheckpointError, match=r"step 0: .*is not finite"):
        diagnosed(everything=True)
    assert list(stored()["step"]) == [20]


def test_a_signal_ends_it_between_products(folder: Path) -> None:
    class Interrupting(Console):
        def note(self, text: str) -> None:
            if text.startswith("diagnosis of step 20: 3 products"):
                os.kill(os.getpid(), signal.SIGUSR1)

    job, text = load_job(Path("job.toml"))
    with pytest.raises(Stopped, match="1 of 2 checkpoints left") as stopped:
        diagnose(job, text, Ranks(), Interrupting(enabled=False), everything=True)
    assert stopped.value.exit_status == 75
    assert list(stored()["step"]) == [0]
    again = diagnosed(everything=True)
    assert (steps_of(again.done), steps_of(again.skipped)) == ([20], [0])


def test_bad_input(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are 0, 20"):
        diagnosed(step=7)
    with pytest.raises(JobError, match=r"spectrum\.operator is 'gauss_newton'"):
        diagnosed("spectrum.operator=gauss_newton")
    with pytest.raises(OutputError, match="--json"):
        diagnosed(json_path=folder)
    job, text = load_job(Path("job.toml"), ["data.samples=30"])
    sweep(job, text, Ranks(), Console(enabled=False))
    with pytest.raises(InputError, match="result of another job"):
        diagnosed()
