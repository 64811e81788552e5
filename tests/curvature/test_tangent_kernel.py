"""The Jacobian of the outputs against torch.func, and its Gram matrices against dense G."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import Problem, Samples, conv_problem, dense
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.tangent_kernel import output_jacobian
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES
from hessdist.workload.shard import Shard


def local_loss(problem: Problem, batch_size: int) -> LocalLoss:
    count = len(problem.dataset)
    shard = Shard(
        problem.dataset, np.arange(count), batch_size=batch_size, device=torch.device("cpu"),
        dtype=torch.float64,
    )  # fmt: skip
    loss = as_summed_loss(problem.loss, problem.model.eval(), shard.head(3))
    return LocalLoss(problem.model, loss, shard, Parameters(problem.model))


def perceptron(loss: str, parametrization: str, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 3, (9,), generator=generator)
    torch.manual_seed(seed)
    return Problem(
        mlp([4, 5, 3], "tanh", True, parametrization).double(),
        LOSSES[loss],
        Samples(inputs, targets),
    )


def by_torch(problem: Problem) -> Tensor:
    """J, (N C, d), of all samples at once."""
    parameters = {name: p.detach() for name, p in problem.model.named_parameters()}
    inputs = problem.dataset.tensors[0]
    parts = jacrev(lambda p: functional_call(problem.model, p, (inputs,)))(parameters)
    outputs = len(inputs) * parts[next(iter(parts))].shape[1]
    return torch.cat([part.reshape(outputs, -1) for part in parts.values()], dim=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("parametrization", ["standard", "ntk"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_against_torch_and_the_dense_matrix(loss: str, parametrization: str, seed: int) -> None:
    problem = perceptron(loss, parametrization, seed)
    expected, matrix = by_torch(problem), dense(problem, "gauss_newton")
    for batch_size, rows in ((9, 64), (4, 5)):
        found = output_jacobian(local_loss(problem, batch_size), rows)
        assert found.jacobian.numpy() == pytest.approx(expected.numpy(), abs=1e-13)
        assert found.kernel().numpy() == pytest.approx((expected @ expected.T).numpy(), abs=1e-11)
        a = found.weighted()
        assert (a.T @ a).numpy() == pytest.approx(matrix.numpy(), abs=1e-11)


def test_a_network_with_convolutions() -> None:
    problem = conv_problem()
    found = output_jacobian(local_loss(problem, 7), 16)
    assert found.jacobian.numpy() == pytest.approx(by_torch(problem).numpy(), abs=1e-12)
    a = found.weighted()
    matrix = dense(problem, "gauss_newton").numpy()
    assert (a.T @ a).numpy() == pytest.approx(matrix, abs=1e-11)


def test_a_parameter_that_the_outputs_do_not_reach_has_zeros() -> None:
    problem = perceptron("mse", "standard", 0)
    whole = output_jacobian(local_loss(problem, 9)).jacobian
    problem.model.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    found = output_jacobian(local_loss(problem, 9)).jacobian
    idle = [name for name, _ in problem.model.named_parameters()].index("idle")
    assert idle == 0  # the parameters of a module come before those of its children
    assert (found[:, :2] == 0).all()
    assert torch.equal(found[:, 2:], whole)
