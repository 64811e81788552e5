"""[study.sharpness]: a quadratic in closed form, dense Hessians at every step, other ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem, Samples, dense
from scipy.linalg import eigh
from shown import figures_of, run_of, tables_of

from hessdist.config.loader import parse_job
from hessdist.config.studies import registry
from hessdist.errors import HessdistError, InputError, Stopped
from hessdist.optimizers.training import initialise, minibatches
from hessdist.parallel.ranks import Ranks, import_mpi
from hessdist.results.units import Measurements
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.studies.context import Context
from hessdist.studies.sharpness.curves import curves_of
from hessdist.workload.models import mlp

MODULE = """
import torch
from torch.utils.data import TensorDataset

def classes():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (40,), generator=generator)
    inputs[:, 0] += labels
    return TensorDataset(inputs, labels)

def line():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(30, 5, generator=generator, dtype=torch.float64) * torch.arange(1, 6)
    return TensorDataset(inputs, torch.randn(30, 1, generator=generator, dtype=torch.float64))
"""
JOB = """
name = "followed"
[model]
factory = "mlp"
arguments = { widths = [6, 5, 3], activation = "tanh" }
[data]
dataset = "followed:classes"
[checkpoints]
directory = "checkpoints"
[spectrum]
tolerance = 1e-9
[compute]
dtype = "float64"
batch_size = 16
[output]
path = "run.h5"
[study.sharpness]
"""
QUADRATIC = (
    JOB
    .replace('[6, 5, 3], activation = "tanh"', "[5, 1], bias = false")
    .replace("classes", "line")
    .replace("[data]", '[loss]\nfactory = "mse"\n[data]')
)
DEEP = """
learning_rates = [0.5]
seeds = [3]
iterations = 12
full_every = 4
largest = 2
smallest = 1
residual = 10.0
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's data sets, wherever this process runs."""
    (tmp_path / "followed.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    petsc.initialise()


def section(text: str, comm: Any = None, **callbacks: Any) -> Measurements:
    """What the study finds, on one rank or on those of a communicator."""
    job, _ = parse_job(text, "job")
    settings = job.study.wanted()["sharpness"]
    study = registry()["sharpness"]
    study.run_check(job, settings, ())
    workload = workload_of(job)
    ranks = Ranks(import_mpi().COMM_SELF if comm is None else comm)
    context = Context(job, workload, workload.on(ranks), **callbacks)
    study.run_prepare(context, settings)
    return study.run_compute(context, settings)


once = functools.cache(section)  # of what several tests look at


def problem(name: str = "classes", widths: tuple[int, ...] = (6, 5, 3)) -> Problem:
    """The network of seed 3 and its samples, by themselves."""
    names: dict[str, Any] = {}
    exec(MODULE, names)
    initialise(3)
    loss = torch.nn.functional.cross_entropy
    return Problem(mlp(widths, "tanh").double(), loss, Samples(*names[name]().tensors))


def trained(
    optimizer: Callable[[Any], torch.optim.Optimizer],
    steps: int,
    drawn: Iterator[Any] | None = None,
) -> Iterator[tuple[Problem, torch.optim.Optimizer]]:
    """The network before each step of a training by hand."""
    of = problem()
    inputs, labels = of.dataset.tensors
    moved = optimizer(of.model.parameters())
    for step in range(steps + 1):
        yield of, moved
        if step < steps:
            rows = slice(None) if drawn is None else next(drawn)
            moved.zero_grad()
            torch.nn.functional.cross_entropy(of.model(inputs[rows]), labels[rows]).backward()
            moved.step()


def hessian_of(of: Problem) -> np.ndarray:
    return dense(of, "hessian").detach().numpy() / len(of.dataset)


def gradient_of(of: Problem) -> tuple[float, np.ndarray]:
    inputs, labels = of.dataset.tensors
    loss = torch.nn.functional.cross_entropy(of.model(inputs), labels)
    pieces = torch.autograd.grad(loss, list(of.model.parameters()))
    return float(loss.detach()), torch.cat([piece.reshape(-1) for piece in pieces]).numpy()


# -- a quadratic -----------------------------------------------------------------------------


def quadratic() -> np.ndarray:
    """H of the mean squared error of a line."""
    names: dict[str, Any] = {}
    exec(MODULE, names)
    inputs = names["line"]().tensors[0].numpy()
    return 2 * inputs.T @ inputs / len(inputs)


def step_of(name: str, product: float) -> np.ndarray:
    """The map of (θ, m) by a step along an eigenvector, whose λ times the rate is `product`."""
    if name == "sgd":
        return np.array([[1 - product]])
    memory = np.array([product, 0.9])  # m times the rate
    moved = memory if name == "momentum" else np.array([1.9 * product, 0.81])
    return np.stack([np.array([1.0, 0.0]) - moved, memory])


@pytest.mark.parametrize(
    ("name", "stable"), [("sgd", 2.0), ("momentum", 3.8), ("nesterov", 3.8 / 2.8)]
)
def test_the_predicted_onset_of_instability_is_the_measured_one(name: str, stable: float) -> None:
    first = float(np.linalg.eigvalsh(quadratic())[-1])
    scales = np.array([0.995, 1.005, 1.03])
    rates = list(map(float, stable * scales / first))
    found = once(
        QUADRATIC + f"optimizers = {[name] * 3}\nlearning_rates = {rates}\n"
        "iterations = 160\nevery = 40\nfull_every = 80\nlargest = 1\n"
    )
    bounds = np.repeat(first / scales, 5).reshape(3, 5)
    assert found["bound"][:, 0] == pytest.approx(bounds, rel=1e-12)
    tracked, full = found["tracked_largest"], found["eigenvalues_largest"][..., 0]
    assert tracked[:, :, 1:] == pytest.approx(np.full((3, 1, 4, 2), first), rel=1e-10)
    assert full[:, :, ::2] == pytest.approx(np.full((3, 1, 3, 2), first), rel=1e-10)
    norms = found["gradient_norm"][:, 0]
    growth = (norms[:, 4] / norms[:, 2]) ** (1 / 80)  # of a step
    assert growth[0] < 1 < growth[1]  # the onset is within 0.5 % of the bound
    radius = [np.abs(np.linalg.eigvals(step_of(name, stable * s))).max() for s in scales]
    assert growth[1:] == pytest.approx(radius[1:], rel=1e-3)
    assert growth[2] == pytest.approx(radius[2], rel=1e-6)


def test_training_on_a_quadratic_ends_where_it_diverges() -> None:
    lines: list[str] = []
    found = section(
        QUADRATIC + 'optimizers = ["sgd", "sgd"]\nlearning_rates = [1.0, 0.01]\n'
        "iterations = 160\nevery = 40\nfull_every = 160\nlargest = 1\n",
        line=lines.append,
    )
    (line,) = lines
    assert line.startswith("sgd 1, seed 0 has ended at step ")
    assert np.isnan(found["loss"][0, 0, -1])
    assert np.isfinite(found["loss"][0, 0, 0])
    assert np.isfinite(found["loss"][1]).all()
    assert found["converged"].all()
    assert "diverged" in next(registry()["sharpness"].remarks_on(found))


# -- dense Hessians --------------------------------------------------------------------------


def test_every_step_of_gradient_descent_against_dense_hessians() -> None:
    found = once(JOB + DEEP)
    assert found["iteration"].tolist() == list(range(13))
    for step, (of, _) in enumerate(trained(lambda p: torch.optim.SGD(p, lr=0.5), 12)):
        values, vectors = np.linalg.eigh(hessian_of(of))
        loss, gradient = gradient_of(of)
        at = 0, 0, step
        assert found["loss"][at] == pytest.approx(loss, rel=1e-12)
        assert found["gradient_norm"][at] == pytest.approx(np.linalg.norm(gradient), rel=1e-10)
        assert found["bound"][at] == pytest.approx(4.0)
        full = found["eigenvalues_largest"][at][0], found["eigenvalues_smallest"][at][0]
        if step % 4 == 0:
            assert full[0] == pytest.approx(values[[-1, -2]], rel=1e-8)
            assert full[1] == pytest.approx(values[[0]], rel=1e-8)
            inside = vectors[:, -2:].T @ gradient
            share = inside @ inside / (gradient @ gradient)
            assert found["gradient_share"][at][0] == pytest.approx(share, rel=1e-6)
        else:
            assert np.isnan(np.concatenate(full)).all()
        if step:
            for end, extreme in (("largest", values[-1]), ("smallest", values[0])):
                tracked = found[f"tracked_{end}"][at][0]
                residual = found[f"tracked_residual_{end}"][at][0]
                beyond = tracked - extreme if end == "largest" else extreme - tracked
                assert beyond < 1e-12  # a Rayleigh quotient
                assert np.abs(values - tracked).min() <= residual * (1 + 1e-9)
            assert found["tracked_largest"][at][0] == pytest.approx(values[-1], rel=0.06)
    # u, its residual, and another vector; u and its residual of the smallest one.
    assert found["products_tracked"][0, 0, :, 0].tolist() == [0] + [5] * 12
    assert ((found["products_full"][0, 0, :, 0] > 0) == (np.arange(13) % 4 == 0)).all()
    assert np.array_equal(found["tracked_largest"][..., 0], found["tracked_largest"][..., 1], True)
    assert not found["products_tracked"][..., 1].any()  # P is the identity


@pytest.mark.parametrize(
    ("name", "rate", "made"),
    [
        ("adam", 0.02, lambda p: torch.optim.Adam(p, lr=0.02)),
        ("rmsprop", 0.005, lambda p: torch.optim.RMSprop(p, lr=0.005)),
    ],
)
def test_the_scaled_matrix_against_the_dense_pencil(name: str, rate: float, made: Any) -> None:
    edit = f'optimizers = ["{name}"]\n' + DEEP.replace("[0.5]", f"[{rate}]")
    found = once(JOB + edit)
    assert np.isnan(found["bound"][0, 0, 0])
    assert np.isnan(found["eigenvalues_largest"][0, 0, 0, 1]).all()  # there is no P yet
    for step, (of, optimizer) in enumerate(trained(made, 12)):
        if not step:
            continue
        states = [optimizer.state[p] for p in of.model.parameters()]
        if name == "adam":
            roots = [(s["exp_avg_sq"] / (1 - 0.999**step)).sqrt() for s in states]
            bound = 2 / rate * (1 - 0.9**step) * 1.9 / 0.1
        else:
            roots, bound = [s["square_avg"].sqrt() for s in states], 2 / rate
        p = torch.cat([root.reshape(-1) + 1e-8 for root in roots]).numpy()
        values, vectors = eigh(hessian_of(of), np.diag(p))
        at = 0, 0, step
        assert found["bound"][at] == pytest.approx(bound, rel=1e-12)
        if step % 4 == 0:
            assert found["eigenvalues_largest"][at][1] == pytest.approx(values[[-1, -2]], rel=1e-8)
            assert found["eigenvalues_smallest"][at][1] == pytest.approx(values[[0]], rel=1e-8)
            _, gradient = gradient_of(of)
            inside = vectors[:, -2:].T @ gradient  # vᵀ P v = 1
            share = inside @ inside / (gradient @ (gradient / p))
            assert found["gradient_share"][at][1] == pytest.approx(share, rel=1e-6)
            plain = np.linalg.eigvalsh(hessian_of(of))
            assert found["eigenvalues_largest"][at][0] == pytest.approx(plain[[-1, -2]], rel=1e-8)
        if step > 1:
            tracked = found["tracked_largest"][at][1]
            assert tracked <= values[-1] * (1 + 1e-12)
            residual = found["tracked_residual_largest"][at][1]
            assert np.abs(values - tracked).min() <= residual * (1 + 1e-9)


def test_one_product_a_step_is_the_power_method() -> None:
    edit = DEEP.replace("smallest = 1", "smallest = 0") + "products_per_step = 1\n"
    found = once(JOB + edit)
    assert found["products_tracked"][0, 0, :, 0].tolist() == [0] + [1] * 12
    assert np.isnan(found["tracked_smallest"]).all()
    start = None
    for step, (of, _) in enumerate(trained(lambda p: torch.optim.SGD(p, lr=0.5), 12)):
        matrix = hessian_of(of)
        if start is not None:
            assert found["tracked_largest"][0, 0, step, 0] == pytest.approx(
                start @ matrix @ start / (start @ start), rel=1e-7
            )
            start = matrix @ start
        if step % 4 == 0:
            start = np.linalg.eigh(matrix)[1][:, -1]


def test_no_products_a_step_and_a_low_limit_are_full_solves_at_every_step() -> None:
    short = DEEP.replace("iterations = 12", "iterations = 3")
    first = short + 'products_per_step = 0\nmatrices = ["scaled", "hessian"]\n'
    for edit in (first, short.replace("10.0", "1e-9")):
        found = section(JOB + edit)
        assert np.isfinite(found["eigenvalues_largest"]).all()
        assert (found["products_full"][0, 0].max(axis=1) > 0).all()
    assert found["tracked_largest"][0, 0, 1:, 0] == pytest.approx(
        found["eigenvalues_largest"][0, 0, 1:, 0, 0], rel=0.05
    )


# -- training --------------------------------------------------------------------------------


def test_minibatches_are_those_of_a_training_by_hand() -> None:
    found = section(JOB + DEEP + "batch_size = 16\nevery = 2\nmatrices = ['hessian']\n")
    drawn = minibatches(40, 16, 3)
    by_hand = trained(lambda p: torch.optim.SGD(p, lr=0.5), 12, drawn)
    losses = [gradient_of(of)[0] for step, (of, _) in enumerate(by_hand) if step % 2 == 0]
    assert found["loss"][0, 0] == pytest.approx(losses, rel=1e-12)
    assert found["tracked_largest"].shape == (1, 1, 7, 1)


def test_the_bound_follows_the_warm_up_and_the_penalty_is_in_the_matrix() -> None:
    text = JOB.replace("[data]", "[loss]\nl2 = 0.25\n[data]").replace(
        "[checkpoints]", "[training]\nwarmup_steps = 4\n[checkpoints]"
    )
    short = DEEP.replace("iterations = 12", "iterations = 5")
    found = section(text + short)
    factors = np.array([0.25, 0.5, 0.75, 1, 1, 1])
    assert found["bound"][0, 0] == pytest.approx(4 / factors, rel=1e-12)
    of = problem()
    values = np.linalg.eigvalsh(hessian_of(of)) + 0.25
    assert found["eigenvalues_largest"][0, 0, 0, 0] == pytest.approx(values[[-1, -2]], rel=1e-8)
    squares = sum(float(p.detach().square().sum()) for p in of.model.parameters())
    assert found["loss"][0, 0, 0] == pytest.approx(gradient_of(of)[0] + 0.125 * squares, rel=1e-12)


def test_single_precision() -> None:
    text = JOB.replace("float64", "float32").replace("1e-9", "1e-4")
    coarse, fine = section(text + DEEP), once(JOB + DEEP)
    for name in ("loss", "gradient_norm", "eigenvalues_largest", "tracked_largest"):
        assert coarse[name] == pytest.approx(fine[name], rel=2e-3, nan_ok=True), name


def test_a_signal_ends_it() -> None:
    told: list[str] = []

    def check_stop() -> None:
        if len(told) >= 5:
            raise Stopped("stopped on a signal", "run the same command again").on_all_ranks()

    with pytest.raises(Stopped):
        section(JOB + DEEP, note=told.append, check_stop=check_stop)
    assert len(told) == 5


@pytest.mark.mpi(ranks=3, timeout=120, unit="s")
def test_two_and_three_ranks_give_the_numbers_of_one(mpi_ranks: int, comm: Any) -> None:
    text = JOB + 'optimizers = ["adam"]\nlearning_rates = [0.02]\nseeds = [3]\nbatch_size = 7\n'
    text += "iterations = 3\nfull_every = 3\nlargest = 2\nresidual = 10.0\n"
    found = [section(text, comm)]
    two = comm.Split(comm.rank < 2, comm.rank)
    if comm.rank < 2:
        found.append(section(text, two))
    if comm.rank:
        return
    by_itself = section(text)
    for together in found:
        for name, one in together.items():
            if one.dtype.kind == "f":
                scale = np.nanmax(np.abs(one), initial=1)
                wanted = pytest.approx(by_itself[name], rel=1e-6, abs=1e-7 * scale, nan_ok=True)
                assert one == wanted, name
            elif name != "products_full":
                assert np.array_equal(one, by_itself[name]), name


# -- what is shown, and what is refused --------------------------------------------------------


def test_curves_figures_tables_and_remarks() -> None:
    found = once(JOB + 'optimizers = ["adam"]\n' + DEEP.replace("[0.5]", "[0.02]"))
    (curve,) = curves_of(found)
    assert np.array_equal(curve.steps, np.arange(13))
    solved = found["eigenvalues_largest"][0, 0, :, 1, 0]
    assert curve.largest[4] == solved[4]
    assert curve.largest[5] == found["tracked_largest"][0, 0, 5, 1]
    assert curve.ratio[4] == solved[4] / found["bound"][0, 0, 4]
    assert curve.error[4] == (solved[4] - found["tracked_largest"][0, 0, 4, 1]) / solved[4]
    (line,) = registry()["sharpness"].remarks_on(found)
    assert line.startswith("adam 0.02, seed 3: λ₁ ")
    ((name, figure),) = figures_of({"sharpness": found}, "a title")
    assert name == "sharpness-adam-0.02"
    figure.canvas.draw()
    assert all(axes.get_lines() for axes in figure.axes)
    (table,) = tables_of({"sharpness": found})
    assert list(map(str, table.columns[0].cells)) == ["adam 0.02"]
    (view,) = registry()["sharpness"].views_of(run_of({"sharpness": found}))
    assert view.lists == [["adam 0.02"], ["λ₁", "loss"]]
    assert len(view.figures) == 2


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ("largest = 0", "largest"),
        ("every = 0", "every"),
        ("every = 3\nfull_every = 20", "full_every must be a multiple of every = 3"),
        ('optimizers = ["sgd", "adam"]', "2 optimizers and 1 learning_rates"),
        ('optimizers = ["lbfgs"]', "optimizers"),
        ("products_per_step = 1\nsmallest = 1", "products_per_step must be 0, or 2 or more"),
        ('matrices = ["scaled"]', "sgd 0.1 has no metric"),
        ("matrices = []", "matrices"),
        ("momentum = 1.0", "momentum"),
        ("seeds = [1, 1]", "seeds has a value twice"),
        ("batch_size = 41", "batch_size is 41, and there are 40 samples"),
        ("largest = 50\nsmallest = 4", "54 eigenvalues, and the model has 53 parameters"),
    ],
)
def test_bad_input_is_one_line(edit: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        section(JOB + edit)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_job_must_be_is_said_before_anything_is_read() -> None:
    text = JOB.replace("[checkpoints]", "[training]\nwarmup_steps = 500\n[checkpoints]")
    with pytest.raises(HessdistError, match="warmup_steps is 500"):
        section(text + "iterations = 400\n")
