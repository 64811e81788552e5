"""[study.paths]: against the study of straight lines, on other ranks, and what is shown of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from shown import figures_of, printed, run_of
from studied import JOB, prepare, run_study

import hessdist
from hessdist.config.studies import registry
from hessdist.errors import HessdistError
from hessdist.landscape.paths import barrier
from hessdist.results.units import Measurements

LINES = """
[study.interpolation]
batch_size = 16
steps = 20
every = 10
points = 5
"""
PATHS = """
[study.paths]
hidden = [[5], [3, 2]]
pairs = 2
batch_size = 16
steps = 20
every = 10
points = 5
path_steps = 30
curve_samples = 4
pivots = 3
walk_steps = 3
walk_below = 50
"""


def written(folder: Path, *settings: str) -> Measurements:
    return run_study(folder, *settings).studies["paths"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    prepare(folder)
    # No module of one name is written by two files of tests: Python would find the older one.
    (folder / "model_that_is_no_mlp.py").write_text(
        "import torch\n\n\ndef linear():\n    return torch.nn.Linear(6, 3)\n", encoding="utf-8"
    )
    (folder / "job.toml").write_text(JOB + LINES + PATHS, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(job: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(job)
        patch.syspath_prepend(job)
        written(job)
    return job


@pytest.fixture
def found(done: Path) -> Measurements:
    return hessdist.open_run(done / "results" / "run.h5").studies["paths"]


def test_the_first_pair_is_that_of_the_other_study(done: Path, found: Measurements) -> None:
    lines = hessdist.open_run(done / "results" / "run.h5").studies["interpolation"]
    assert list(found["architecture"]) == ["5", "3-2"]
    assert found["parameters"].tolist() == [53, 38]
    assert found["training_loss"][0, 0] == pytest.approx(lines["loss"][1], rel=1e-12)
    assert found["training_distance"][0, 0] == pytest.approx(lines["distance"][1], rel=1e-12)
    assert list(found["step"]) == [0, 10, 20]
    assert np.array_equal(found["fraction"], lines["fraction"])


def test_all_paths_have_the_same_ends(found: Measurements) -> None:
    assert list(found["path"]) == ["line", "curve", "band", "walk"]
    losses = found["loss"]
    assert losses.shape == (2, 2, 4, 5)
    assert np.isnan(losses[0, :, 3]).all()  # 53 parameters are too many for a walk
    assert np.isfinite(losses[1]).all()
    assert np.isnan(found["walk_loss"][0]).all()
    there = losses[1][..., [0, -1]]
    assert there == pytest.approx(np.broadcast_to(there[:, :1], there.shape), rel=1e-12)
    assert np.array_equal(losses[:, :, 0], found["training_loss"][:, :, -1])
    assert found["barrier"] == pytest.approx(barrier(losses, found["fraction"]), nan_ok=True)
    straight = found["training_distance"][..., -1]
    assert found["length"][..., 0] == pytest.approx(straight)
    assert (found["length"][..., 1:3] >= found["length"][..., :1] * (1 - 1e-12)).all()
    assert not np.allclose(losses[:, 0], losses[:, 1])


def test_walks_are_described(found: Measurements) -> None:
    share, covered, count = (
        found[f"walk_{name}"][1] for name in ("null_share", "covered", "null_count")
    )
    assert ((share > 0) & (share < 1)).all()
    assert ((covered > 0) & (covered < 1)).all()
    assert (np.diff(covered, axis=1) > 0).all()
    assert ((count > 0) & (count < 38)).all()


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_same_bits_on_ranks(
    done: Path, found: Measurements, tmp_path: Path, run: Run, ranks: int
) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    ended = run("study", "job.toml", "--only", "paths", ranks=ranks)
    assert ended.returncode == 0, ended.stderr
    other = hessdist.open_run(tmp_path / "results" / "run.h5").studies["paths"]
    assert other.keys() == found.keys()
    for name in found:
        assert np.array_equal(other[name], found[name], equal_nan=found[name].dtype.kind == "f")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("study.paths.every=3", "not a multiple of every = 3"),
        ('study.paths.kinds=["curve"]', "kinds lacks 'line'"),
        ('study.paths.kinds=["line", "line"]', "kinds has a value twice"),
        ("study.paths.hidden=[[]]", "hidden is empty"),
        ("study.paths.path_momentum=1.0", "less than 1"),
        ("loss.l2=0.1", "study.paths"),
        ("model.factory=model_that_is_no_mlp:linear", "model.factory is .model_that_is_no_mlp"),
    ],
)
def test_bad_input(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, complaint: str
) -> None:
    shutil.copytree(job, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "job.toml").write_text(JOB + PATHS, encoding="utf-8")
    more = ["model.arguments={}"] if "model.factory" in setting else []
    with pytest.raises(HessdistError, match=complaint):
        written(tmp_path, setting, *more)


def test_tables_figures_and_page(done: Path, found: Measurements) -> None:
    study_of = registry()["paths"]
    text = printed(hessdist.open_run(done / "results" / "run.h5"))
    row = next(
        line.split() for line in text.splitlines() if line.split()[:3] == ["3-2", "38", "curve"]
    )
    assert row[4] == f"{np.median(found['barrier'][1, :, 1]):.3g}"
    assert "walks in the null space" in text
    figures = dict(figures_of({"paths": found}, "a run"))
    assert list(figures) == ["paths-barriers", "paths-losses", "paths-training", "paths-walks"]
    left = figures["paths-barriers"].axes[0]
    drawn = [line.get_ydata() for line in left.get_lines() if line.get_linestyle() == "-"]
    assert drawn[0] == pytest.approx(np.median(found["barrier"][..., 0], axis=1))
    views = {view.name: view for view in study_of.views_of(run_of({"paths": found}))}
    assert list(views) == ["paths", "paths-training"]
    assert [figure.name for figure in views["paths"].figures] == [
        "barriers",
        "hidden 5",
        "hidden 3-2",
    ]
    (first, second) = study_of.remarks_on(found)
    assert first.startswith("5: barriers, medians of 2 pairs: line ")
    assert "walk" in second
    assert "walk" not in first


def test_a_line_alone_is_shown(found: Measurements) -> None:
    variables = {name: v for name, v in found.variables.items() if not name.startswith("walk")}
    cut = {
        name: type(v)(v.dimensions, np.take(v.values, [0], v.dimensions.index("path")), v.long_name)
        for name, v in variables.items()
        if "path" in v.dimensions
    }
    alone = {"paths": Measurements({**variables, **cut})}
    assert [name for name, _ in figures_of(alone, "a run")] == [
        "paths-barriers", "paths-losses", "paths-training",
    ]  # fmt: skip
    assert len(list(registry()["paths"].tables_of(run_of(alone)))) == 1
    assert len(list(registry()["paths"].views_of(run_of(alone)))) == 2
