from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hessdist.config.loader import load_job
from hessdist.errors import DataError, NumericalError, WorkloadError
from hessdist.optimizers.negative_curvature import NegativeCurvature
from hessdist.optimizers.training import (
    OPTIMIZERS,
    build_optimizer,
    initialise,
    minibatches,
    train,
)
from hessdist.service.console import Console
from hessdist.service.train import train_job
from hessdist.workload.checkpoints import optimizer_path, read_state
from hessdist.workload.datasets import build_dataset
from hessdist.workload.losses import mse
from hessdist.workload.models import build_model
from hessdist.workload.shard import Shard
from hessdist.workload.steps import find_checkpoints


@pytest.fixture(scope="module")
def digits() -> Any:
    return build_dataset("digits", None, {})


def run_training(
    dataset: Any,
    directory: Path,
    *,
    steps: Sequence[int] = (0, 5, 20),
    optimizer: str = "sgd",
    learning_rate: float = 0.5,
    seed: int = 0,
    samples: int = 200,
    batch_size: int = 32,
    l2: float = 0.0,
    loss: Any = F.cross_entropy,
) -> list[float]:
    """Train a small network on digits; the minibatch losses."""
    initialise(seed)
    model = build_model("mlp", {"widths": [64, 8, 10], "activation": "tanh"}).double()
    shard = Shard(
        dataset,
        np.arange(samples),
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=torch.float64,
        memory=0,
    )
    losses: list[float] = []
    train(
        model,
        loss,
        shard,
        optimizer=build_optimizer(optimizer, model, learning_rate, 0.0),
        batch_size=batch_size,
        checkpoint_steps=list(steps),
        seed=seed,
        directory=directory,
        l2=l2,
        on_step=lambda step, value: losses.append(value),
    )
    return losses


def states(directory: Path) -> list[dict[str, Tensor]]:
    return [read_state(at.path) for at in find_checkpoints(directory)]


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in state.values()])


def test_the_asked_steps_are_written_the_first_before_any_minibatch(
    digits: Any, tmp_path: Path
) -> None:
    losses = run_training(digits, tmp_path, steps=(0, 3, 10))
    assert [at.step for at in find_checkpoints(tmp_path)] == [0, 3, 10]
    assert len(losses) == 10
    initialise(0)
    untouched = build_model("mlp", {"widths": [64, 8, 10], "activation": "tanh"}).double()
    start, *later = states(tmp_path)
    assert torch.equal(flat(start), flat(dict(untouched.state_dict())))
    assert all(not torch.equal(flat(state), flat(start)) for state in later)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    digits: Any, tmp_path: Path, optimizer: str
) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        run_training(digits, tmp_path / name, seed=seed, optimizer=optimizer, learning_rate=1e-2)
    one, two, other = (states(tmp_path / name) for name in ("one", "two", "other"))
    assert all(torch.equal(flat(a), flat(b)) for a, b in zip(one, two, strict=True))
    assert all(not torch.equal(flat(a), flat(b)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"),
    [("sgd", 0.5), ("rmsprop", 3e-3), ("adam", 1e-2), ("adamw", 1e-2)],
)
def test_the_loss_on_digits_goes_down(
    digits: Any, tmp_path: Path, optimizer: str, learning_rate: float
) -> None:
    losses = run_training(
        digits, tmp_path, steps=(150,), optimizer=optimizer, learning_rate=learning_rate
    )
    assert np.mean(losses[:5]) > 1.8
    assert np.mean(losses[-5:]) < 0.8


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(reduction="sum")])
def test_one_step_of_gradient_descent_is_the_gradient_of_the_mean_loss_with_its_penalty(
    digits: Any, tmp_path: Path, loss: Any
) -> None:
    rate, l2 = 0.1, 0.3
    run_training(
        digits,
        tmp_path,
        steps=(0, 1),
        learning_rate=rate,
        samples=50,
        batch_size=50,
        l2=l2,
        loss=loss,
    )
    before, after = states(tmp_path)
    theta = {name: tensor.clone().requires_grad_() for name, tensor in before.items()}
    images = torch.stack([digits[i][0] for i in range(50)]).double().flatten(1)
    targets = torch.stack([digits[i][1] for i in range(50)])
    hidden = torch.tanh(images @ theta["fc1.weight"].T + theta["fc1.bias"])
    outputs = hidden @ theta["fc2.weight"].T + theta["fc2.bias"]
    gradient = torch.autograd.grad(F.cross_entropy(outputs, targets), list(theta.values()))
    for name, piece in zip(theta, gradient, strict=True):
        expected = before[name] - rate * (piece + l2 * before[name])
        torch.testing.assert_close(after[name], expected, rtol=1e-10, atol=1e-12)


def test_a_loss_of_model_and_batch_trains_as_the_criterion_it_stands_for(
    digits: Any, tmp_path: Path
) -> None:
    def summed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        inputs, targets = batch
        return len(targets) * mse(model(inputs), targets), len(targets)

    one = run_training(digits, tmp_path / "one", loss=mse)
    other = run_training(digits, tmp_path / "other", loss=summed)
    assert other == pytest.approx(one, rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_a_loss_that_is_not_finite_ends_training_with_the_step_and_the_key_to_change(
    digits: Any, tmp_path: Path
) -> None:
    with pytest.raises(NumericalError, match=r"at step \d+; lower training.learning_rate"):
        run_training(digits, tmp_path, steps=(0, 500), learning_rate=1e6, loss=mse)
    assert [at.step for at in find_checkpoints(tmp_path)] == [0]


def test_a_loss_without_a_graph_is_refused(digits: Any, tmp_path: Path) -> None:
    def detached(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.detach(), targets)

    with pytest.raises(WorkloadError, match="does not depend on the parameters"):
        run_training(digits, tmp_path, loss=detached, l2=0.1)


@pytest.mark.parametrize("loss", [F.cross_entropy, mse])
def test_a_label_out_of_range_in_a_later_minibatch_is_named(
    digits: Any, tmp_path: Path, loss: Any
) -> None:
    model = build_model("mlp", {"widths": [64, 5]}).double()
    shard = Shard(
        digits,  # whose first labels are 0, 1, 2
        np.arange(100),
        batch_size=100,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    with pytest.raises(DataError, match=r"labels are 0 \.\.\. 9.*outputs 0 \.\.\. 4"):
        train(
            model,
            loss,
            shard,
            optimizer=build_optimizer("sgd", model, 0.1, 0.0),
            batch_size=100,
            checkpoint_steps=[1],
            seed=0,
            directory=tmp_path,
        )


def test_steps_along_negative_curvature(tmp_path: Path) -> None:
    """A job with them is the loop of appendix E, and writes the state of its base optimiser."""
    (tmp_path / "job.toml").write_text(NEGATIVE.format(tmp_path), encoding="utf-8")
    with Console(enabled=False) as console:
        train_job(load_job(tmp_path / "job.toml", [])[0], console)
    written = find_checkpoints(tmp_path / "checkpoints")
    initialise(3)
    model = build_model("mlp", {"widths": [64, 4, 10], "activation": "tanh"}).double()
    base = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    optimizer = NegativeCurvature(model.parameters(), base, lr=0.5, seed=3)
    samples = build_dataset("digits", None, {})
    draw = minibatches(len(samples), 32, 3)
    for _ in range(30):
        images, labels = zip(*(samples[row] for row in next(draw).tolist()), strict=True)
        inputs, targets = torch.stack(images).double(), torch.tensor(labels)

        def loss(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            return F.cross_entropy(model(inputs), targets)

        optimizer.step(loss)
    assert optimizer.steps_along > 5
    assert flat(read_state(written[-1].path)) == pytest.approx(
        flat(dict(model.state_dict())), abs=1e-12
    )
    state = torch.load(optimizer_path(written[-1].path), weights_only=True)["optimizer"]
    assert float(state["state"][0]["step"]) == 30 - optimizer.steps_along


NEGATIVE = """
name = "negative"
[model]
factory = "mlp"
arguments = {{ widths = [64, 4, 10], activation = "tanh" }}
[data]
dataset = "digits"
[training]
optimizer = "rmsprop"
negative_curvature = 0.5
batch_size = 32
steps = 30
checkpoint_steps = [30]
seed = 3
[checkpoints]
directory = "{0}/checkpoints"
[compute]
dtype = "float64"
device = "cpu"
[output]
path = "{0}/run.h5"
"""


# -- minibatches -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch_size"), [(12, 4), (13, 4), (3, 8), (5, 1)])
def test_an_epoch_draws_every_sample_once_and_the_next_one_in_another_order(
    size: int, batch_size: int
) -> None:
    batches = -(-size // batch_size)
    drawn = list(itertools.islice(minibatches(size, batch_size, 0), 4 * batches))
    epochs = [torch.cat(drawn[e * batches : (e + 1) * batches]).tolist() for e in range(4)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert max(len(batch) for batch in drawn) == min(size, batch_size)
    again = itertools.islice(minibatches(size, batch_size, 0), len(drawn))
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
