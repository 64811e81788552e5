"""[study.convergence]: against descents by hand, dense Hessians, and on other ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from numpy.typing import NDArray
from shown import figures_of, printed, run_of
from studied import JOB, prepare, run_study
from torch import Tensor, nn

import hessdist
from hessdist.config.job import Job
from hessdist.config.loader import load_job
from hessdist.config.studies import registry
from hessdist.errors import HessdistError, JobError
from hessdist.results.units import Measurements
from hessdist.studies.eigenspaces.convergence import check
from hessdist.studies.eigenspaces.convergence_quadratic import rules
from hessdist.studies.eigenspaces.settings import ConvergenceSection
from hessdist.theory.quadratic import iterates
from hessdist.workload.models import mlp

SECTION = """
[study.convergence]
penalties = [0.0, 0.05]
seeds = [3, 5]
iterations = 250
networks = 2
network_iterations = 20
tolerance = 1e-9
conditions = [4.0, 50.0]
quadratic_iterations = 900
"""
PENALTY = "loss.l2=0.02"
"""Of the network."""


def written(folder: Path, *settings: str) -> Measurements:
    return run_study(folder, *settings).studies["convergence"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convergence")
    prepare(folder)
    (folder / "job.toml").write_text(JOB + SECTION, encoding="utf-8")
    # No module of one name is written by two files of tests: Python would find the older one.
    (folder / "linear_and_no_mlp.py").write_text(
        "import torch\n\n\ndef linear():\n    return torch.nn.Linear(6, 3)\n", encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def done(job: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(job)
        patch.syspath_prepend(job)
        written(job, PENALTY)
    return job


@pytest.fixture
def found(done: Path) -> Measurements:
    return hessdist.open_run(done / "results" / "run.h5").studies["convergence"]


def data() -> tuple[Tensor, Tensor]:
    """The samples of the job."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60,), generator=generator)
    inputs[:, 0] += labels
    return inputs, labels


def loss_of(model: nn.Module, l2: float) -> Tensor:
    inputs, labels = data()
    square = sum(p.square().sum() for p in model.parameters())
    return nn.functional.cross_entropy(model(inputs), labels) + l2 / 2 * square


def model_of(widths: list[int], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(widths, "tanh").double()


def extremes_of(model: nn.Module, l2: float) -> tuple[float, float]:
    """λ_1 and λ_d of the Hessian, dense."""
    names = dict(model.named_parameters())
    inputs, labels = data()

    def loss(flat: Tensor) -> Tensor:
        sizes = [p.numel() for p in names.values()]
        parts = zip(names.items(), flat.split(sizes), strict=True)
        pieces = {name: part.view_as(p) for (name, p), part in parts}
        outputs = torch.func.functional_call(model, pieces, (inputs,))
        return nn.functional.cross_entropy(outputs, labels) + l2 / 2 * flat.square().sum()

    flat = nn.utils.parameters_to_vector(names.values()).detach()
    values = torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))
    return float(values[-1]), float(values[0])


def descended(l2: float, seed: int, step: float, iterations: int) -> tuple[NDArray, nn.Module]:
    """All losses of gradient descent by automatic differentiation, and the last model."""
    model, losses = model_of([6, 3], seed), []
    optimizer = torch.optim.SGD(model.parameters(), lr=step)
    for iteration in range(iterations + 1):
        optimizer.zero_grad()
        loss = loss_of(model, l2)
        losses.append(float(loss.detach()))
        if iteration < iterations:
            loss.backward()
            optimizer.step()
    return np.array(losses), model


# -- the convex losses -----------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 1])
def test_a_descent_by_hand(found: Measurements, row: int) -> None:
    l2 = found["penalty"][row]
    inputs, _ = data()
    extended = torch.cat([inputs, torch.ones(60, 1, dtype=torch.float64)], dim=1)
    largest = float(torch.linalg.eigvalsh(extended.T @ extended / 60)[-1])
    assert found["smoothness"][row] == pytest.approx(largest / 2 + l2, rel=1e-12)
    assert found["parameters"] == 21
    kept = found["iteration"]
    assert (kept[0], kept[-1]) == (0, 250)
    assert {1, 10, 100} < set(kept.tolist())
    assert found["matrix_iteration"].tolist() == [0, 1, 10, 100, 250]
    for column, seed in enumerate(found["seed"]):
        step = 1 / found["smoothness"][row]
        losses, model = descended(l2, int(seed), step, 250)
        place = row, column
        assert found["loss"][place] == pytest.approx(losses[kept], rel=1e-12)
        ends = extremes_of(model, l2)
        assert found["eigenvalue_largest"][place][-1] == pytest.approx(ends[0], rel=1e-10)
        assert found["eigenvalue_smallest"][place][-1] == pytest.approx(ends[1], abs=1e-12)
        assert ends[1] == pytest.approx(l2, abs=1e-12)
        first = extremes_of(model_of([6, 3], int(seed)), l2)
        assert found["eigenvalue_largest"][place][0] == pytest.approx(first[0], rel=1e-10)
        assert found["secant"][place] <= found["eigenvalue_largest"][place].max() * 1.5
        assert found["secant"][place] < found["smoothness"][row]


def test_the_bounds_hold_at_every_iteration(found: Measurements) -> None:
    iteration = found["iteration"]
    for place in np.ndindex(2, 2):
        l2, constant = (found[name][place[0]] for name in ("penalty", "smoothness"))
        losses, _ = descended(l2, int(found["seed"][place[1]]), 1 / constant, 250)
        excess = losses - found["infimum"][place]
        assert found["excess"][place] == pytest.approx(excess[iteration], abs=1e-12)
        assert (excess > 0).all()
        assert 0 < found["most_of_bound"][place] <= 1
        assert np.isnan(found["bound"][place][0])
        shares = found["excess"][place][1:] / found["bound"][place][1:]
        assert shares.max() <= found["most_of_bound"][place] * (1 + 1e-12)
        if not l2:
            assert np.isnan(found["distance"][place])
            assert np.isnan(found["linear_bound"][place]).all()
            continue
        every = np.arange(1, 251)
        bound = found["distance"][place] ** 2 * constant / (2 * every)
        assert found["bound"][place][1:] == pytest.approx(bound[iteration[1:] - 1])
        assert found["most_of_bound"][place] == pytest.approx((excess[1:] / bound).max())
        linear = excess[0] * (1 - l2 / constant) ** np.arange(251)
        assert found["linear_bound"][place] == pytest.approx(linear[iteration])
        most = (excess[1:] / linear[1:]).max()
        assert found["most_of_linear_bound"][place] == pytest.approx(most, rel=1e-6)
        assert most < 1


def test_the_minimum_is_where_lbfgs_ends(found: Measurements) -> None:
    assert (found["minimum_gradient"][1] < 1e-12).all()
    assert np.isnan(found["minimum_gradient"][0]).all()
    assert not found["separated"].any()
    for column, seed in enumerate(found["seed"]):
        model = model_of([6, 3], int(seed))
        before = nn.utils.parameters_to_vector(model.parameters()).detach()
        optimizer = torch.optim.LBFGS(
            model.parameters(),
            max_iter=500,
            tolerance_grad=1e-10,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure(model: nn.Module = model, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, 0.05)
            loss.backward()
            return loss

        optimizer.step(closure)
        after = nn.utils.parameters_to_vector(model.parameters()).detach()
        assert found["infimum"][1, column] == pytest.approx(float(closure().detach()), rel=1e-12)
        distance = float((after - before).norm())
        assert found["distance"][1, column] == pytest.approx(distance, rel=1e-6)


def test_single_precision_is_that_of_the_network_alone(
    job: Path, found: Measurements, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(job, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ("compute.dtype=float32", "study.convergence.networks=0")
    other = written(tmp_path, *settings, "model.arguments.parametrization=ntk")
    assert not any(name.startswith("network") for name in other)
    assert other["smoothness"] == pytest.approx(found["smoothness"], rel=1e-6)
    assert other["loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert (other["minimum_gradient"][1] < 1e-12).all()


# -- networks and quadratics -----------------------------------------------------------------


def test_networks(found: Measurements) -> None:
    assert found["network_iteration"].tolist() == [0, 1, 10, 20, -1]
    assert found["network_penalty"] == 0.02
    for row, seed in enumerate([3, 5]):
        model = model_of([6, 5, 3], seed)
        assert found["network_loss"][row, 0] == pytest.approx(float(loss_of(model, 0.02).detach()))
        largest, smallest = extremes_of(model, 0.02)
        assert found["network_largest"][row, 0] == pytest.approx(largest, rel=1e-9)
        assert found["network_smallest"][row, 0] == pytest.approx(smallest, rel=1e-9)
    assert (np.diff(found["network_loss"], axis=1) < 0).all()
    assert found["network_reached"].all()
    assert (found["network_gradient_norm"][:, -1] <= 1e-9).all()
    assert (found["network_smallest"][:, 0] < 0).all()
    assert (found["network_smallest"][:, -1] > 0).all()


def test_quadratics(found: Measurements) -> None:
    assert found["condition"].tolist() == [4, 50]
    assert (found["quadratic_rounding"] < 1e-12).all()
    needed = found["quadratic_needed"]
    assert np.array_equal(needed, found["quadratic_predicted"], equal_nan=True)
    names = found["optimizer"].tolist()
    assert names == list(rules(4.0))
    assert np.isnan(needed[:, names.index("large step, 2.05 / κ")]).all()
    assert (needed[:, names.index("Newton")] == 1).all()
    # From (κ, 1) the best step multiplies the value by q² each time.
    for condition, took in zip([4, 50], needed[:, 2], strict=True):
        q = (condition - 1) / (condition + 1)
        assert took == np.ceil(np.log(1e-6) / np.log(q**2))
    for row, condition in enumerate([4.0, 50.0]):
        for column, rule in enumerate(rules(condition).values()):
            closed = iterates(rule, [1, condition], [condition, 1], np.arange(61))
            path = found["quadratic_path"][row, column]
            assert path == pytest.approx(closed, rel=1e-9, abs=1e-9)


# -- ranks, bad input, and what is shown -----------------------------------------------------


def test_two_ranks(done: Path, found: Measurements, tmp_path: Path, run: Run) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    ended = run("study", "job.toml", "--only", "convergence", "--set", PENALTY, ranks=2)
    assert ended.returncode == 0, ended.stderr
    other = hessdist.open_run(tmp_path / "results" / "run.h5").studies["convergence"]
    assert other.keys() == found.keys()
    for name in found:
        if name.startswith("network") and found[name].dtype.kind == "f":
            assert other[name] == pytest.approx(found[name], rel=1e-6, abs=1e-8)
        else:
            floats = found[name].dtype.kind == "f"
            assert np.array_equal(other[name], found[name], equal_nan=floats), name


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("study.convergence.penalties=[]", "penalties, seeds or conditions is empty"),
        ("study.convergence.penalties=[-1.0]", "greater than or equal to 0"),
        ("study.convergence.conditions=[1.0]", "greater than 1"),
        ("loss.factory=mse", "is not the mean cross entropy|class"),
        ("loss.factory=torch.nn:NLLLoss", "is not the mean cross entropy"),
        ("model.factory=linear_and_no_mlp:linear", "model.factory is 'linear_and_no_mlp"),
        ('spectrum.layers=["fc1"]', "spectrum.layers"),
    ],
)
def test_bad_input(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, complaint: str
) -> None:
    shutil.copytree(job, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    more = ["model.arguments={}"] if "model.factory" in setting else []
    with pytest.raises(HessdistError, match=complaint):
        written(tmp_path, setting, *more)


def test_the_option_that_replaces_both_methods_is_refused(job: Path) -> None:
    loaded: Job = load_job(job / "job.toml", [])[0]
    check(loaded, ConvergenceSection(), ["-tao_monitor"])
    with pytest.raises(JobError, match="-tao_type replaces both methods"):
        check(loaded, ConvergenceSection(), ["-tao_type", "lmvm"])


def test_tables_figures_and_page(done: Path, found: Measurements) -> None:
    lines = printed(hessdist.open_run(done / "results" / "run.h5")).splitlines()
    (row,) = [line.split() for line in lines if line.split()[:1] == ["0.05"]]
    assert row[1] == f"{found['smoothness'][1]:.4g}"
    assert row[8] == f"{found['most_of_bound'][1].max():.3g}"
    slopes = np.diff(np.log10(found["excess"][1][:, np.isin(found["iteration"], [1, 10, 100])]))
    assert [cell.strip(",") for cell in row[-2:]] == [f"{x:.2f}" for x in np.median(slopes, axis=0)]
    (end,) = [line.split() for line in lines if line.split()[:1] == ["Newton-CG,"]]
    assert end[1:4] == ["2", "of", "2"]
    assert end[-1] == f"{found['network_smallest'][:, -1].max():.3g}"
    (newton,) = [line.split() for line in lines if line.split()[:1] == ["Newton"]]
    assert newton[1:3] == ["1", "1"]
    figures = dict(figures_of({"convergence": found}, "a run"))
    assert list(figures) == [
        "convergence-bounds", "convergence-constants", "convergence-quadratic",
    ]  # fmt: skip
    excess = figures["convergence-bounds"].axes[1].get_lines()[0].get_ydata()
    assert excess == pytest.approx(np.median(found["excess"][1][:, 1:], axis=0))
    study_of = registry()["convergence"]
    (view,) = study_of.views_of(run_of({"convergence": found}))
    assert [figure.name for figure in view.figures] == [
        "convex loss, l2 = 0", "convex loss, l2 = 0.05", "constants", "network, l2 = 0.02",
        "quadratic, κ = 4", "quadratic, κ = 50",
    ]  # fmt: skip
    first, second, third, last = study_of.remarks_on(found)
    assert first.startswith("convex, l2 = 0: C ")
    assert second.startswith("convex, l2 = 0.05: C ")
    assert third.endswith("2 of 2 within the tolerance")
    assert last.startswith("quadratics: within ")


def test_without_networks(found: Measurements) -> None:
    variables = {
        name: one for name, one in found.variables.items() if not name.startswith("network")
    }
    alone = {"convergence": Measurements(variables)}
    assert len(list(figures_of(alone, "a run"))) == 3
    assert len(list(registry()["convergence"].tables_of(run_of(alone)))) == 2
    (view,) = registry()["convergence"].views_of(run_of(alone))
    assert len(view.figures) == 5
    assert len(list(registry()["convergence"].remarks_on(alone["convergence"]))) == 3
