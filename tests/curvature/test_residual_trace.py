"""tr S in closed form against the trace of the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import Problem, Samples, dense
from torch import nn

from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.residual_trace import residual_trace
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES
from hessdist.workload.shard import Shard


def problem(model: nn.Module, loss: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 2, 3, generator=generator, dtype=torch.float64)  # to be flattened
    labels = torch.randint(0, 3, (7,), generator=generator)
    return Problem(model.double(), LOSSES[loss], Samples(inputs, labels))


def closed(given: Problem) -> float | None:
    shard = Shard(
        given.dataset, np.arange(7), batch_size=4, device=torch.device("cpu"), dtype=torch.float64
    )
    loss = as_summed_loss(given.loss, given.model, shard.head(3))
    return residual_trace(LocalLoss(given.model, loss, shard, Parameters(given.model)))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("activation", ["tanh", "softplus"])
def test_against_the_dense_matrix(
    activation: str, parametrization: str, bias: bool, loss: str
) -> None:
    torch.manual_seed(1)
    given = problem(mlp([6, 4, 3], activation, bias, parametrization), loss)
    found, expected = closed(given), float(dense(given, "residual").trace())
    assert abs(expected) > 1e-2
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_a_piecewise_linear_network_has_none(activation: str) -> None:
    torch.manual_seed(1)
    given = problem(mlp([6, 4, 3], activation), "cross_entropy")
    assert closed(given) == 0
    assert float(dense(given, "residual").trace()) == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("widths", [[6, 3], [6, 4, 4, 3]])
def test_another_depth_has_no_closed_form(widths: list[int]) -> None:
    assert closed(problem(mlp(widths, "tanh"), "cross_entropy")) is None
