"""H = G + S: against closed forms, definitions, dense matrices, and networks by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem, Samples, dense, mlp_problem
from oracles import PrescribedSpectrum
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

import hessdist
from hessdist.config.job import Job
from hessdist.config.loader import load_job
from hessdist.config.studies import registry
from hessdist.curvature.output_residuals import output_residuals
from hessdist.errors import InputError, Stopped
from hessdist.objective import Objective, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements
from hessdist.service.console import Console
from hessdist.service.study import study
from hessdist.service.workload import computed_as
from hessdist.spectrum.angles import principal_angles
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.spectrum.summary import Effort, summarise
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.decomposition import decomposition
from hessdist.studies.eigenspaces.settings import DecompositionSection, WidthsSection
from hessdist.studies.eigenspaces.widths import widths
from hessdist.workload.checkpoints import read_state
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES

OPERATORS = ("hessian", "gauss_newton", "residual", "empirical_fisher")


def job_of(**sections: Any) -> Job:
    """A job of which the study reads settings alone; its workload is given beside it."""
    whole: dict[str, Any] = {
        "name": "test",
        "model": {"factory": "mlp", "arguments": {"widths": [3, 2, 2], "activation": "tanh"}},
        "data": {"dataset": "digits"},
        "checkpoints": {"directory": "none"},
        "spectrum": {"tolerance": 1e-9},
        "compute": {"dtype": "float64", "batch_size": 3},
        "output": {"path": "none.h5"},
    }
    return Job.model_validate({**whole, **sections})


def spread(problem: Problem, ranks: Ranks, job: Job) -> tuple[Workload, Objective]:
    workload = Workload(
        problem.model,
        problem.loss,
        problem.dataset,
        np.arange(len(problem.dataset)),
        **computed_as(job),
    )
    return workload, workload.on(ranks)


def looked_at(problem: Problem, ranks: Ranks, job: Job, **settings: Any) -> Measurements:
    workload, objective = spread(problem, ranks, job)
    here = Context(job, workload, objective)
    return decomposition(here, DecompositionSection(**settings))


def linear(count: int) -> Problem:
    """z = W x + b with two outputs and five inputs, and the squared error."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    torch.manual_seed(1)
    return Problem(mlp([5, 2]).double(), LOSSES["mse"], Samples(inputs, targets))


# -- closed forms ----------------------------------------------------------------------------


@pytest.mark.mpi(ranks=[1, 3], timeout=60, unit="s")
def test_a_linear_model(mpi_ranks: int, comm: Any) -> None:
    """S = 0; H = G = (1 / N) I ⊗ X̃ᵀX̃ + l2 I, of rank N C; F of rank N. One rank has no sample."""
    problem, l2 = linear(2), 0.25
    found = looked_at(problem, Ranks(comm), job_of(loss={"l2": l2}), largest=4, smallest=2)
    inputs, targets = problem.dataset.tensors
    extended = torch.cat([inputs, torch.ones(2, 1, dtype=torch.float64)], dim=1)
    values = torch.linalg.eigvalsh(extended @ extended.T / 2).flip(0).repeat_interleave(2).numpy()
    for row in (0, 1):
        assert found["eigenvalues_largest"][row] == pytest.approx(values + l2, rel=1e-8)
        assert found["trace"][row] == pytest.approx(values.sum() + 12 * l2)
        assert found["null_count"][row] == 12 - 4
    assert found["eigenvalues_smallest"][0] == pytest.approx([l2, l2], abs=1e-9)
    assert found["eigenvalues_largest"][2].tolist() == [0] * 4
    assert found["null_count"].tolist()[2:] == [12, 12 - 2]
    assert found["rank_bound"] == 4
    assert found["disagreement"] < 1e-14
    slopes = problem.model(inputs) - targets  # 2 (z − y) / C
    assert found["misfit"] == pytest.approx(float(slopes.detach().square().sum() / 2) ** 0.5)
    assert found["angle_to_gauss_newton"][0] == pytest.approx(np.zeros(4), abs=1e-4)
    assert found["converged_largest"].all()
    assert found["converged_smallest"].all()


def test_residuals_of_the_cross_entropy() -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    job = job_of()
    _, objective = spread(problem, Ranks(), job)
    found = output_residuals(objective.local)
    inputs, labels = problem.dataset.tensors
    with torch.no_grad():
        slopes = torch.softmax(problem.model(inputs), 1) - nn.functional.one_hot(labels, 3)
    assert found.square == pytest.approx(float(slopes.square().sum()), rel=1e-12)
    assert (found.outputs, found.rank) == (3, 2)  # of diag(p) − ppᵀ


def by_definition(problem: Problem) -> Tensor:
    """S = (1/N) Σ_i Σ_c r_ic ∇²z_ic with the residuals held fixed, (d, d)."""
    named = {name: p.detach() for name, p in problem.model.named_parameters()}
    inputs, targets = problem.dataset.tensors

    def outputs(flat: Tensor) -> Tensor:
        pieces, begin = {}, 0
        for name, p in named.items():
            pieces[name] = flat[begin : begin + p.numel()].view_as(p)
            begin += p.numel()
        return functional_call(problem.model, pieces, (inputs,))

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    residuals = jacrev(lambda z: problem.loss(z, targets))(outputs(theta))  # with the 1/N
    return hessian(lambda flat: (residuals * outputs(flat)).sum())(theta)


@pytest.mark.parametrize(
    ("activation", "loss"), [("tanh", "cross_entropy"), ("softplus", "mse"), ("relu", "mse")]
)
def test_s_is_residuals_times_curvatures_of_outputs(activation: str, loss: str) -> None:
    problem = mlp_problem(activation, loss)
    _, objective = spread(problem, Ranks(), job_of())
    count = objective.evaluate().num_samples
    expected = by_definition(problem).numpy()
    size = len(expected)
    whole = {
        operator: curvature_matrix(objective, operator, count).columns(0, size)
        for operator in ("hessian", "gauss_newton", "residual")
    }
    assert whole["residual"] == pytest.approx(expected, abs=1e-12)
    left = whole["hessian"] - whole["gauss_newton"] - whole["residual"]
    assert np.abs(left).max() < 1e-14 * np.abs(whole["hessian"]).max() + 1e-16
    if activation == "relu":  # outputs are piecewise linear in each weight: S has no diagonal
        assert np.abs(np.diag(whole["residual"])).max() < 1e-15
        assert np.abs(whole["residual"]).max() > 1e-3


# -- against dense matrices ------------------------------------------------------------------


def test_checkpoints_against_dense_matrices(studied: Path) -> None:
    found = hessdist.open_run(studied / "results" / "run.h5").studies["decomposition"]
    assert list(found["step"]) == [20]
    assert list(found["operator"]) == list(OPERATORS)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60,), generator=generator)
    inputs[:, 0] += labels
    model = mlp([6, 5, 3], "tanh").double()
    model.load_state_dict(read_state(studied / "checkpoints" / "step-00000020.pt"))
    problem = Problem(model, LOSSES["cross_entropy"], Samples(inputs, labels))
    vectors = {}
    for row, operator in enumerate(OPERATORS):
        values, basis = np.linalg.eigh(dense(problem, operator).detach().numpy() / 60)
        vectors[operator] = basis[:, ::-1][:, :5].T
        assert found["eigenvalues_largest"][0, row] == pytest.approx(values[::-1][:5], rel=1e-7)
        small = found["eigenvalues_smallest"][0, row]
        if operator in ("hessian", "residual"):
            assert small == pytest.approx(values[:2], rel=1e-6)
        else:
            assert np.isnan(small).all()
        assert found["trace"][0, row] == pytest.approx(values.sum(), abs=1e-12)
        assert found["frobenius_norm"][0, row] == pytest.approx(np.linalg.norm(values))
        null = np.abs(values) <= 1e-6 * np.abs(values).max()
        assert found["null_count"][0, row] == null.sum()
    # Softmax knows no common shift of the logits: a weight of each of 5 units, and the bias.
    assert found["null_count"][0, 0] == 6
    for row, operator in enumerate(OPERATORS):
        of_g = vectors["gauss_newton"]
        angles = np.degrees(principal_angles(vectors[operator], of_g))
        assert found["principal_angle"][0, row] == pytest.approx(angles, abs=1e-3)
        inside = np.linalg.norm(of_g @ vectors[operator].T, axis=0)
        to_space = np.degrees(np.arccos(np.minimum(inside, 1)))
        assert found["angle_to_gauss_newton"][0, row] == pytest.approx(to_space, abs=1e-3)
        own, known = found["outliers"][0, row], found["outliers"][0, 1]
        near = np.linalg.norm(of_g[:known] @ vectors[operator][:own].T, axis=0) > np.sqrt(0.5)
        assert found["shared_outliers"][0, row] == near.sum()
    assert found["disagreement"][0] < 1e-14


def test_estimates_and_bounds_of_large_matrices() -> None:
    """Beyond `exact_below` the numbers are estimates, and the bounds of a count hold."""
    spectrum = np.concatenate([np.geomspace(1e-3, 5, 60), np.zeros(140)])
    shell = ShellMatrix(PrescribedSpectrum(spectrum), Ranks())
    effort = Effort(exact_below=0, trace_products=80, probes=20, lanczos_steps=30, null=1e-2)
    found = summarise(shell, effort)
    assert found.values is None
    assert abs(found.trace.value - spectrum.sum()) <= 6 * found.trace.error
    assert abs(found.frobenius_norm.value - np.linalg.norm(spectrum)) <= (
        6 * found.frobenius_norm.error
    )
    exact = (spectrum <= 1e-2 * 5).sum()
    least, most = found.null_bounds
    assert 0 < least < most < 200
    spread = 4 * np.sqrt(200 / 20)  # of the random vectors
    assert least - spread <= exact <= most + spread
    moved = summarise(
        ShellMatrix(PrescribedSpectrum(spectrum), Ranks(), shift=3.0), effort, shift=3
    )
    assert moved.null_count == pytest.approx(found.null_count, rel=1e-6)
    zero = ShellMatrix(PrescribedSpectrum(np.zeros(30)), Ranks())
    assert summarise(zero, effort).null_count == 30


# -- from narrow to wide ---------------------------------------------------------------------


def test_widths_against_networks_by_hand(studied: Path) -> None:
    found = hessdist.open_run(studied / "results" / "run.h5").studies["widths"]
    assert list(found["width"]) == ["2", "4-3"]
    assert found["parameters"].tolist() == [23, 55]
    assert list(found["iteration"]) == [0, 20]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60,), generator=generator)
    inputs[:, 0] += labels
    for row, hidden in enumerate(((2,), (4, 3))):
        torch.manual_seed(1)  # of the second network
        model = mlp([6, *hidden, 3], "tanh", parametrization="ntk").double()
        problem = Problem(model, LOSSES["cross_entropy"], Samples(inputs, labels))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for step in range(21):
            loss = problem.loss(model(inputs), labels)
            if step in (0, 20):
                at = (row, 1, [0, 20].index(step))
                assert found["loss"][at] == pytest.approx(float(loss.detach()))
                compare(found, at, problem)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def compare(found: Measurements, at: tuple[int, int, int], problem: Problem) -> None:
    exact = at[0] == 0  # 23 parameters
    whole, part = (dense(problem, o).detach().numpy() / 60 for o in ("hessian", "gauss_newton"))
    for place, operator in enumerate(OPERATORS[:3]):
        values = np.linalg.eigvalsh((whole, part, whole - part)[place])
        assert found["eigenvalue_largest"][*at, place] == pytest.approx(values[-1], rel=1e-7)
        if operator != "gauss_newton":
            assert found["eigenvalue_smallest"][*at, place] == pytest.approx(values[0], rel=1e-7)
        error = abs(found["trace"][*at, place] - values.sum())
        assert error <= (1e-12 if exact else 7 * found["trace_error"][*at, place])
        null = (np.abs(values) <= 1e-6 * np.abs(values).max()).sum()
        if exact:
            assert found["null_count"][*at, place] == null


def of_widths(problem: Problem, job: Job, **settings: Any) -> Measurements:
    workload, objective = spread(problem, Ranks(), job)
    return widths(Context(job, workload, objective), WidthsSection(**settings))


def test_networks_that_diverge_are_marked() -> None:
    job = job_of(
        model={"factory": "mlp", "arguments": {"widths": [5, 4, 2], "activation": "identity"}},
        loss={"factory": "mse"},
    )
    found = of_widths(linear(6), job, hidden=[[3]], networks=2, learning_rate=1e3, at=[0, 40])
    assert np.isfinite(found["loss"][..., 0]).all()
    assert np.isnan(found["loss"][..., 1]).all()
    assert np.isnan(found["trace"][..., 1, :]).all()
    assert found["converged"].all()
    assert "2 of 2 networks diverged" in "".join(registry()["widths"].remarks_on(found))


def test_a_signal_ends_the_descent() -> None:
    job = job_of(model={"factory": "mlp", "arguments": {"widths": [5, 4, 2]}})
    problem = linear(6)
    workload, objective = spread(problem, Ranks(), job)
    told: list[str] = []
    experiment = Context(
        job, workload, objective, note=told.append, is_stopped=lambda: len(told) > 5
    )
    with pytest.raises(Stopped):
        widths(experiment, WidthsSection(hidden=[[3]], at=[10**9]))
    assert len(told) == 6


# -- what users get wrong --------------------------------------------------------------------


def test_a_loss_without_outputs_is_refused() -> None:
    def summed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        inputs, targets = batch
        return (model(inputs) - targets).square().sum(), len(targets)

    problem = linear(4)
    problem.loss = summed
    with pytest.raises(InputError, match=r"needs a loss of \(outputs, targets\)"):
        looked_at(problem, Ranks(), job_of())
    with pytest.raises(InputError, match=r"needs a loss of \(outputs, targets\)"):
        of_widths(problem, job_of(model={"factory": "mlp", "arguments": {"widths": [5, 2]}}))


BAD = [
    ("decomposition", ["study.decomposition.largest=60"], "largest = 60 eigenpairs of a matrix"),
    ("decomposition", ["study.decomposition.probes=1"], "study.decomposition.probes: Input"),
    ("decomposition", ["study.decomposition.steps=[7]"], "has no step 7"),
    ("widths", ["study.widths.at=[5, 0]"], "does not increase"),
    ("widths", ["study.widths.hidden=[[]]"], "hidden or at is empty"),
    ("widths", ["model.arguments={widths=[6]}"], "widths = "),
    ("widths", ['model.arguments={widths=[6, 3], parametrization="own"}'], "'own' is not known"),
]


@pytest.mark.parametrize(("only", "settings", "message"), BAD)
def test_bad_input_is_named(
    studied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    only: str,
    settings: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(studied)
    monkeypatch.syspath_prepend(studied)
    out = f'output.path="{tmp_path}/run.h5"'
    with Console(enabled=False) as console, pytest.raises(InputError, match=message):
        study(*load_job(Path("job.toml"), [out, *settings]), Ranks(), console, only=[only])
