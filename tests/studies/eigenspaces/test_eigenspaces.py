"""The sections eigenspace and saddle, against runs by hand and closed forms; on several ranks."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Problem, Samples, dense
from shown import figures_of, tables_of
from studied import JOB, MODULE
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, update_bn

from hessdist.config.loader import parse_job
from hessdist.config.studies import registry
from hessdist.errors import InputError, Stopped
from hessdist.optimizers.swag import SWAG
from hessdist.optimizers.training import initialise, minibatches
from hessdist.parallel.ranks import Ranks, import_mpi
from hessdist.results.units import Measurements
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.studies.context import Context
from hessdist.studies.debugging.saddle import saddle
from hessdist.studies.eigenspaces.eigenspace import eigenspace
from hessdist.workload.models import build_model, mlp

SECTIONS = {"eigenspace": eigenspace, "saddle": saddle}
EIGENSPACE = """
[study.eigenspace]
seeds = [3, 4]
gradients = 120
pairs = 4
learning_rates = [0.4]
floor = 0.05
refresh_every = 15
curvature_samples = 8
tolerance = 1e-8
average_from = 0.25
average_every = 5
rank = 3
draws = 5
evaluate_every = 30
"""
SADDLE = """
[study.saddle]
noise = [0.1]
displacement = 0.01
seeds = [0, 1]
iterations = 60
evaluate_every = 4
escape = 0.02
"""
NORMALISED = """
from torch import nn

def network():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
"""
WITHOUT_BIASES = JOB.replace('"tanh" }', '"tanh", bias = false }')


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's data set, wherever this process runs."""
    (tmp_path / "ours.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "normalised.py").write_text(NORMALISED, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    petsc.initialise()


@functools.cache
def once(text: str, name: str) -> Measurements:
    """A section of one rank, which several tests look at."""
    return section(text, name)


def section(
    text: str,
    name: str,
    comm: Any = None,
    edit: Callable[[str], str] = lambda text: text,
    **callbacks: Any,
) -> Measurements:
    job, _ = parse_job(edit(text), "job")
    workload = workload_of(job)
    ranks = Ranks(import_mpi().COMM_SELF if comm is None else comm)
    experiment = Context(job, workload, workload.on(ranks), **callbacks)
    return SECTIONS[name](experiment, getattr(job.study, name))


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60,), generator=generator)
    inputs[:, 0] += labels
    return inputs, labels


# -- eigenspaces -----------------------------------------------------------------------------


def test_plain_sgd_and_its_averages_against_a_run_by_hand() -> None:
    found = once(JOB + EIGENSPACE, "eigenspace")
    assert list(found["run"]) == ["sgd 0.5", "sgd 0.5 + eigenspace 0.4"]
    assert found["gradients"].tolist() == [0, 30, 60, 90, 120]
    inputs, labels = samples()
    initialise(4)
    model = mlp([6, 5, 3], "tanh").double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    draw = minibatches(60, 16, 4)
    swa, swag = AveragedModel(model), SWAG(model.parameters(), 3)

    def loss(of: torch.nn.Module) -> float:
        return float(torch.nn.functional.cross_entropy(of(inputs), labels).detach())

    for step in range(1, 121):
        picked = next(draw)
        if step % 30 == 1:
            place = step // 30
            assert found["loss"][0, 0, 1, place] == pytest.approx(loss(model), rel=1e-12)
            average = found["loss"][0, 1, 1, place]
            assert math.isnan(average) if place == 0 else average == pytest.approx(loss(swa))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[picked]), labels[picked]).backward()
        optimizer.step()
        if step >= 30 and step % 5 == 0:
            swa.update_parameters(model)
            swag.collect()
    assert found["loss"][0, 0, 1, 4] == pytest.approx(loss(model), rel=1e-12)
    assert found["loss"][0, 1, 1, 4] == pytest.approx(loss(swa.module), rel=1e-12)
    probabilities = torch.zeros(60, 3, dtype=torch.float64)
    drawn = copy.deepcopy(model)
    for number in range(5):
        weights = swag.sample(torch.Generator().manual_seed(4 * 5 + number))
        vector_to_parameters(parameters_to_vector(weights), drawn.parameters())
        probabilities += drawn(inputs).detach().softmax(1) / 5
    expected = float(torch.nn.functional.nll_loss(probabilities.log(), labels))
    assert found["loss"][0, 2, 1, 4] == pytest.approx(expected, rel=1e-10)
    assert np.isnan(found["loss"][0, 2, :, :4]).all()
    assert np.isnan(found["test_loss"]).all()  # the data set has none
    assert found["minibatches"][0].tolist() == [120, 120]


@pytest.mark.parametrize(
    ("budget", "count", "every", "negative"), [(120, 4, 15, 0), (390, 10, 2, 3)]
)
def test_the_eigenspace_against_dense_hessians_and_its_price(
    budget: int, count: int, every: int, negative: int
) -> None:
    """Early in training several of the eigenvalues of largest magnitude are negative."""
    text = EIGENSPACE.replace("pairs = 4", f"pairs = {count}")
    text = text.replace("gradients = 120", f"gradients = {budget}")
    text = text.replace("refresh_every = 15", f"refresh_every = {every}")
    found = once(JOB + text, "eigenspace")
    assert (found["eigenvalues"][1, 0, 0] < 0).sum() >= negative
    inputs, labels = samples()
    initialise(3)
    model = mlp([6, 5, 3], "tanh").double()
    draw = minibatches(60, 16, 3)
    loss = torch.nn.functional.cross_entropy
    pairs = None
    for step in range(int(found["minibatches"][1, 0])):
        picked = next(draw)
        model.zero_grad()
        loss(model(inputs[picked]), labels[picked]).backward()
        gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        if step and step % every == 0:
            part = Problem(model, loss, Samples(inputs[:8], labels[:8]))
            values, vectors = torch.linalg.eigh(dense(part, "hessian") / 8)
            chosen = values.abs().argsort(descending=True)[:count]
            pairs = values[chosen], vectors[:, chosen]
            stored = found["eigenvalues"][1, 0, step // every - 1]
            assert stored == pytest.approx(pairs[0].numpy(), rel=1e-4)
        move = -0.5 * gradient
        if pairs is not None:
            inside = pairs[1].T @ gradient
            move += pairs[1] @ (0.5 * inside - 0.4 * inside / pairs[0].abs().clamp(min=0.05))
        theta = parameters_to_vector(model.parameters()).detach() + move
        vector_to_parameters(theta, model.parameters())
    end = float(loss(model(inputs), labels).detach())
    assert found["loss"][1, 0, 0, -1] == pytest.approx(end, rel=1e-4)
    assert (found["solves"][1] >= 2).all()
    # 8 samples are half a minibatch of 16; a graph counts as one gradient, a product as two.
    price = (found["solves"][1] + 2 * found["products"][1]) / 2
    spent = found["minibatches"][1] + price
    assert (spent > budget - 2).all()  # what comes next does not fit
    assert (spent - price / found["solves"][1] < budget + 20).all()
    assert found["converged"].all()
    assert ((found["share"][1] > 0) & (found["share"][1] < 1)).all()
    assert np.isnan(found["share"][0]).all()
    assert (found["largest_eigenvalue"][:, :2] > 0).all()


def test_adam_and_a_penalty() -> None:
    text = JOB.replace("[training]", "[loss]\nl2 = 0.1\n[training]")
    text = text.replace("learning_rate = 0.5", "learning_rate = 0.01") + EIGENSPACE
    edited = text.replace("seeds = [3, 4]", 'seeds = [3]\nbase = ["adam"]')
    found = section(edited, "eigenspace")
    assert list(found["run"]) == ["adam 0.01", "adam 0.01 + eigenspace 0.4"]
    assert np.isfinite(found["loss"][:, 0]).all()
    assert (found["loss"][:, 0, 0, -1] < found["loss"][:, 0, 0, 0]).all()


def test_a_run_that_diverges_is_kept_and_marked() -> None:
    def edit(text: str) -> str:
        edited = text.replace('"tanh"', '"relu"')
        return edited.replace("seeds = [3, 4]", "seeds = [3]\nbase_learning_rates = [0.5, 1e300]")

    found = section(JOB + EIGENSPACE, "eigenspace", edit=edit)
    assert list(found["run"])[2:] == ["sgd 1e+300", "sgd 1e+300 + eigenspace 0.4"]
    assert np.isfinite(found["loss"][:2, 0]).all()
    assert np.isfinite(found["loss"][2:, 0, :, 0]).all()
    assert np.isnan(found["loss"][2:, :, :, -1]).all()
    assert any("diverged" in line for line in registry()["eigenspace"].remarks_on(found))


def test_averages_have_batch_statistics_of_their_own() -> None:
    """The average of weights is judged with the statistics that it has itself."""
    text = JOB.replace('"mlp"', '"normalised:network"')
    text = text.replace('arguments = { widths = [6, 5, 3], activation = "tanh" }', "")
    short = EIGENSPACE.replace("gradients = 120", "gradients = 30").replace("0.25", "0.0")
    found = section(
        text + short.replace("[3, 4]", "[3]").replace("draws = 5", "draws = 0"), "eigenspace"
    )
    inputs, labels = samples()
    initialise(3)
    model = build_model("normalised:network", {}).double()
    optimizer, draw = torch.optim.SGD(model.parameters(), lr=0.5), minibatches(60, 16, 3)
    swa, loss = AveragedModel(model), torch.nn.functional.cross_entropy
    for step in range(1, 31):
        picked = next(draw)
        optimizer.zero_grad()
        loss(model.train()(inputs[picked]), labels[picked]).backward()
        optimizer.step()
        if step % 5 == 0:
            swa.update_parameters(model)
    copied = float(loss(swa.module.eval()(inputs), labels).detach())
    update_bn(torch.split(inputs, 16), swa.module)
    expected = float(loss(swa.module.eval()(inputs), labels).detach())
    assert found["loss"][0, 0, 0, 1] == pytest.approx(
        float(loss(model.eval()(inputs), labels).detach())
    )
    assert found["loss"][0, 1, 0, 1] == pytest.approx(expected, rel=1e-12)
    assert copied != pytest.approx(expected, rel=1e-3)
    assert np.isnan(found["loss"][0, 2]).all()  # no draws: no SWAG


# -- a saddle --------------------------------------------------------------------------------


def test_the_saddle_s_eigenvalues_are_singular_values() -> None:
    """At zero L = const + Σ_j w_jᵀ M u_j to second order, M the mean of (p - y) xᵀ: ± its
    singular values, once for each of the five hidden units, and zeros."""
    found = once(WITHOUT_BIASES + SADDLE, "saddle")
    inputs, labels = samples()
    errors = torch.full((60, 3), 1 / 3, dtype=torch.float64)
    errors[torch.arange(60), labels] -= 1
    singular = torch.linalg.svdvals(errors.T @ inputs / 60).numpy()
    expected = np.sort(np.concatenate([np.repeat(singular, 5), -np.repeat(singular, 5)]))
    values = found["eigenvalues"]
    assert len(values) == 45
    assert values[:15] == pytest.approx(expected[:15], abs=1e-12)
    assert values[-15:] == pytest.approx(expected[-15:], abs=1e-12)
    assert found["start_loss"] == pytest.approx(math.log(3), rel=1e-14)
    assert found["start_gradient_norm"] == 0


@pytest.mark.parametrize("full_batch", ["true", "false"])
def test_sgd_stays_and_noise_leaves(full_batch: str) -> None:
    other = f"full_batch = {full_batch}\n" if full_batch == "false" else ""  # true by default
    found = once(WITHOUT_BIASES + SADDLE + other, "saddle")
    names = list(found["run"])
    assert names == [
        "SGD",
        "SGD, momentum 0.9",
        "SGD, from 0.01 away",
        "SGD, momentum 0.9, from 0.01 away",
        "noisy SGD, radius 0.1",
    ]
    assert (found["loss"][:2] == found["start_loss"]).all()  # to the bit
    assert (found["gradient_norm"][:2] == 0).all()
    assert np.isnan(found["escape"][:2]).all()
    assert np.isnan(found["predicted_escape"][:2]).all()
    assert np.isfinite(found["escape"][3:]).all()
    assert (found["loss"][3:, :, -1] < found["start_loss"] + found["fall"]).all()
    if full_batch == "true":
        late = np.abs(found["escape"][3:] - found["predicted_escape"][3:, None])
        assert (late <= 8).all()  # of some 20 and 40 steps, seen every 4
        assert (found["escape"][3] < found["escape"][2]).all()  # momentum is faster
        rate = 1 - 0.5 * found["eigenvalues"][0]
        assert found["predicted_growth"][[0, 2, 4]] == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (JOB, "the gradient is not zero, its norm is 0."),
        (WITHOUT_BIASES.replace("[6, 5, 3]", "[6, 5, 5, 3]"), "no strict saddle"),
        (WITHOUT_BIASES.replace('"tanh"', '"sigmoid"'), "the gradient is not zero"),
    ],
)
def test_a_network_without_that_saddle_is_refused(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        section(text + SADDLE, "saddle")


# -- both ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("curvature_samples = 8", "curvature_samples = 61"), "and the job has 60 samples"),
        (("evaluate_every = 30", "evaluate_every = 50"), "not a multiple of evaluate_every = 50"),
        (("seeds = [3, 4]", "seeds = []"), "is empty"),
        (("rank = 3", "rank = 1"), "rank"),
    ],
)
def test_bad_input(change: tuple[str, str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        section(JOB + EIGENSPACE.replace(*change), "eigenspace")


@pytest.mark.parametrize(
    ("text", "name"), [(JOB + EIGENSPACE, "eigenspace"), (WITHOUT_BIASES + SADDLE, "saddle")]
)
def test_a_signal_ends_it(text: str, name: str) -> None:
    told: list[str] = []
    with pytest.raises(Stopped):
        section(text, name, note=told.append, is_stopped=lambda: len(told) >= 20)
    assert len(told) == 20


@pytest.mark.mpi(ranks=3, timeout=60, unit="s")
def test_three_ranks_give_the_numbers_of_one(mpi_ranks: int, comm: Any) -> None:
    shorter = EIGENSPACE.replace("gradients = 120", "gradients = 60").replace(
        "draws = 5", "draws = 2"
    )
    saddle = SADDLE.replace("iterations = 60", "iterations = 16")
    for name, text in (("eigenspace", JOB + shorter), ("saddle", WITHOUT_BIASES + saddle)):
        together, by_itself = section(text, name, comm), section(text, name)
        for table in set(together) - {"seconds"}:
            one, other = together[table], by_itself[table]
            if one.dtype.kind == "f":
                assert one == pytest.approx(other, rel=1e-10, abs=1e-13, nan_ok=True), table
            else:
                assert np.array_equal(one, other), table


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [(JOB + EIGENSPACE, "eigenspace", 2), (WITHOUT_BIASES + SADDLE, "saddle", 1)],
)
def test_figures_tables_and_remarks(text: str, name: str, count: int) -> None:
    found = once(text, name)
    assert len(list(registry()[name].remarks_on(found))) >= 2
    drawn = dict(figures_of({name: found}, "a title"))
    assert len(drawn) == count
    for figure in drawn.values():
        figure.canvas.draw()
        assert figure.axes[0].get_lines()

    (table,) = tables_of({name: found})
    assert list(dict.fromkeys(map(str, table.columns[0].cells))) == list(found["run"])
