"""[study.posterior]: against covariances and kernels by hand, and on other ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from shown import figures_of, printed, run_of
from studied import JOB, prepare, run_study
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import hessdist
from hessdist.config.loader import load_job
from hessdist.config.studies import registry
from hessdist.errors import HessdistError
from hessdist.optimizers.training import minibatches
from hessdist.results.units import Measurements
from hessdist.studies.eigenspaces.posterior import (
    diagonal_share_in_range,
    range_basis,
    share_in_range,
)
from hessdist.workload.models import mlp

SECTION = """
[study.posterior]
hidden = [[2], [9]]
networks = 2
learning_rate = 0.5
at = [0, 3, 12]
prior_precision = 0.3
batch_size = 7
swag_learning_rate = 0.4
swag_every = 3
rank = 6
seed = 4
"""
SAMPLES = "data.samples=20"


def written(folder: Path, *settings: str) -> Measurements:
    return run_study(folder, SAMPLES, *settings).studies["posterior"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("posterior")
    prepare(folder)
    (folder / "job.toml").write_text(JOB + SECTION, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        written(folder)
    return folder


@pytest.fixture
def found(done: Path) -> Measurements:
    return hessdist.open_run(done / "results" / "run.h5").studies["posterior"]


def samples(folder: Path) -> tuple[Tensor, Tensor]:
    """The 20 samples that the job draws, in its order."""
    job, _ = load_job(folder / "job.toml", [SAMPLES])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        from hessdist.service.workload import workload_of

        workload = workload_of(job)
    pairs = [workload.dataset[int(i)] for i in workload.indices]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])


class ByHand:
    """A network of the study, from plain PyTorch."""

    def __init__(self, folder: Path, hidden: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = mlp([6, hidden, 3], "tanh", True, "ntk").double()
        self.inputs, self.labels = samples(folder)

    def loss(self, rows: Tensor | None = None) -> Tensor:
        x, y = (
            (self.inputs, self.labels) if rows is None else (self.inputs[rows], self.labels[rows])
        )
        return nn.functional.cross_entropy(self.model(x), y)

    def step(self, rate: float, rows: Tensor | None = None) -> None:
        self.model.zero_grad()
        self.loss(rows).backward()
        with torch.no_grad():
            for p in self.model.parameters():
                p -= rate * p.grad

    def jacobian(self) -> Tensor:
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        parts = jacrev(lambda p: functional_call(self.model, p, (self.inputs,)))(parameters)
        return torch.cat([part.reshape(60, -1) for part in parts.values()], dim=1)

    def gauss_newton(self) -> Tensor:
        """N G, summed over the samples: Σ Jᵀ (diag p − p pᵀ) J."""
        p = self.model(self.inputs).softmax(1).detach()
        inner = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        rows = self.jacobian().view(20, 3, -1)
        return torch.einsum("ncd,nce,nef->df", rows, inner, rows)

    def flat(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])


@pytest.mark.parametrize(("row", "hidden"), [(0, 2), (1, 9)])
@pytest.mark.parametrize("network", [0, 1])
def test_against_a_network_by_hand(
    done: Path, found: Measurements, row: int, hidden: int, network: int
) -> None:
    place = row, network
    own = ByHand(done, hidden, 4 + network)
    first = own.jacobian() @ own.jacobian().T
    for iteration in range(13):
        if iteration in (0, 3, 12):
            column = [0, 3, 12].index(iteration)
            kernel = own.jacobian() @ own.jacobian().T
            change = float((kernel - first).norm() / first.norm())
            assert found["kernel_change"][(*place, column)] == pytest.approx(change, abs=1e-12)
            assert found["loss"][(*place, column)] == pytest.approx(own.loss().item())
        if iteration < 12:
            own.step(0.5)
    whole = torch.linalg.eigvalsh(own.gauss_newton()).flip(0).numpy()
    values = found["eigenvalue"][place]
    count = min(len(values), len(whole))
    assert values[:count] == pytest.approx(whole[:count], abs=1e-12)
    assert found["rank"][place] == (whole > 1e-6 * whole[0]).sum()
    assert found["determined"][place] == pytest.approx((whole / (whole + 0.3)).sum(), abs=1e-9)

    batches, collected = minibatches(20, 7, 4 + network), []
    for step in range(1, 19):
        own.step(0.4, next(batches))
        if step % 3 == 0:
            collected.append(own.flat())
    weights = torch.stack(collected)
    means = torch.stack([weights[: n + 1].mean(0) for n in range(6)])
    deviations = weights - means
    torch.nn.utils.vector_to_parameters(means[-1], own.model.parameters())
    matrix = own.gauss_newton()
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    basis = vectors[:, eigenvalues > 1e-6 * eigenvalues[-1]]
    assert found["average_loss"][place] == pytest.approx(own.loss().item())
    assert found["average_rank"][place] == basis.shape[1]
    square = float(deviations.square().sum())
    assert found["swag_variance"][place] == pytest.approx(square / 5)
    share = float((deviations @ basis).square().sum()) / square
    assert found["swag_share"][place] == pytest.approx(share, abs=1e-8)
    variances = weights.var(0, correction=0)
    share = float((basis.square().T @ variances).sum() / variances.sum())
    assert found["swag_diagonal_share"][place] == pytest.approx(share, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_shares_of_known_spaces(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank, size = 3 + seed, 40
    inside = torch.randn(rank, size, generator=generator, dtype=torch.float64)
    mixed = torch.randn(9, rank, generator=generator, dtype=torch.float64)
    basis = range_basis(mixed @ inside, 1e-10)  # nine rows that span `rank` directions
    assert len(basis) == rank
    assert (basis @ basis.T).numpy() == pytest.approx(np.eye(rank), abs=1e-7)
    within = torch.randn(5, rank, generator=generator, dtype=torch.float64) @ inside
    assert share_in_range(basis, within) == pytest.approx(1, abs=1e-9)
    outside = within - within @ basis.T @ basis
    outside = torch.randn(5, size, generator=generator, dtype=torch.float64)
    outside -= outside @ basis.T @ basis
    assert share_in_range(basis, outside) == pytest.approx(0, abs=1e-12)
    isotropic = torch.full((size,), 0.7, dtype=torch.float64)
    assert diagonal_share_in_range(basis, isotropic) == pytest.approx(rank / size)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks(done: Path, found: Measurements, tmp_path: Path, run: Run, ranks: int) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    ended = run("study", "job.toml", "--set", SAMPLES, ranks=ranks)
    assert ended.returncode == 0, ended.stderr
    other = hessdist.open_run(tmp_path / "results" / "run.h5").studies["posterior"]
    assert other.keys() == found.keys()
    for name in found:
        if found[name].dtype.kind == "f":
            assert other[name] == pytest.approx(found[name], rel=1e-6, abs=1e-10), name
        else:
            assert np.array_equal(other[name], found[name]), name


def bad(setting: str, complaint: str, **more: Any) -> Any:
    return pytest.param(setting, complaint, id=setting)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        bad("study.posterior.at=[1, 5]", "does not begin with 0 and increase"),
        bad("study.posterior.at=[0, 5, 5]", "does not begin with 0 and increase"),
        bad("study.posterior.hidden=[[]]", "hidden is empty"),
        bad("study.posterior.rank=1", "greater than or equal to 2"),
        bad("study.posterior.prior_precision=0.0", "greater than 0"),
        bad("study.posterior.hidden=[[3000000]]", "Jacobians of 60 outputs.*GiB are free"),
        bad("loss.l2=0.1", "loss.l2"),
        bad('spectrum.layers=["fc1"]', "spectrum.layers"),
    ],
)
def test_bad_input(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, complaint: str
) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HessdistError, match=complaint):
        written(tmp_path, setting)


def test_a_network_that_diverges_is_said(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    measured = written(
        tmp_path, "study.posterior.learning_rate=1e200", "model.arguments.activation=identity"
    )
    assert np.isnan(measured["loss"][..., -1]).all()
    assert np.isnan(measured["swag_share"]).all()
    assert np.isnan(measured["rank"]).all()
    remarks = list(registry()["posterior"].remarks_on(measured))
    assert remarks == [f"hidden {width}: 2 of 2 networks diverged" for width in (2, 9)]
    assert list(figures_of({"posterior": measured}, "a run"))
    assert list(registry()["posterior"].tables_of(run_of({"posterior": measured})))
    assert list(registry()["posterior"].views_of(run_of({"posterior": measured})))


def test_tables_figures_and_page(done: Path, found: Measurements) -> None:
    lines = printed(hessdist.open_run(done / "results" / "run.h5")).splitlines()
    (row,) = [cells for line in lines if (cells := line.split())[:2] == ["9", "93"]]
    assert row[2] == f"{np.median(found['loss'][1, :, -1]):.4g}"
    assert row[3] == f"{np.median(found['kernel_change'][1, :, -1]):.3g}"
    assert row[-3] == f"{1 - np.median(found['swag_share'][1]):.3g}"
    ((name, figure),) = figures_of({"posterior": found}, "a run")
    assert name == "posterior"
    laplace, swag, kernel = figure.axes
    drawn = laplace.get_lines()[0].get_ydata()
    own = found["eigenvalue"][0, :, :23]  # 23 parameters
    assert drawn == pytest.approx(np.median(0.3 / (np.maximum(own, 0) + 0.3), axis=0))
    assert kernel.get_lines()[1].get_ydata() == pytest.approx(
        np.median(found["kernel_change"][1, :, 1:], axis=0)
    )
    assert len(swag.get_lines()) == 9
    (view,) = registry()["posterior"].views_of(run_of({"posterior": found}))
    assert [one.name for one in view.figures] == ["Laplace", "SWAG", "tangent kernel"]
