"""[study.stability]: known rotations, dense Hessians, other ranks, and what makes it stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Run
from networks import Problem, Samples, dense
from scipy.linalg import subspace_angles

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

JOB = """
name = "turned"
[model]
factory = "turned:Turned"
[loss]
factory = "turned:signed"
[data]
dataset = "turned:samples"
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 3
smallest = 3
tolerance = 1e-9
[compute]
dtype = "float64"
batch_size = 2
workers = 0
[output]
path = "run.h5"
[study.stability]
largest = 2
smallest = 2
lags = [1, 2]
"""
# H = R(turn) D R(turn)ᵀ, whatever the weights are: it changes only by the turn of two directions.
MODULE = """
import torch
from torch.utils.data import TensorDataset

D = torch.tensor([5.0, 2.0, 1.0, 0.1, 0.05, -0.02, -0.5, -1.0, -3.0], dtype=torch.float64)

class Turned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(9, dtype=torch.float64))
        self.register_buffer("turn", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        c, s, w = torch.cos(self.turn), torch.sin(self.turn), self.weight
        first, fourth = c * w[:1] + s * w[3:4], c * w[3:4] - s * w[:1]
        return x * torch.cat([first, w[1:3], fourth, w[4:]])

def signed(outputs, targets):
    return (targets * outputs.square()).sum() / 2

def samples():
    return TensorDataset(D.abs().sqrt().repeat(6, 1), D.sign().repeat(6, 1))
"""
TURNS = {0: 0.0, 10: 0.0, 20: 0.3, 30: 1.0}
D = np.array([5.0, 2.0, 1.0, 0.1, 0.05, -0.02, -0.5, -1.0, -3.0])


def prepare(folder: Path) -> None:
    (folder / "turned.py").write_text(MODULE, encoding="utf-8")
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    (folder / "checkpoints").mkdir()
    for step, turn in TURNS.items():
        write_checkpoint(folder, step, turn)


def write_checkpoint(folder: Path, step: int, turn: float) -> None:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(9, generator=generator, dtype=torch.float64)
    state = {"weight": weight, "turn": torch.tensor(turn, dtype=torch.float64)}
    torch.save(state, folder / "checkpoints" / f"step-{step:08d}.pt")


def measure(folder: Path, *settings: str, solve: bool = True) -> tuple[list[int], Measurements]:
    """Solve and do the study on this process: the steps that were done, and all results."""
    with pytest.MonkeyPatch.context() as patch, Console(enabled=False) as console:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        job, text = load_job(folder / "job.toml", list(settings))
        if solve:
            sweep(job, text, Ranks(), console)
        outcome = study(job, text, Ranks(), console)
    measured = hessdist.open_run(folder / "run.h5").studies["stability"]
    return [unit.step for unit in outcome.done if unit.step is not None], measured


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turned")
    prepare(folder)
    done, _ = measure(folder)
    assert done == list(TURNS)
    return folder


@pytest.fixture
def folder(turned: Path, tmp_path: Path) -> Path:
    shutil.copytree(turned, tmp_path, dirs_exist_ok=True)
    for note in tmp_path.glob("run.checkpoints/checkpoints.*.json"):
        note.unlink()  # it names the folder of the checkpoints
    return tmp_path


def stored(folder: Path) -> Measurements:
    return hessdist.open_run(folder / "run.h5").studies["stability"]


# -- a rotation by a known angle ---------------------------------------------------------------


def test_a_hessian_that_does_not_change(turned: Path) -> None:
    measured = stored(turned)
    assert list(measured["against"]) == ["lag 1", "lag 2", "reference"]
    expected = [[-1, -1, -1], [0, -1, 0], [10, 0, 0], [20, 10, 0]]
    assert measured["compared_step"].tolist() == expected
    for end, values in (("largest", D[:2]), ("smallest", D[:-3:-1])):
        # Rounding to float32 is what is left, of vectors as they are stored.
        for name in ("angle", "matched_angle", "principal_angle"):
            assert measured[f"{name}_{end}"][1, 0] == pytest.approx(np.zeros(2), abs=2e-5)
        assert measured[f"overlap_{end}"][1, 0] == pytest.approx(np.ones(2), abs=1e-12)
        assert measured[f"rayleigh_{end}"][1, 0] == pytest.approx(values, rel=1e-9)
        assert (measured[f"rayleigh_residual_{end}"][1, 0] < 1e-6).all()
        assert (measured[f"angle_error_{end}"][1, 0] < 2e-5).all()
        assert measured[f"space_error_{end}"][1, 0] < 3e-5
        assert np.isnan(measured[f"angle_{end}"][0]).all()  # nothing is before the first
    assert measured["products"].tolist() == [0, 4, 8, 12]


def test_a_rotation_by_a_known_angle(turned: Path) -> None:
    measured, degrees = stored(turned), np.degrees
    for row, column, angle in ((2, 0, 0.3), (2, 1, 0.3), (3, 0, 0.7), (3, 1, 1.0), (3, 2, 1.0)):
        place = row, column
        found = {name: table[place] for name, table in measured.items() if table.ndim >= 3}
        # The first vector turns towards a direction outside of the space; the second one stays.
        assert found["angle_largest"] == pytest.approx([degrees(angle), 0], abs=2e-5)
        assert found["principal_angle_largest"] == pytest.approx([0, degrees(angle)], abs=2e-5)
        assert found["overlap_largest"] == pytest.approx([np.cos(angle) ** 2, 1], abs=1e-6)
        quotient = 5 * np.cos(angle) ** 2 + 0.1 * np.sin(angle) ** 2
        assert found["rayleigh_largest"] == pytest.approx([quotient, 2], rel=1e-6)
        outside = 4.9 * np.sin(angle) * np.cos(angle) / quotient  # |Av - qv| / q in the plane
        assert found["rayleigh_residual_largest"] == pytest.approx([outside, 0], abs=1e-6)
        assert found["compared_eigenvalue_largest"] == pytest.approx([5, 2])
        assert found["angle_smallest"] == pytest.approx([0, 0], abs=2e-5)
        assert found["rayleigh_smallest"] == pytest.approx([-3, -1], rel=1e-6)


def test_spaces_without_a_known_gap(turned: Path, tmp_path: Path) -> None:
    shutil.copytree(turned, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run.checkpoints")
    (tmp_path / "run.h5").unlink()
    settings = ("study.stability.largest=3", "study.stability.rayleigh=false")
    measured = measure(tmp_path, *settings, "study.stability.smallest=0")[1]
    assert measured["angle_smallest"].shape == (4, 3, 0)
    assert np.isfinite(measured["principal_angle_largest"][1:, 0]).all()
    assert np.isnan(measured["space_error_largest"]).all()  # the fourth eigenvalue is not known
    assert np.isnan(measured["angle_error_largest"][..., 2]).all()
    assert np.isfinite(measured["angle_error_largest"][1:, 0, :2]).all()
    assert np.isnan(measured["rayleigh_largest"]).all()
    assert not measured["products"].any()


# -- dense Hessians ----------------------------------------------------------------------------

POINTS = """
import torch
from torch.utils.data import TensorDataset

def points():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, torch.randint(0, 2, (20,), generator=generator))
"""
NETWORK = """
name = "network"
[model]
factory = "mlp"
arguments = { widths = [3, 4, 2], activation = "tanh" }
[data]
dataset = "points:points"
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 5
smallest = 4
tolerance = 1e-10
[compute]
dtype = "float64"
workers = 0
[output]
path = "run.h5"
[study.stability]
largest = 3
smallest = 2
reference = 20
"""


def test_a_network_against_dense_hessians(tmp_path: Path) -> None:
    (tmp_path / "points.py").write_text(POINTS, encoding="utf-8")
    (tmp_path / "job.toml").write_text(NETWORK, encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (20,), generator=generator)
    model, hessians = mlp([3, 4, 2], "tanh").double(), {}
    for step, scale in ((0, 1.0), (20, 0.1)):
        for p in model.parameters():
            p.data.add_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        torch.save(model.state_dict(), tmp_path / "checkpoints" / f"step-{step:08d}.pt")
        problem = Problem(model, LOSSES["cross_entropy"], Samples(inputs, labels))
        hessians[step] = dense(problem, "hessian").numpy() / 20
    measured = measure(tmp_path)[1]
    then, now = (np.linalg.eigh(hessians[step])[1].T for step in (0, 20))
    for end, place in (("largest", slice(-1, -4, -1)), ("smallest", slice(2))):
        v, w = then[place], now[place]
        angles = np.degrees(np.arccos(np.abs((v * w).sum(axis=1))))
        assert measured[f"angle_{end}"][1, 0] == pytest.approx(angles, abs=1e-4)
        spaces = np.degrees(np.sort(subspace_angles(v.T, w.T)))
        assert measured[f"principal_angle_{end}"][1, 0] == pytest.approx(spaces, abs=1e-4)
        assert spaces.max() > 5
        shares = ((v @ w.T) ** 2).sum(axis=1)
        assert measured[f"overlap_{end}"][1, 0] == pytest.approx(shares, abs=1e-6)
        quotients = np.einsum("id,de,ie->i", v, hessians[20], v)
        assert measured[f"rayleigh_{end}"][1, 0] == pytest.approx(quotients, rel=1e-6)
        rest = v @ hessians[20] - quotients[:, None] * v
        residuals = np.linalg.norm(rest, axis=1) / np.abs(quotients)
        assert measured[f"rayleigh_residual_{end}"][1, 0] == pytest.approx(residuals, rel=1e-5)
        # The reference is later: the first step is compared with it, and not with itself.
        assert measured["compared_step"][:, 1].tolist() == [20, -1]
        back = np.einsum("id,de,ie->i", w, hessians[0], w)
        assert measured[f"rayleigh_{end}"][0, 1] == pytest.approx(back, rel=1e-6)
        assert np.isnan(measured[f"angle_{end}"][1, 1]).all()


# -- on ranks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "shards"), [(3, 1), (2, 2)])
def test_the_same_on_ranks(folder: Path, run: Run, ranks: int, shards: int) -> None:
    mine = stored(folder)
    words = ("--overwrite", "--set", "study.stability.lags=[2,1]")
    if shards > 1:
        words = (*words, "--set", f"compute.shards={shards}")
    done = run("study", "job.toml", *words, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert "first vector at 57.3°" in done.stdout
    theirs, order = stored(folder), [1, 0, 2]
    for name, table in mine.items():
        if name not in {"step", "against", "products", "largest", "smallest"}:
            own = theirs[name][:, order] if "against" in mine.variables[name].dimensions else table
            assert own == pytest.approx(table, rel=1e-6, abs=2e-5, nan_ok=True), name


# -- what is stored ----------------------------------------------------------------------------


def test_it_is_done_again_where_a_compared_step_has_changed(folder: Path) -> None:
    assert measure(folder)[0] == []  # all of it is done
    write_checkpoint(folder, 10, 0.2)
    with pytest.MonkeyPatch.context() as patch, Console(enabled=False) as console:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        sweep(*load_job(folder / "job.toml", []), Ranks(), console)
    # The index leaves out what was found with the earlier pairs of step 10.
    assert stored(folder)["step"].tolist() == [0]
    done, measured = measure(folder, solve=False)
    assert done == [10, 20, 30]
    assert measured["angle_largest"][1:, 0, 0] == pytest.approx(np.degrees([0.2, 0.1, 0.7]))


def test_it_is_done_again_where_a_checkpoint_comes_between(folder: Path) -> None:
    write_checkpoint(folder, 25, 0.5)
    done, measured = measure(folder)
    assert done == [25, 30]
    assert measured["compared_step"][-1].tolist() == [25, 20, 0]
    assert measured["angle_largest"][-1, 0, 0] == pytest.approx(np.degrees(0.5))


def test_pairs_that_did_not_converge_are_not_compared(folder: Path) -> None:
    part = next((folder / "run.checkpoints").glob("step-00000010*.h5"))
    with h5py.File(part) as before, replacing(part, sealed=True) as file:
        for name in before:
            before.copy(name, file)
        file.attrs.update(before.attrs)
        file["converged_largest"][1] = False
        file["residuals_largest"][1] = 0.5
    parts = (folder / "run.checkpoints").glob("step-*.h5")
    write_index(folder / "run.h5", sorted(parts))
    done, measured = measure(folder, "spectrum.tolerance=1e-9", solve=False)
    assert done == [10, 20, 30]
    at = measured["compared_step"].tolist()[2].index(10)
    assert np.isfinite(measured["angle_largest"][2, at, 0])
    for name in ("angle", "overlap", "rayleigh", "compared_eigenvalue"):
        assert np.isnan(measured[f"{name}_largest"][2, at, 1]), name
    assert np.isnan(measured["principal_angle_largest"][2, at]).all()
    assert np.isnan(measured["space_error_largest"][2, at])
    assert np.isfinite(measured["principal_angle_smallest"][2, at]).all()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("study.stability.largest=4", "study.stability.largest is 4, and spectrum.largest is 3"),
        ("study.stability.reference=7", "reference: the run has no step 7"),
        ("study.stability.lags=[1,1]", "lags has a value twice"),
        ("spectrum.metric=diagonal", "study.stability is about the matrix itself"),
    ],
)
def test_bad_input(folder: Path, setting: str, complaint: str) -> None:
    words = [setting]
    if "metric" in setting:
        np.save(folder / "p.npy", np.ones(9))
        words.append("spectrum.metric_file=p.npy")
    with pytest.raises(InputError, match=complaint.replace(".", r"\.")):
        measure(folder, *words, solve=False)


def test_tables_figures_and_page(folder: Path, run: Run) -> None:
    shown = run("show", "run.h5")
    assert "largest end: eigenvectors of other steps; angles in degrees" in shown.stdout
    assert "57.3" in shown.stdout
    assert run("plot", "run.h5", "--format", "png").returncode == 0
    for end in ("largest", "smallest"):
        assert (folder / f"run-stability-{end}.png").stat().st_size > 1000
    assert run("report", "run.h5").returncode == 0
    assert "Stability of the eigenspaces" in (folder / "run.html").read_text(encoding="utf-8")
