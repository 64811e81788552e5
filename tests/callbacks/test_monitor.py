"""The monitor in plain loops: what it writes, and that training goes on as without it."""

from __future__ import annotations

import copy
import logging
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from networks import Samples, dense, mlp_problem
from optimizers.pencils import train
from torch import nn

import hessdist
from hessdist.callbacks import Checkpoints, Monitor, Solves
from hessdist.callbacks.trained import plain_model
from hessdist.errors import CheckpointError, InputError, NumericalError, OutputError, WorkloadError
from hessdist.workload.checkpoints import load_into, read_state
from hessdist.workload.optimizer_states import entries_of, find_optimizer
from hessdist.workload.steps import find_checkpoints

FEW: dict[str, Any] = {"largest": 3, "smallest": 2, "tolerance": 1e-7}


class Clock:
    """A clock that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """An action that takes its time, and fails when it is told to."""

    def __init__(self, clock: Clock, seconds: float, fails_at: int = -1) -> None:
        self.clock, self.seconds, self.fails_at = clock, seconds, fails_at
        self.steps: list[int] = []

    def crew(self) -> Any:
        from hessdist.parallel.crew import Alone

        return Alone()

    def prepare(self, crew: Any, model: Any, step: int) -> None:
        pass

    def act(self, crew: Any, model: Any, optimizer: Any, step: int) -> bool:
        self.clock.now += self.seconds
        if step == self.fails_at:
            raise NumericalError("the loss is not finite")
        self.steps.append(step)
        return True


def run(monitor: Monitor, clock: Clock, steps: int) -> None:
    for step in range(1, steps + 1):
        clock.now += 1
        monitor.step(nn.Linear(1, 1), None, step)


def test_the_share_of_the_time_is_kept_after_the_first() -> None:
    clock = Clock()
    action = Counted(clock, seconds=3)
    run(Monitor(action, every=2, share=0.1, clock=clock), clock, 100)
    # 3 of 30 seconds since step 1: the trainer's step 28 is at 27 + 3.
    assert action.steps[:3] == [2, 28, 56]
    assert len(action.steps) == 4
    action = Counted(clock, seconds=3)
    run(Monitor(action, every=20, clock=clock), clock, 100)
    assert action.steps == [20, 40, 60, 80, 100]


def test_one_step_is_seen_once() -> None:
    clock = Clock()
    action = Counted(clock, seconds=1)
    monitor = Monitor(action, every=1, clock=clock)
    assert [monitor.step(nn.Linear(1, 1), None, step) for step in (1, 1, 2)] == [True, False, True]


def test_the_first_failure_is_raised_and_later_ones_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with pytest.raises(NumericalError):
        run(Monitor(Counted(clock, 1, fails_at=5), every=5, clock=clock), clock, 20)
    action = Counted(clock, 1, fails_at=10)
    with caplog.at_level(logging.WARNING, "hessdist"):
        run(Monitor(action, every=5, clock=clock), clock, 20)
    assert action.steps == [5, 15, 20]
    assert [r.getMessage() for r in caplog.records] == [
        "step 10: the monitor has failed: the loss is not finite"
    ]


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 1, "share": 0.0}])
def test_settings_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"every is 0|share is 0"):
        Monitor(Checkpoints("nowhere"), **wrong)


# -- training goes on as without it ----------------------------------------------------------


def odd_network(copyable: bool) -> nn.Module:
    """One with dropout and batch norm, and a parameter that is frozen."""
    torch.manual_seed(3)
    layers = [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3)]
    network = nn.Sequential(*layers)
    network[0].bias.requires_grad_(False)
    if not copyable:
        network.lock = threading.Lock()  # type: ignore[assignment]
    return network


def trained(samples: Samples, monitors: list[Monitor], copyable: bool = True) -> tuple[Any, ...]:
    """Train for six steps, and return everything that training depends on."""
    network = odd_network(copyable)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.05)
    inputs, labels = samples.tensors
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    seen = []
    for step in range(1, 7):
        chosen = torch.randperm(len(labels))[:8]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        for monitor in monitors:
            monitor.step(network, optimizer, step)
        seen.append(loss.item())
        seen.append([p.grad if p.grad is None else p.grad.clone() for p in network.parameters()])
    modes = [module.training for module in network.modules()]
    wants = [p.requires_grad for p in network.parameters()]
    randoms = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    process = torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()
    state = optimizer.state_dict(), network.state_dict()
    return (seen, modes, wants, randoms, process, *copy.deepcopy(state))


def same(one: Any, other: Any) -> bool:
    """Whether two nestings are the same to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("copyable", [True, False])
def test_training_is_the_same_to_the_bit(tmp_path: Path, copyable: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = Samples(
        torch.randn(30, 6, generator=generator), torch.randint(0, 3, (30,), generator=generator)
    )
    criterion = nn.functional.cross_entropy
    solves = Solves(tmp_path / "run.h5", criterion, samples, largest=2, smallest=1)
    monitors = [Monitor(solves, every=2), Monitor(Checkpoints(tmp_path / "checkpoints"), every=3)]
    without = trained(samples, [])
    assert same(trained(samples, monitors, copyable), without)
    assert not same(trained(Samples(*(samples.tensors[0] + 1e-6, samples.tensors[1])), []), without)
    assert hessdist.open_run(tmp_path / "run.h5").steps.tolist() == [2, 4, 6]
    assert [one.step for one in find_checkpoints(tmp_path / "checkpoints")] == [3, 6]


# -- solves ----------------------------------------------------------------------------------


def test_a_solve_is_that_of_the_interface_and_of_the_dense_matrix(tmp_path: Path) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    exact = np.linalg.eigvalsh(dense(problem, "hessian").detach().numpy() / 20)
    path = tmp_path / "run.h5"
    monitor = Monitor(Solves(path, problem.loss, problem.dataset, **FEW), every=1)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.5)
    assert monitor.step(torch.compile(problem.model), optimizer, 0)
    same_state = hessdist.extreme_eigenpairs(problem.model, problem.loss, problem.dataset, **FEW)
    run = hessdist.open_run(path)
    assert run[0].eigenvalues_largest == pytest.approx(exact[::-1][:3], rel=1e-9)
    assert run[0].eigenvalues_smallest == pytest.approx(exact[:2], rel=1e-9)
    assert np.array_equal(run[0].eigenvalues_largest, same_state.eigenvalues_largest)
    assert run[0].loss == same_state.loss
    assert same_state.eigenvectors_largest is not None
    assert run[0].eigenvectors_largest == pytest.approx(same_state.eigenvectors_largest, abs=1e-6)
    assert run[0].stability_bound == pytest.approx(30)  # 2 (1 + 0.5) / 0.1


def test_pairs_in_the_metric_of_adamw_with_groups(tmp_path: Path) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    state = train(problem, "adamw")
    path = tmp_path / "run.h5"
    solves = Solves(path, problem.loss, problem.dataset, metric="optimizer", **FEW)
    monitor = Monitor(solves, every=7)
    assert not monitor.step(problem.model, state.optimizer, 0)  # there is no P yet
    assert monitor.step(problem.model, state.optimizer, 7)
    matrix = dense(problem, "hessian").detach().numpy() / 20
    exact = scipy.linalg.eigh(matrix, np.diag(state.divisors.numpy()), eigvals_only=True)
    run = hessdist.open_run(path)
    assert run.metric == "optimizer"
    assert run[7].eigenvalues_largest == pytest.approx(exact[::-1][:3], rel=1e-8)


def test_a_resumed_training_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    problem, path = mlp_problem("tanh", "cross_entropy"), tmp_path / "run.h5"
    folder = tmp_path / "checkpoints"

    def monitors(**changed: Any) -> list[Monitor]:
        solves = Solves(path, problem.loss, problem.dataset, **FEW | changed)
        return [Monitor(solves, every=2), Monitor(Checkpoints(folder), every=2)]

    first, written = monitors()
    for step in range(1, 7):
        first.step(problem.model, None, step)
        written.step(problem.model, None, step)
    with pytest.raises(OutputError, match="another sweep or training"):
        monitors()[0].step(problem.model, None, 1)
    del first
    for monitor in monitors():
        with pytest.raises(OutputError, match="another training"):
            monitor.step(problem.model, None, 1)
    with pytest.raises(OutputError, match="other settings"):
        monitors(largest=4)[0].step(problem.model, None, 4)
    for monitor in monitors():
        assert monitor.step(problem.model, None, 4)
    assert hessdist.open_run(path).steps.tolist() == [2, 4]
    assert [one.step for one in find_checkpoints(folder)] == [2, 4]
    assert (folder / "step-00000006.pt.outdated").exists()


def test_a_metric_without_an_optimiser_is_refused(tmp_path: Path) -> None:
    problem = mlp_problem("tanh", "cross_entropy")
    solves = Solves(tmp_path / "run.h5", problem.loss, problem.dataset, metric="optimizer", **FEW)
    with pytest.raises(CheckpointError, match="no optimiser's state"):
        Monitor(solves, every=1).step(problem.model, None, 1)


# -- what trainers wrap models in ------------------------------------------------------------


def test_checkpoints_have_names_in_the_optimiser_s_state(tmp_path: Path) -> None:
    """Shapes do not tell which of the equal layers is in which group."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    groups = [{"params": model[1].parameters(), "lr": 0.5}, {"params": model[0].parameters()}]
    optimizer = torch.optim.Adam([*groups, {"params": model[2].parameters(), "lr": 0.2}], lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    compiled: Any = torch.compile(model)
    assert Monitor(Checkpoints(tmp_path), every=1).step(compiled, optimizer, 1)
    (found,) = find_checkpoints(tmp_path)
    content, other = read_state(found.path), copy.deepcopy(model)
    nn.init.zeros_(other[0].weight)
    load_into(other, content, found.path)
    assert torch.equal(other[0].weight, model[0].weight)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    entries = entries_of(find_optimizer(content, found.path), shapes, list(shapes), found.path)
    rates = {name: entry.group["lr"] for name, entry in entries.items()}
    assert (rates["0.weight"], rates["1.bias"], rates["2.weight"]) == (0.1, 0.5, 0.2)
    assert "param_names" not in optimizer.param_groups[0]


def test_the_forward_of_accelerate_is_not_used(tmp_path: Path) -> None:
    """It computes in bfloat16, in which nothing can be proven of a second derivative."""
    from types import MethodType

    problem = mlp_problem("tanh", "cross_entropy", dtype=torch.float32)
    model = problem.model
    plain = hessdist.extreme_eigenpairs(model, problem.loss, problem.dataset, **FEW)
    model._original_forward = model.forward  # type: ignore[assignment]
    reduced = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)  # type: ignore[attr-defined]
    model.forward = MethodType(reduced, model)
    assert model(problem.dataset.tensors[0]).dtype == torch.bfloat16
    before = dict(vars(model))
    Monitor(Solves(tmp_path / "run.h5", problem.loss, problem.dataset, **FEW), every=1).step(
        model, None, 1
    )
    assert vars(model) == before
    found = hessdist.open_run(tmp_path / "run.h5")[1]
    assert np.array_equal(found.eigenvalues_largest, plain.eigenvalues_largest)


def test_a_network_in_half_precision_is_solved_in_float32(tmp_path: Path) -> None:
    problem = mlp_problem("tanh", "cross_entropy", dtype=torch.float32)
    model = problem.model.to(torch.bfloat16)
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    solves = Solves(tmp_path / "run.h5", problem.loss, problem.dataset, **FEW)
    assert Monitor(solves, every=1).step(model, optimizer, 1)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(map(torch.equal, before, model.parameters()))
    exact = hessdist.extreme_eigenpairs(model.float(), problem.loss, problem.dataset, **FEW)
    found = hessdist.open_run(tmp_path / "run.h5")[1]
    assert np.array_equal(found.eigenvalues_largest, exact.eigenvalues_largest)
    assert found.stability_bound == pytest.approx(20)


def test_parameters_that_are_spread_are_refused(tmp_path: Path) -> None:
    kind = type("FullyShardedDataParallel", (nn.Sequential,), {})
    with pytest.raises(WorkloadError, match="FullyShardedDataParallel"):
        Monitor(Checkpoints(tmp_path), every=1).step(kind(nn.Linear(2, 2)), None, 1)
    assert plain_model(nn.Linear(2, 2)).weight.shape == (2, 2)
