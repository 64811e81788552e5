"""Restarts and differences against runs by hand and closed forms, and on several ranks."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from shown import figures_of, tables_of
from studied import JOB, MODULE

from hessdist.config.loader import parse_job
from hessdist.config.studies import registry
from hessdist.errors import InputError
from hessdist.optimizers.training import initialise
from hessdist.parallel.ranks import Ranks, import_mpi
from hessdist.results.units import Measurements
from hessdist.service.workload import workload_of
from hessdist.spectrum import petsc
from hessdist.studies.context import Context
from hessdist.studies.debugging.curves import error_at, least_error
from hessdist.studies.debugging.settings import DifferencesSection, RestartsSection
from hessdist.workload.models import mlp

PART = JOB.replace(
    'dataset = "ours:samples"', 'dataset = "ours:samples"\nsubset="first"\nsamples = 40'
)
RESTARTS = """
[study.restarts]
seeds = [3, 4]
radii = [0.5, 50.0]
draws = 2
iterations = 30
"""
DIFFERENCES = """
[study.differences]
points = 21
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's data set, wherever this process runs."""
    (tmp_path / "ours.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    petsc.initialise()


def section(text: str, name: str, comm: Any = None) -> Measurements:
    job, _ = parse_job(text, "job")
    torch.manual_seed(0)  # no checkpoint is read, so these are the parameters of the model
    workload = workload_of(job)
    ranks = Ranks(import_mpi().COMM_SELF if comm is None else comm)
    study, settings = registry()[name], getattr(job.study, name)
    study.run_check(job, settings, ())
    return study.run_compute(Context(job, workload, workload.on(ranks)), settings)


once = functools.cache(section)


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60,), generator=generator)
    inputs[:, 0] += labels
    return inputs, labels


# -- restarts --------------------------------------------------------------------------------


def test_descents_by_hand() -> None:
    """Full-batch steps from the seed's start over 40 samples, tested on the other 20."""
    found = once(PART + RESTARTS, "restarts")
    inputs, labels = samples()
    criterion = torch.nn.CrossEntropyLoss()
    initialise(3)
    model = mlp([6, 5, 3], "tanh").double()
    for row in range(2):
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        for _ in range(30):
            optimizer.zero_grad()
            criterion(model(inputs[:40]), labels[:40]).backward()
            optimizer.step()
        with torch.no_grad():
            outputs = model(inputs)
            loss, test = (criterion(outputs[p], labels[p]) for p in (slice(40), slice(40, 60)))
            right = (outputs[40:].argmax(1) == labels[40:]).double().mean()
        assert found["loss"][0, row] == pytest.approx(float(loss), rel=1e-10)
        assert found["test_loss"][0, row] == pytest.approx(float(test), rel=1e-9)
        assert found["test_accuracy"][0, row] == pytest.approx(float(right))
    assert found["test_samples"] == 20


def test_kicks_are_as_long_as_they_say() -> None:
    still = RESTARTS.replace("iterations = 30", "iterations = 1")
    found = once(PART.replace("learning_rate = 0.5", "learning_rate = 1e-9") + still, "restarts")
    assert list(found["run"][:2]) == ["trained", "trained further"]
    assert found["radius"].tolist() == [0, 0, 0.5, 0.5, 50, 50]
    assert found["distance"][0] == pytest.approx([0, 0, 0.5, 0.5, 50, 50], abs=1e-6)
    assert found["loss"][0, 2] != found["loss"][0, 3]  # two draws


def test_all_samples_in_use_leave_none_to_test_on() -> None:
    with pytest.raises(InputError, match=r"uses all samples .*lower data.samples"):
        section(JOB + RESTARTS, "restarts")


def test_what_is_shown_of_restarts() -> None:
    found = once(PART + RESTARTS, "restarts")
    (table,) = tables_of({"restarts": found})
    assert table.row_count == 4
    assert [name for name, _ in figures_of({"restarts": found}, "t")] == ["restarts"]
    lines = list(registry()["restarts"].remarks_on(found))
    assert len(lines) == 4
    assert lines[0].startswith("trained: loss ")


# -- differences -----------------------------------------------------------------------------


def test_errors_fall_and_rise_with_the_length() -> None:
    """Truncation grows as h and h², and rounding as 1/h; in float64 the least are ε^½ and ε^⅔."""
    found = once(JOB + DIFFERENCES, "differences")
    lengths = found["length"]
    late = (lengths > 1e-4) & (lengths < 1e-2)
    for kind, power, least in (("forward", 1.0, 1e-6), ("central", 2.0, 1e-8)):
        errors = found[kind][0]
        slope = np.polyfit(np.log(lengths[late]), np.log(errors[late]), 1)[0]
        assert slope == pytest.approx(power, abs=0.15), kind
        assert least_error(lengths, errors)[0] < least
        assert errors[0] > 10 * errors.min()  # rounding
    assert (found["central"][0][late] < found["forward"][0][late]).all()


def test_the_parameters_are_put_back() -> None:
    job, _ = parse_job(JOB + DIFFERENCES, "job")
    workload = workload_of(job)
    objective = workload.on(Ranks(import_mpi().COMM_SELF))
    before = objective.local.parameters.flat()
    registry()["differences"].run_compute(Context(job, workload, objective), job.study.differences)
    assert torch.equal(objective.local.parameters.flat(), before)


def test_products_that_are_differences_are_refused() -> None:
    other = JOB.replace("[compute]", '[compute]\nproduct = "finite_difference"')
    with pytest.raises(InputError, match="compares with exact products"):
        section(other + DIFFERENCES, "differences")


def test_what_is_shown_of_differences() -> None:
    found = once(JOB + DIFFERENCES, "differences")
    lines = list(registry()["differences"].remarks_on(found))
    assert len(lines) == 2
    assert "central" in lines[0]
    at = np.array([0.1, 1.0, 10.0])
    assert error_at(at, np.array([1.0, 2.0, 3.0]), 2.0) == 2
    assert np.isnan(error_at(at, at, 100.0))
    assert np.isnan(least_error(at, np.full(3, np.nan))).all()


@pytest.mark.parametrize(
    ("kind", "given", "told"),
    [
        (RestartsSection, {"seeds": []}, "seeds is empty"),
        (RestartsSection, {"radii": [1.0, 1.0]}, "radii has a value twice"),
        (DifferencesSection, {"smallest": 1.0, "largest": 0.1}, "not below largest"),
    ],
)
def test_settings_that_are_refused(kind: type[Any], given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        kind(**given)


@pytest.mark.mpi(ranks=[2], timeout=120, unit="s")
def test_the_same_numbers_on_two_ranks(mpi_ranks: int, comm: Any) -> None:
    for text, name in ((PART + RESTARTS, "restarts"), (JOB + DIFFERENCES, "differences")):
        several, alone = section(text, name, comm), section(text, name)
        for key in ("loss", "test_loss") if name == "restarts" else ("forward", "central"):
            large = several[key] > 1e-5  # not those that are rounding
            assert several[key][large] == pytest.approx(alone[key][large], rel=1e-3), key
