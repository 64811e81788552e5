"""A sweep with the metric of the optimiser, from training to what is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import Done, invoked
from conftest import DIGITS_JOB

import hessdist
from hessdist.config.loader import parse_job

ADAM = DIGITS_JOB.replace(
    'optimizer = "sgd"\nlearning_rate = 0.5', 'optimizer = "adam"\nlearning_rate = 0.01'
)
SCALED = ADAM.replace("[spectrum]\n", '[spectrum]\nmetric = "optimizer"\n')


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scaled")
    (folder / "job.toml").write_text(SCALED, encoding="utf-8")
    assert invoked(folder, "train", "job.toml").returncode == 0
    done = solve(folder)
    assert done.returncode == 0, done
    return folder


@pytest.fixture
def folder(solved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(solved, tmp_path / "here"))


def solve(folder: Path, *more: str) -> Done:
    return invoked(folder, "spectrum", "job.toml", "--checkpoints", "20:", *more)


def test_results_say_what_they_are_of(solved: Path) -> None:
    run = hessdist.open_run(solved / "results" / "digits.h5")
    assert (run.metric, run.steps.tolist()) == ("optimizer", [20, 40])
    correction = 1 - 0.9 ** np.array([20, 40])
    assert run.stability_bound == pytest.approx(2 / 0.01 * 19 * correction)
    with h5py.File(next((solved / "results").glob("digits.checkpoints/step-*20.*.h5"))) as file:
        assert file.attrs["metric"] == "optimizer"
        assert len(file.attrs["metric_digest"]) == 64
        assert file.attrs["stability_bound_of"].startswith("Adam of rate")
        assert "P^(-1/2) H P^(-1/2)" in file["eigenvalues_largest"].attrs["long_name"]
        assert "|Aw - λw|" in file["residuals_largest"].attrs["long_name"]
    shown = invoked(solved, "show", "results/digits.h5").stdout
    assert "eigenpairs of P^(-1/2) H P^(-1/2), P of the optimiser" in shown
    assert "bound on λ_1" in shown
    assert invoked(solved, "report", "results/digits.h5").returncode == 0
    page = (solved / "results" / "digits.html").read_text(encoding="utf-8")
    assert "hessian, scaled by the metric: optimizer" in page
    assert "|λ| of P^(-1/2) H P^(-1/2)" in page
    assert "bound on λ₁" in page


def test_a_finished_checkpoint_is_skipped_until_its_metric_changes(folder: Path) -> None:
    again = solve(folder)
    assert "0 solved, 2 done before" in again.stdout
    path = folder / "checkpoints" / "optimizer" / "step-00000040.pt"
    written = torch.load(path, weights_only=True)
    written["optimizer"]["state"][0]["exp_avg_sq"] *= 4
    torch.save(written, path)
    assert "1 solved, 1 done before" in solve(folder).stdout
    path.unlink()
    refused = solve(folder)
    assert refused.returncode == 2
    assert "step-00000040.pt has no optimiser's state" in refused.stderr


def test_the_first_checkpoint_is_set_aside_and_the_others_are_solved(folder: Path) -> None:
    done = invoked(folder, "spectrum", "job.toml")
    assert done.returncode == 2
    assert "Adam has made no step of it" in done.stderr
    assert len(hessdist.open_run(folder / "results" / "digits.h5")) == 2


def test_a_diagnosis_is_of_h_itself_and_names_the_edge(folder: Path) -> None:
    done = invoked(folder, "diagnose", "job.toml", "--json", "note.json")
    assert done.returncode == 0, done
    (diagnosis,) = json.loads((folder / "note.json").read_text())["diagnoses"]
    (edge,) = [one["text"] for one in diagnosis["findings"] if one["topic"] == "edge"]
    assert "steps are stable up to λ₁ = 3744 of P^(-1/2) H P^(-1/2) (Adam of rate" in edge
    run = hessdist.open_run(folder / "results" / "digits.h5")
    assert diagnosis["numbers"]["edge_eigenvalue"] == run.eigenvalues_largest[1, 0]
    plain = ("--set", "spectrum.metric=none", "--set", "output.path=results/plain.h5")
    assert solve(folder, *plain).returncode == 0
    unscaled = hessdist.open_run(folder / "results" / "plain.h5")
    found = diagnosis["numbers"]["eigenvalues_largest"]
    assert found == pytest.approx(unscaled.eigenvalues_largest[1], rel=1e-4)
    assert np.isnan(unscaled.stability_bound).all()  # Adam has none for H itself
    study = (folder / "job.toml").read_text() + '\n[study.lines]\npairs = ["smallest 1"]\n'
    (folder / "job.toml").write_text(study, encoding="utf-8")
    refused = invoked(folder, "study", "job.toml")
    assert refused.returncode == 2
    assert "study.lines is about the matrix itself" in refused.stderr


def test_jobs_without_a_metric_have_the_fingerprint_of_before() -> None:
    job, _ = parse_job(DIGITS_JOB, "here")
    assert not any("metric" in key for key in job.determining())
    assert job.fingerprint() == "6a77cae8571e"
    assert parse_job(SCALED, "here")[0].determining()["spectrum.metric"] == "optimizer"
