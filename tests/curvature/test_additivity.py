"""What is no sum over samples is refused with its true cause, and what is one never is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessdist
from hessdist.errors import HessdistError, NumericalError, SymmetryError, WorkloadError

Loss = Callable[..., Any]
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def network(
    seed: int = 0, activation: Callable[[], nn.Module] = nn.Tanh, out: int = 3
) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, out))


def classes(count: int = 40, seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=g)
    return TensorDataset(x, torch.randint(0, 3, (count,), generator=g))


def values(count: int = 40, seed: int = 0, out: int = 1) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 4, generator=g), torch.randn(count, out, generator=g))


def solved(model: nn.Module, loss: Any, data: Any, **options: Any) -> Any:
    return hessdist.extreme_eigenpairs(
        model, loss, data, **{"largest": 2, "smallest": 1, "device": "cpu", **options}
    )


def refused(model: nn.Module, loss: Any, data: Any, says: str, **options: Any) -> None:
    with pytest.raises(HessdistError, match=says) as caught:
        solved(model, loss, data, **options)
    assert "\n" not in str(caught.value)


# -- what is refused -------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("batch_size", [2, 7, 64])
def test_a_mean_where_a_sum_is_asked(dtype: torch.dtype, batch_size: int) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1]), len(batch[1])

    refused(
        network().to(dtype),
        loss,
        classes(),
        "returns the mean over a batch where the sum is asked; multiply it by the number",
        batch_size=batch_size,
    )


def weighted(spread: float) -> Tensor:
    return torch.tensor([1.0, 1.0 + spread, 1.0 - spread / 2])


@both_dtypes
@pytest.mark.parametrize("spread", [0.01, 0.02, 0.3, 4.0 / 3])
@pytest.mark.parametrize("seed", range(4))
def test_class_weights_that_differ_by_one_percent(
    dtype: torch.dtype, spread: float, seed: int
) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        z, y = model(batch[0]), batch[1]
        return F.cross_entropy(z, y, weight=weighted(spread).to(z)) * len(y), len(y)

    says = "class weights"
    refused(network(seed).to(dtype), loss, classes(seed=seed), says, batch_size=16)


@both_dtypes
@pytest.mark.parametrize("order", ["sorted", "drawn"])
def test_class_weights_inside_a_criterion_of_ones_own(dtype: torch.dtype, order: str) -> None:
    data = classes(60)
    if order == "sorted":
        data = TensorDataset(data.tensors[0], data.tensors[1].sort()[0])
    for spread in (0.01, 1.0):
        weight = weighted(spread).to(dtype)
        refused(
            network().to(dtype),
            lambda z, y, weight=weight: F.cross_entropy(z, y, weight=weight),
            data,
            "class weights",
        )


class Tokens(nn.Module):
    """Outputs for each of some positions, (B, 3, T)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).transpose(1, 2)


def tokens(lengths: list[int], seed: int = 0) -> TensorDataset:
    g = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    x = torch.randn(len(lengths), longest, 4, generator=g)
    y = torch.randint(0, 3, (len(lengths), longest), generator=g)
    for row, length in enumerate(lengths):
        y[row, length:] = -100
    return TensorDataset(x, y)


@both_dtypes
@pytest.mark.parametrize("longest", [3, 100])
def test_a_mean_over_tokens_times_the_number(dtype: torch.dtype, longest: int) -> None:
    """Lengths that differ by one position: by 1 % where there are a hundred."""

    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1]) * len(batch[1]), len(batch[1])

    data = tokens([longest - i % 2 for i in range(24)])
    refused(Tokens().to(dtype), loss, data, "mean over tokens.*times the number", batch_size=8)


@both_dtypes
def test_a_mean_over_tokens(dtype: torch.dtype) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1]), int((batch[1] >= 0).sum())

    refused(Tokens().to(dtype), loss, tokens([1, 4, 2, 3] * 6), "mean over the tokens")


@both_dtypes
@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_sample_without_any_label(dtype: torch.dtype, place: int) -> None:
    """Its mean is 0 / 0, which a batch hides."""

    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1]) * len(batch[1]), len(batch[1])

    lengths = [4] * 12
    lengths[place] = 0
    data = tokens(lengths)
    refused(Tokens().to(dtype), loss, data, "mean over tokens", batch_size=64)
    says = "labels that count|ignored labels|a mean over (the )?tokens"
    refused(Tokens().to(dtype), lambda z, y: F.cross_entropy(z, y), data, says, batch_size=64)
    found = solved(Tokens().to(dtype), F.cross_entropy, data, batch_size=5)
    assert found.weight == 44


@both_dtypes
@pytest.mark.parametrize(
    "weight",
    [lambda y: 1.0, lambda y: len(y) + 1, lambda y: len(y) ** 0.5, lambda y: float(y.max() + 1)],
)
def test_a_weight_that_is_no_sum(dtype: torch.dtype, weight: Any) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), weight(batch[1])

    refused(network().to(dtype), loss, classes(), "the weight that the loss returns is no sum")


class Normed(nn.Module):
    def __init__(self, training: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("variance", torch.ones(5))
        self.functional = training

    def forward(self, x: Tensor) -> Tensor:
        h = F.batch_norm(self.a(x), self.mean, self.variance, training=self.functional)
        return self.b(torch.tanh(h))


@both_dtypes
def test_batch_norm_in_training_mode(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))

    def loss(model: nn.Module, batch: Any) -> Any:
        model.train()
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    refused(model.to(dtype), loss, classes(), r"batch norm is in training mode \(1\); call eval")
    untracked = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False))
    refused(untracked.to(dtype), F.cross_entropy, classes(), "no running statistics")


@both_dtypes
def test_functional_batch_norm_with_the_statistics_of_the_batch(dtype: torch.dtype) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        says = "depends on the other samples|Expected more than 1 value per channel"
        refused(Normed(True).to(dtype), F.cross_entropy, classes(seed=seed), says)


@both_dtypes
@pytest.mark.parametrize("kind", ["shifted", "all", "mean", "squared", "maximum", "ranked"])
def test_samples_that_see_each_other(dtype: torch.dtype, kind: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        z = F.normalize(model(batch[0]), dim=1)
        n = len(z)
        if kind == "shifted":
            logits = z @ z.roll(1, 0).T * 3
            return F.cross_entropy(logits, torch.arange(n), reduction="sum"), n
        if kind == "all":
            return (z @ z.T).square().sum(), n
        if kind == "mean":
            return (z - z.mean(0)).square().sum(), n
        if kind == "squared":
            return F.cross_entropy(z, batch[1], reduction="sum") ** 2, n
        if kind == "maximum":
            return F.cross_entropy(z, batch[1], reduction="none").max() * n, n
        return (z[:, 0].sort()[0] * torch.arange(1, n + 1)).sum(), n

    for seed in range(2):
        model = network(seed).to(dtype)
        refused(model, loss, classes(seed=seed), "depends on the other samples", batch_size=64)


@both_dtypes
@pytest.mark.parametrize(
    "criterion", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.BCEWithLogitsLoss()]
)
@pytest.mark.parametrize("constant", [False, True])
def test_outputs_that_are_broadcast_against_targets(
    dtype: torch.dtype, criterion: Any, constant: bool
) -> None:
    x, t = values().tensors
    t = t[:, 0].sigmoid()
    if constant:  # of the first samples each is compared with an equal one
        t[:5] = 0.5
    says = r"\(B, 1\) and targets of \(B,\).*targets\[:, None\]"
    refused(network(out=1).to(dtype), criterion, TensorDataset(x, t), says)


@both_dtypes
@pytest.mark.parametrize("constant", [False, True])
def test_a_criterion_of_ones_own_that_broadcasts(dtype: torch.dtype, constant: bool) -> None:
    x, t = values().tensors
    t = t[:, 0]
    if constant:
        t[:3] = 0.5
    for criterion in (lambda z, y: ((z - y) ** 2).mean(), lambda z, y: (z - y).square().sum()):
        refused(network(out=1).to(dtype), criterion, TensorDataset(x, t), "broadcast")


class Noisy(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = network(), kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "dropout":
            return F.dropout(self.net(x), 0.3, training=True)
        if self.kind == "normal":
            return self.net(x + 1e-2 * torch.randn_like(x))
        if self.kind == "choice":
            return self.net(x[:, torch.randperm(4)])
        if self.kind == "changes":
            with torch.no_grad():
                self.net[0].weight.mul_(1.0001)
            return self.net(x)
        if self.kind == "data":
            self.net[0].weight.data.mul_(1.001)
            return self.net(x)
        return self.net(x.add_(0.1))


@both_dtypes
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("dropout", r"draws at random \(dropout"),
        ("normal", r"draws at random \(dropout, sampling\)"),
        ("choice", "draws at random"),
        ("changes", "changes its parameter net.0.weight when it is evaluated"),
        ("data", "changes its parameter|two passes over the same samples differ"),
        ("inputs", "changes its inputs in place; clone them"),
    ],
)
@pytest.mark.parametrize("form", ["criterion", "model_batch"])
def test_passes_that_differ(dtype: torch.dtype, kind: str, says: str, form: str) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    given = F.cross_entropy if form == "criterion" else loss
    refused(Noisy(kind).to(dtype), given, classes(), says)


# -- no false alarm --------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12])
def test_losses_of_any_size(dtype: torch.dtype, scale: float) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        value = F.cross_entropy(model(batch[0]), batch[1], reduction="sum")
        return value * scale, len(batch[1])

    found = solved(network().to(dtype), loss, classes(), batch_size=16)
    right = solved(network().to(dtype), F.cross_entropy, classes())
    assert found.loss == pytest.approx(scale * right.loss, rel=1e-5)
    assert found.eigenvalues_largest == pytest.approx(scale * right.eigenvalues_largest, rel=1e-3)


@both_dtypes
@pytest.mark.parametrize("empty", [1, 3, 10, 30])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_first_samples_have_no_loss(dtype: torch.dtype, empty: int, reduction: str) -> None:
    x, y = classes(40).tensors
    y[:empty] = -1

    def criterion(z: Tensor, t: Tensor) -> Tensor:
        each = F.cross_entropy(z, t.clamp(min=0), reduction="none") * (t >= 0)
        return each.sum() if reduction == "sum" else each.mean()

    found = solved(network().to(dtype), criterion, TensorDataset(x, y))
    z = network()(x).double()
    right = F.cross_entropy(z, y, ignore_index=-1, reduction="sum") / 40
    assert found.loss == pytest.approx(float(right.detach()), rel=1e-5)


@both_dtypes
@pytest.mark.parametrize("place", [0, 17, 39])
def test_what_is_not_finite_is_said_to_be_that(dtype: torch.dtype, place: int) -> None:
    x, y = classes().tensors
    x[place] = math.nan

    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])

    for given in (F.cross_entropy, nn.CrossEntropyLoss(), loss):
        with pytest.raises(NumericalError, match="not finite"):
            solved(network().to(dtype), given, TensorDataset(x, y), batch_size=8)


def padded(samples: list[Any]) -> Any:
    longest = max(len(x) for x, _ in samples)
    rows = [F.pad(x, (0, 0, 0, longest - len(x))) for x, _ in samples]
    lengths = torch.tensor([len(x) for x, _ in samples])
    return torch.stack(rows), lengths, torch.stack([y for _, y in samples])


def ragged(count: int = 23, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(1 + (5 * i) % 7, 4, generator=g), torch.tensor(i % 3)) for i in range(count)
    ]


def of_ragged(model: nn.Module, batch: Any) -> Any:
    x, lengths, y = batch
    mask = (torch.arange(x.shape[1])[None] < lengths[:, None]).to(x)
    z = (model(x) * mask[..., None]).sum(1) / lengths[:, None]
    return F.cross_entropy(z, y, reduction="sum"), len(y)


@both_dtypes
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_ragged_batches_that_are_padded(dtype: torch.dtype, batch_size: int) -> None:
    model, data = network().to(dtype), ragged()
    found = solved(model, of_ragged, data, batch_size=batch_size, collate=padded)
    right = torch.stack([
        F.cross_entropy(model(x.to(dtype)).mean(0)[None], y[None]) for x, y in data
    ]).mean()
    assert found.loss == pytest.approx(float(right.detach()), rel=1e-5)


@both_dtypes
def test_samples_that_make_no_batch_are_taken_one_at_a_time(dtype: torch.dtype) -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]).mean(1), batch[1], reduction="sum"), len(batch[1])

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).mean(1)

    data = ragged()
    found = solved(network().to(dtype), loss, data, batch_size=1)
    twin = solved(Mean().to(dtype), F.cross_entropy, data, batch_size=1)
    summed = solved(Mean().to(dtype), lambda z, y: F.cross_entropy(z, y), data, batch_size=1)
    for other in (twin, summed):
        assert other.eigenvalues_largest == pytest.approx(found.eigenvalues_largest, rel=1e-3)
    refused(network().to(dtype), loss, data, "stack|shape", batch_size=4)


@both_dtypes
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_few_samples(dtype: torch.dtype, count: int, batch_size: int) -> None:
    data, model = classes(count), network().to(dtype)
    for reduction in ("sum", "mean", "none"):
        found = solved(
            model,
            lambda z, y, reduction=reduction: F.cross_entropy(z, y, reduction=reduction),
            data,
            batch_size=batch_size,
        )
        right = F.cross_entropy(model(data.tensors[0].to(dtype)), data.tensors[1])
        assert found.loss == pytest.approx(float(right.detach()), rel=1e-5)
        assert found.weight == count


@both_dtypes
@pytest.mark.parametrize("exponent", [-12, -6, 4])
def test_huge_and_tiny_parameters(dtype: torch.dtype, exponent: int) -> None:
    model = network().to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(10.0**exponent)
        model[0].bias.mul_(10.0**exponent)
    found = solved(model, F.cross_entropy, classes())
    right = F.cross_entropy(model(classes().tensors[0].to(dtype)), classes().tensors[1])
    assert found.loss == pytest.approx(float(right.detach()), rel=1e-4)


class Routed(nn.Module):
    """A mixture of experts: the best one of each sample, by its gate."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(1)
        best, chosen = shares.max(1)
        out = x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(x[rows]) * best[rows, None])
        return out


@both_dtypes
@pytest.mark.parametrize("seed", range(3))
def test_routing_of_single_samples_is_additive(dtype: torch.dtype, seed: int) -> None:
    solved(Routed(seed).to(dtype), F.cross_entropy, classes(seed=seed), batch_size=7)


class Inner(nn.Module):
    """Computes in single precision inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        z = self.net[0](x).float()
        return self.net[2](torch.tanh(z).to(x.dtype))


@pytest.mark.parametrize("seed", range(3))
def test_single_precision_inside_a_model_of_double(seed: int) -> None:
    torch.manual_seed(seed)
    solved(Inner().double(), F.cross_entropy, classes(seed=seed))


@both_dtypes
def test_dropout_in_evaluation_mode_is_none(dtype: torch.dtype) -> None:
    model = nn.Sequential(network(), nn.Dropout(0.5))
    solved(model.train().to(dtype), F.cross_entropy, classes())
    assert model.training


@both_dtypes
@pytest.mark.parametrize("seed", range(4))
def test_networks_trained_to_the_end(dtype: torch.dtype, seed: int) -> None:
    x, _ = classes(seed=seed).tensors
    y = (x[:, 0] > 0).long()
    model = network(seed).double()
    steps = torch.optim.LBFGS(
        model.parameters(), max_iter=400, tolerance_grad=1e-14, tolerance_change=1e-16
    )

    def closure() -> Tensor:
        steps.zero_grad()
        value = F.cross_entropy(model(x.double()), y)
        value.backward()
        return value

    steps.step(closure)  # type: ignore[arg-type]
    data = TensorDataset(x, y)
    for given in (F.cross_entropy, lambda z, t: F.cross_entropy(z, t)):
        try:
            found = solved(model.to(dtype), given, data)
        except SymmetryError as error:
            if dtype == torch.float64 or "float64" not in str(error):
                raise
            continue  # a Hessian of nothing but rounding, and so it is said
        right = F.cross_entropy(model.double()(x.double()), y)
        # What is left of a loss in single precision is its rounding.
        assert found.loss == pytest.approx(float(right.detach()), rel=1e-3, abs=1e-7)


def test_the_cause_of_an_error_is_a_workload_s() -> None:
    def loss(model: nn.Module, batch: Any) -> Any:
        return F.cross_entropy(model(batch[0]), batch[1]), len(batch[1])

    with pytest.raises(WorkloadError):
        solved(network(), loss, classes())
