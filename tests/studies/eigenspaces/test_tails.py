"""[study.tails]: against the stored spectra by hand, on other ranks, and what is shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from shown import figures_of, printed, run_of
from studied import JOB, prepare, run_study

import hessdist
from hessdist.config.loader import load_job
from hessdist.config.studies import registry
from hessdist.errors import HessdistError
from hessdist.results.units import Measurements
from hessdist.service.console import Console
from hessdist.service.train import train_job
from hessdist.theory.power_law import fit_power_law, resampled_error

SECTION = """
[study.exact]
operators = ["hessian", "gauss_newton"]
[study.tails]
least = 8
draws = 12
seed = 3
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tails")
    prepare(folder)
    (folder / "job.toml").write_text(JOB + SECTION, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        with Console(enabled=False) as console:
            train_job(load_job(folder / "job.toml", [])[0], console)
        run_study(folder)
    return folder


@pytest.fixture
def found(done: Path) -> Measurements:
    return hessdist.open_run(done / "results" / "run.h5").studies["tails"]


def test_against_the_stored_spectra(done: Path, found: Measurements) -> None:
    exact = hessdist.open_run(done / "results" / "run.h5").studies["exact"]
    assert found["operator"].tolist() == ["hessian", "gauss_newton"]
    for row, column in np.ndindex(2, 2):
        values = exact["eigenvalues"][row, column]
        assert found["kurtosis"][row, column] == pytest.approx(
            (values**4).mean() / (values**2).mean() ** 2
        )
        floor = 1e-6 * np.abs(values).max()
        for end, sign in enumerate((1, -1)):
            place = (row, column, end)
            tail = np.sort(sign * values[sign * values > floor])[::-1]
            assert found["count"][place] == len(tail)
            ranked = found["ranked"][place]
            assert ranked[: len(tail)] == pytest.approx(tail)
            assert np.isnan(ranked[len(tail) :]).all()
            law = fit_power_law(tail, 8)
            if law is None:
                assert np.isnan(found["exponent"][place])
                continue
            assert found["effective"][place] == pytest.approx(tail.sum() ** 2 / (tail**2).sum())
            for name, value in (
                ("exponent", law.exponent), ("bound", law.bound), ("tail", law.tail),
                ("distance", law.distance), ("exponent_error", law.error),
                ("exponent_spread", resampled_error(tail, 8, 12, np.random.default_rng(3))),
            ):  # fmt: skip
                assert found[name][place] == pytest.approx(value), name
            assert 0 <= found["plausibility"][place] <= 1
    lower = found["count"][:, 1, 1]
    assert (lower == 0).all()  # the Gauss-Newton matrix has no negative eigenvalue
    assert np.isfinite(found["exponent"][:, :, 0]).all()


def test_two_ranks(done: Path, found: Measurements, tmp_path: Path, run: Run) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    ended = run("study", "job.toml", ranks=2)
    assert ended.returncode == 0, ended.stderr
    other = hessdist.open_run(tmp_path / "results" / "run.h5").studies["tails"]
    assert other["exponent"] == pytest.approx(found["exponent"], rel=1e-6, nan_ok=True)
    assert np.array_equal(other["tail"], found["tail"], equal_nan=True)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["study.tails.least=2"], "greater than or equal to 5"),
        (["study.tails.null=0"], "greater than 0"),
        (['study.tails.operators=["residual"]'], "study.tails has no spectrum to fit"),
        (['study.tails.operators=["own"]'], "study.tails.operators"),
    ],
)
def test_bad_input(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str], complaint: str
) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HessdistError, match=complaint):
        run_study(tmp_path, *settings)


def test_without_draws_errors_are_unknown(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    measured = run_study(tmp_path, "study.tails.draws=0").studies["tails"]
    assert np.isfinite(measured["exponent"][:, :, 0]).all()
    assert np.isnan(measured["exponent_spread"]).all()
    assert np.isnan(measured["plausibility"]).all()
    assert list(figures_of({"tails": measured}, "a run"))


def test_tables_figures_and_page(done: Path, found: Measurements) -> None:
    lines = printed(hessdist.open_run(done / "results" / "run.h5")).splitlines()
    rows = [cells for line in lines if (cells := line.split())[:3] == ["20", "hessian", "+"]]
    ((_, _, _, exponent, _, _, bound, tail, count, *_),) = rows
    assert float(exponent) == pytest.approx(found["exponent"][1, 0, 0], rel=1e-3)
    assert bound == f"{found['bound'][1, 0, 0]:.3g}"
    assert (tail, count) == tuple(f"{found[name][1, 0, 0]:.3g}" for name in ("tail", "count"))
    ((name, figure),) = figures_of({"tails": found}, "a run")
    assert name == "tails"
    drawn = figure.axes[0].get_lines()[0].get_ydata()
    assert np.array_equal(drawn, found["ranked"][0, 0, 0], equal_nan=True)
    (view,) = registry()["tails"].views_of(run_of({"tails": found}))
    assert view.figures[0].name == "exponents"
    assert "positive eigenvalues of H" in [one.name for one in view.figures]
