from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hessdist.optimizers.schedules import Schedule
from hessdist.optimizers.training import build_optimizer, initialise, minibatches, train
from hessdist.workload.checkpoints import read_state
from hessdist.workload.datasets import build_dataset
from hessdist.workload.models import build_model
from hessdist.workload.shard import Shard
from hessdist.workload.steps import find_checkpoints

STEPS, WARMUP, RATE, SAMPLES, BATCH = 12, 4, 1e-2, 40, 16


def rates(schedule: Schedule | None, steps: int) -> list[float]:
    """The learning rates of SGD with a scheduler, at every step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = schedule.of(optimizer) if schedule else None
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return found


def test_the_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(Schedule("cosine", STEPS), STEPS) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_the_warm_up_rises_linearly_to_the_whole_rate(kind: Any) -> None:
    found = rates(Schedule(kind, STEPS, WARMUP), STEPS)
    assert found[:WARMUP] == pytest.approx([RATE * (i + 1) / WARMUP for i in range(WARMUP)])
    assert found[WARMUP] == pytest.approx(RATE)
    after = [i / (STEPS - WARMUP) for i in range(STEPS - WARMUP)]
    shape = [1.0 if kind == "constant" else (1 + math.cos(math.pi * x)) / 2 for x in after]
    assert found[WARMUP:] == pytest.approx([RATE * factor for factor in shape])


def test_after_the_last_step_the_factor_is_that_of_the_last_step() -> None:
    schedule = Schedule("cosine", STEPS, WARMUP)
    assert 0 < schedule.factor(STEPS - 1) == schedule.factor(STEPS) == schedule.factor(10 * STEPS)


def test_a_constant_rate_has_no_scheduler() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)
    assert Schedule("constant", STEPS).of(optimizer) is None
    assert optimizer.param_groups[0].keys().isdisjoint({"initial_lr"})


# -- training --------------------------------------------------------------------------------


def network() -> nn.Module:
    initialise(3)
    return build_model("mlp", {"widths": [64, 8, 10], "activation": "tanh"}).double()


def trained(folder: Path, name: str, schedule: Schedule | None, **options: Any) -> Tensor:
    """The last parameters that hessdist's training leaves on the first digits."""
    model = network()
    shard = Shard(
        build_dataset("digits", None, {}),
        np.arange(SAMPLES),
        batch_size=BATCH,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    train(
        model,
        F.cross_entropy,
        shard,
        optimizer=build_optimizer(name, model, RATE, 0.0, **options),
        batch_size=BATCH,
        checkpoint_steps=[STEPS],
        seed=3,
        directory=folder,
        schedule=schedule,
    )
    (last,) = find_checkpoints(folder)
    return torch.cat([tensor.flatten() for tensor in read_state(last.path).values()])


def by_hand(make: Any, factors: list[float]) -> Tensor:
    """The same minibatches through an optimiser of torch.optim, its rate set by hand."""
    model = network()
    digits = build_dataset("digits", None, {})
    images = torch.stack([torch.as_tensor(digits[i][0]) for i in range(SAMPLES)]).double()
    labels = torch.tensor([int(digits[i][1]) for i in range(SAMPLES)])
    optimizer = make(model.parameters())
    draw = minibatches(SAMPLES, BATCH, 3)
    for factor in factors:
        chosen = next(draw)
        optimizer.param_groups[0]["lr"] = RATE * factor
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return torch.cat([tensor.detach().flatten() for tensor in model.state_dict().values()])


@pytest.mark.parametrize(
    ("options", "torchs"),
    [
        ({}, {}),
        ({"weight_decay": 0.3}, {"weight_decay": 0.3}),
        ({"betas": (0.8, 0.95), "weight_decay": 0.0}, {"betas": (0.8, 0.95), "weight_decay": 0.0}),
    ],
)
def test_adamw_is_that_of_torch(
    tmp_path: Path, options: dict[str, Any], torchs: dict[str, Any]
) -> None:
    expected = by_hand(lambda theta: torch.optim.AdamW(theta, lr=RATE, **torchs), [1.0] * STEPS)
    assert torch.equal(trained(tmp_path, "adamw", None, **options), expected)


def test_adam_takes_betas_and_no_weight_decay(tmp_path: Path) -> None:
    expected = by_hand(lambda t: torch.optim.Adam(t, lr=RATE, betas=(0.5, 0.9)), [1.0] * STEPS)
    found = trained(tmp_path, "adam", None, betas=(0.5, 0.9), weight_decay=0.3)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_warm_up_and_a_cosine_are_the_same_steps_with_rates_set_by_hand(
    tmp_path: Path, name: str
) -> None:
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    schedule = Schedule("cosine", STEPS, WARMUP)
    factors = [
        (i + 1) / WARMUP
        if i < WARMUP
        else (1 + math.cos(math.pi * (i - WARMUP) / (STEPS - WARMUP))) / 2
        for i in range(STEPS)
    ]
    expected = by_hand(lambda theta: kind(theta, lr=RATE), factors)
    torch.testing.assert_close(trained(tmp_path, name, schedule), expected, rtol=1e-12, atol=1e-14)
