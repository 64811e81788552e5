"""[study.class_structure]: stored pairs beside dense parts of G, other ranks, what it shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from class_sums import explicit
from conftest import Run
from networks import Problem, Samples, dense

import hessdist
from hessdist.config.loader import load_job
from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import replacing
from hessdist.results.units import Measurements
from hessdist.results.writer import write_index
from hessdist.service.console import Console
from hessdist.service.study import study
from hessdist.service.sweep import sweep
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES

POINTS = """
import torch
from torch.utils.data import TensorDataset

def points():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (30,), generator=generator)
    inputs[:, 0] += 2 * labels
    return TensorDataset(inputs, labels)
"""
JOB = """
name = "classes"
[model]
factory = "mlp"
arguments = { widths = [5, 4, 4], activation = "tanh" }
[data]
dataset = "points:points"
[training]
optimizer = "sgd"
learning_rate = 0.5
batch_size = 10
steps = 30
checkpoint_steps = [0, 30]
[checkpoints]
directory = "checkpoints"
[spectrum]
operator = "gauss_newton"
largest = 5
smallest = 0
tolerance = 1e-9
[compute]
dtype = "float64"
batch_size = 8
workers = 0
[output]
path = "run.h5"
[study.class_structure]
within = 2
trace_products = 60
"""


def measure(folder: Path, *settings: str, solve: bool = True) -> Measurements:
    """Solve and do the study on this process."""
    with pytest.MonkeyPatch.context() as patch, Console(enabled=False) as console:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        job, text = load_job(folder / "job.toml", list(settings))
        if solve:
            sweep(job, text, Ranks(), console)
        study(job, text, Ranks(), console, overwrite=not solve)
    return hessdist.open_run(folder / "run.h5").studies["class_structure"]


def points() -> Samples:
    names: dict[str, object] = {}
    exec(POINTS, names)
    return Samples(*names["points"]().tensors)  # type: ignore[operator]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    (folder / "points.py").write_text(POINTS, encoding="utf-8")
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    (folder / "checkpoints").mkdir()
    torch.manual_seed(0)
    model = mlp([5, 4, 4], "tanh").double()
    samples = points()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in (0, 30):
        torch.save(model.state_dict(), folder / "checkpoints" / f"step-{step:08d}.pt")
        for _ in range(30):
            optimizer.zero_grad()
            LOSSES["cross_entropy"](model(samples.tensors[0]), samples.tensors[1]).backward()
            optimizer.step()
    measure(folder)
    return folder


def test_parts_of_the_stored_pairs(folder: Path) -> None:
    run = hessdist.open_run(folder / "run.h5")
    measured = run.studies["class_structure"]
    assert measured["step"].tolist() == [0, 30]
    for row, step in enumerate((0, 30)):
        model = mlp([5, 4, 4], "tanh").double()
        path = folder / "checkpoints" / f"step-{step:08d}.pt"
        model.load_state_dict(torch.load(path, weights_only=True))
        problem = Problem(model, LOSSES["cross_entropy"], points())
        expected = explicit(problem, 4)
        values, vectors = np.linalg.eigh(dense(problem, "gauss_newton").numpy() / 30)
        v = vectors.T[::-1][:5]
        here = {name: table[row] for name, table in measured.items() if name[0] != "o"}
        assert here["samples"].tolist() == [*np.bincount(points().tensors[1].numpy()), 0]
        assert here["eigenvalue"] == pytest.approx(values[::-1][:5], rel=1e-8)
        assert here["quotient"] == pytest.approx(values[::-1][:5], rel=1e-6)
        for name in ("class", "cross", "true"):
            forms = np.einsum("id,de,ie->i", v, expected.parts[name], v)
            assert here[f"quotient_{name}"] == pytest.approx(forms, abs=1e-6 * values[-1])
            assert here[f"trace_{name}"] == pytest.approx(np.trace(expected.parts[name]))
        left, lengths, _ = np.linalg.svd(expected.class_means.T, full_matrices=False)
        basis = left[:, lengths > 1e-9 * lengths[0]]
        assert here["dimension_class"] == basis.shape[1] == 3  # one class has no sample
        assert here["share_class"] == pytest.approx(((v @ basis) ** 2).sum(1), abs=1e-5)
        within = np.linalg.eigvalsh(expected.parts["within"])[::-1][:2]
        assert here["eigenvalue_within"] == pytest.approx(within, rel=1e-6)
        assert here["converged_within"].all()
        # As many products as parameters give the diagonal.
        assert here["trace"] == pytest.approx(values.sum())
        assert here["trace_error"] == 0
        square = (expected.means**2).sum(axis=2)
        assert here["mean_square"][:3] == pytest.approx(square[:3])
        assert np.isnan(here["mean_square"][3]).all()
        share = ((expected.class_means[:3] @ v[:4].T) ** 2).sum(1)
        share /= (expected.class_means[:3] ** 2).sum(1)
        assert here["mean_in_space"][:3] == pytest.approx(share, abs=1e-5)
        one, other = expected.class_means[:2]
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert here["cosine"][0, 1] == pytest.approx(cosine)


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for note in tmp_path.glob("run.checkpoints/checkpoints.*.json"):
        note.unlink()  # it names the folder of the checkpoints
    return tmp_path


def test_the_same_on_ranks(folder: Path, own: Path, run: Run) -> None:
    mine = hessdist.open_run(folder / "run.h5").studies["class_structure"]
    # The trace is that of the diagonal: its seed does not matter.
    words = ("--overwrite", "--set", "compute.batch_size=3")
    done = run("study", "job.toml", *words, "--set", "study.class_structure.seed=1", ranks=3)
    assert done.returncode == 0, done.stderr
    assert "largest eigenvectors in the span of the class means (3 dimensions)" in done.stdout
    theirs = hessdist.open_run(own / "run.h5").studies["class_structure"]
    for name, table in mine.items():
        if name != "products":
            assert theirs[name] == pytest.approx(table, rel=1e-6, abs=1e-7, nan_ok=True), name


def test_pairs_that_did_not_converge_are_left_out(own: Path) -> None:
    part = next((own / "run.checkpoints").glob("step-00000030*.h5"))
    with h5py.File(part) as before, replacing(part, sealed=True) as file:
        for name in before:
            before.copy(name, file)
        file.attrs.update(before.attrs)
        file["converged_largest"][1] = False
        file["residuals_largest"][1] = 0.5
    write_index(own / "run.h5", sorted((own / "run.checkpoints").glob("step-*.h5")))
    none = ("study.class_structure.trace_products=0", "study.class_structure.within=0")
    measured = measure(own, *none, solve=False)
    assert "eigenvalue_within" not in measured
    assert np.isnan(measured["trace"]).all()
    left_out = [[False] * 5, [False, True, False, False, False]]
    for name in ("eigenvalue", "quotient", "quotient_cross", "share_means"):
        assert np.isnan(measured[name]).tolist() == left_out, name
    assert np.isnan(measured["mean_in_space"][1]).all()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("loss.l2=0.1", "study.class_structure"),
        ("spectrum.metric=diagonal", "study.class_structure is about the matrix itself"),
        ("study.class_structure.trace_products=1", "too few for a trace"),
        ("loss.factory=mse", "defined for the mean cross-entropy"),
    ],
)
def test_bad_input(folder: Path, setting: str, complaint: str, tmp_path: Path) -> None:
    words = [setting, f"output.path={tmp_path / 'other.h5'}"]
    if "metric" in setting:
        np.save(tmp_path / "p.npy", np.ones(44))
        words.append(f"spectrum.metric_file={tmp_path / 'p.npy'}")
    with pytest.raises(InputError, match=complaint.replace(".", r"\.")):
        measure(folder, *words)


def test_tables_figures_and_page(folder: Path, run: Run, tmp_path: Path) -> None:
    path = str(folder / "run.h5")
    shown = run("show", path)
    assert "Class structure: largest eigenvalues of parts of G; means over 3" in shown.stdout
    assert run("plot", path, "--format", "png", "-o", str(tmp_path)).returncode == 0
    for name in ("class-structure", "class-structure-training"):
        assert (tmp_path / f"run-{name}.png").stat().st_size > 1000
    assert run("report", path, "-o", "run.html").returncode == 0
    assert "Class structure" in (tmp_path / "run.html").read_text(encoding="utf-8")
