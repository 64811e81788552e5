"""What does not depend on the parameters is refused; what is zero by its values is solved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessdist
from hessdist.curvature.dependence import depends
from hessdist.errors import HessdistError, WorkloadError
from hessdist.objective import Compute, Workload
from hessdist.parallel.ranks import Ranks

OPERATORS = ("hessian", "gauss_newton", "empirical_fisher", "residual")
INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3
DATA = TensorDataset(INPUTS, LABELS)


def plain(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), activation(), nn.Linear(3, 3))


class Cut(nn.Module):
    """A network whose outputs lose their graph in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how, self.other = plain(), how, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.net(x)
        if self.how == "inference_mode":
            with torch.inference_mode():
                return self.net(x)
        if self.how == "numpy":
            return torch.from_numpy(self.net(x).detach().numpy())
        if self.how == "data":
            return self.net(x).data
        return self.net(x).detach() if self.how == "detach" else self.net(x)


class Learned(nn.Module):
    """A criterion with a parameter of its own, which gives the loss a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs * self.scale, targets)


class Penalised:
    """A loss whose outputs have no graph, and whose penalty has one."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        self.model = model
        return model(batch[0]).detach()

    def of_outputs(self, z: Tensor, batch: Any) -> tuple[Tensor, float]:
        squares = sum(p.square().sum() for p in self.model.parameters())
        return F.cross_entropy(z, batch[1], reduction="sum") + len(z) * squares, len(z)


def constant(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    return torch.ones((), requires_grad=True) * len(batch[1]), len(batch[1])


def solved(model: nn.Module, loss: Any, operator: str, **options: Any) -> Any:
    return hessdist.exact_spectrum(model, loss, DATA, operator=operator, **options).values


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("how", ["no_grad", "numpy", "data", "detach"])
@pytest.mark.parametrize("loss", [F.cross_entropy, Learned()], ids=["plain", "learned"])
def test_outputs_without_a_graph_are_refused(operator: str, how: str, loss: Any) -> None:
    with pytest.raises(WorkloadError, match="does not depend on the parameters in use") as caught:
        solved(Cut(how), loss, operator, l2=0.1)
    assert "no_grad" in caught.value.remedy


def test_outputs_of_inference_are_refused() -> None:
    with pytest.raises(WorkloadError, match="does not depend on the parameters in use"):
        solved(Cut("inference_mode"), F.cross_entropy, "hessian")


def test_a_loss_with_a_graph_to_something_else_is_refused() -> None:
    with pytest.raises(WorkloadError, match="does not depend on the parameters in use"):
        solved(plain(), constant, "hessian")


@pytest.mark.parametrize("operator", OPERATORS)
def test_layers_that_the_loss_does_not_reach_are_refused(operator: str) -> None:
    model = Cut("nowhere")
    with pytest.raises(WorkloadError, match="does not depend on the parameters in use"):
        solved(model, F.cross_entropy, operator, layers=["other"])
    assert np.abs(solved(model, F.cross_entropy, operator)).max() > 0


@pytest.mark.parametrize("operator", ["gauss_newton", "residual"])
def test_a_matrix_of_outputs_needs_the_graph_of_the_outputs(operator: str) -> None:
    assert solved(plain(), Penalised(), "hessian") == pytest.approx(2, abs=1e-5)
    with pytest.raises(WorkloadError, match="through the model's outputs"):
        solved(plain(), Penalised(), operator)


def linear(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum(1).mean()


def dead() -> nn.Module:
    model = plain(nn.ReLU)
    with torch.no_grad():
        model[0].bias.fill_(-100)
    return model


@pytest.mark.parametrize(
    ("model", "loss", "operator", "layers"),
    [
        (nn.Linear(4, 3), linear, "hessian", []),
        (nn.Linear(4, 3), linear, "gauss_newton", []),
        (nn.Linear(4, 3), F.cross_entropy, "residual", []),
        *((dead(), F.cross_entropy, operator, ["0"]) for operator in OPERATORS),
    ],
)
def test_a_matrix_that_is_zero_by_its_values_is_solved(
    model: nn.Module, loss: Callable[..., Tensor], operator: str, layers: list[str]
) -> None:
    assert np.abs(solved(model, loss, operator, layers=layers)).max() <= 1e-7


def test_an_unused_block_of_a_model_is_zero() -> None:
    model = Cut("nowhere")
    objective = Workload(
        model, F.cross_entropy, DATA, np.arange(20), compute=Compute(dtype="float64")
    ).on(Ranks(None))
    part = objective.of_layers(["other"])
    assert not part.local_product("hessian")(torch.ones(6, dtype=torch.float64)).any()
    assert not depends(part.local, "hessian")


# -- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "what"),
    [
        (nn.CrossEntropyLoss(weight=torch.tensor([-1.0, -1, 1])), "samples sum to -"),
        (nn.CrossEntropyLoss(weight=torch.zeros(3)), "no label of any sample counts"),
        (nn.NLLLoss(weight=torch.full((3,), -2.0)), "samples sum to -40"),
    ],
)
@pytest.mark.parametrize("operator", OPERATORS)
def test_class_weights_that_sum_to_zero_or_less_are_refused(
    criterion: nn.Module, what: str, operator: str
) -> None:
    with pytest.raises(HessdistError, match=what):
        solved(plain(), criterion, operator)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("criterion", [nn.BCEWithLogitsLoss, nn.BCELoss])
def test_weights_of_entries_that_sum_to_zero_or_less_are_refused(
    criterion: type[nn.Module], weight: float
) -> None:
    data = TensorDataset(INPUTS, (torch.rand(20, 3) > 0.5).float())
    with pytest.raises(WorkloadError, match="the weights of binary_cross_entropy"):
        hessdist.exact_spectrum(plain(), criterion(weight=torch.full((3,), weight)), data)


def test_the_fisher_matrix_counts_samples_of_negative_weight() -> None:
    model, weight = plain().double(), torch.tensor([-0.5, 2, 2], dtype=torch.float64)
    matrix, total = 0.0, 0.0
    for x, y in DATA:
        loss = F.cross_entropy(model(x.double()[None]), y[None])
        pieces = torch.autograd.grad(loss, list(model.parameters()))
        gradient = torch.cat([piece.reshape(-1) for piece in pieces])
        matrix = matrix + weight[y] * gradient.outer(gradient)
        total = total + weight[y]
    expected = torch.linalg.eigvalsh(matrix / total).numpy()
    found = solved(model, nn.CrossEntropyLoss(weight=weight), "empirical_fisher")
    assert found == pytest.approx(expected, abs=1e-10)
    assert expected[0] < -0.01


# -- by a job --------------------------------------------------------------------------------

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, device="cpu"):
        super().__init__()
        self.a = nn.Linear(6, 3, device=device)
    def forward(self, x):
        return self.a(x).detach()

class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, z, y):
        return nn.functional.cross_entropy(z * self.scale, y)

class Lengths:
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        return torch.ones(6), i % 3
"""

JOB = """
training = {optimizer = "sgd", learning_rate = 0.1, steps = 1, checkpoint_steps = [0]}
loss = {factory = "made:Loss"}
checkpoints = {directory = "checkpoints"}
spectrum = {largest = 1, smallest = 1}
output = {path = "run.h5"}
[model]
factory = "made:Net"
[data]
dataset = "made:Lengths"
[data.arguments]
n = 30
"""


def test_a_job_without_a_graph_or_with_too_many_samples_ends_in_one_line(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "made.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    state = {"a.weight": torch.ones(3, 6), "a.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "checkpoints" / "step-0.pt")
    done = run("spectrum", "job.toml", ranks=2)
    huge = run("spectrum", "job.toml", "--set", f"data.arguments.n={2**62}")
    meta = run("train", "job.toml", "--set", "model.arguments.device=meta")
    for ended, reason in (
        (done, "does not depend"),
        (huge, "the memory cannot hold the indices"),
        (meta, "on the meta device"),
    ):
        assert ended.returncode == 2, ended.stderr
        lines = [line for line in ended.stderr.splitlines() if line.startswith("hessdist: ")]
        assert len(lines) == 1
        assert reason in lines[0]
        assert "Traceback" not in ended.stderr + ended.stdout
