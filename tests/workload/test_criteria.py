"""PyTorch's criteria are known for what they are: what they sum, and what they divide it by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hessdist.errors import DataError
from hessdist.workload.criteria import ClassLabels, known
from hessdist.workload.losses import CriterionLoss, as_summed_loss

CPU = torch.device("cpu")


def taken(criterion: Any, dtype: torch.dtype = torch.float64) -> CriterionLoss:
    found = known(criterion, CPU, dtype)
    assert found is not None
    return CriterionLoss(
        found.criterion, found.reduction, found.labels, found.over_labels, found.name
    )


def parts(loss: CriterionLoss, z: Tensor, y: Tensor, sizes: list[int]) -> tuple[float, float]:
    """Σ s and Σ w over batches of some sizes."""
    total, weight, begin = 0.0, 0.0, 0
    for size in sizes:
        rows = slice(begin, begin + size)
        total += float(loss.total(z[rows], y[rows]))
        weight += loss.weight(y[rows])
        begin += size
    return total, weight


@st.composite
def cuts(draw: st.DrawFn, count: int) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < count:
        sizes.append(draw(st.integers(1, count - sum(sizes))))
    return sizes


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(
    sizes=cuts(11),
    seed=st.integers(0, 1000),
    places=st.sampled_from([(), (1,), (3,), (2, 2)]),
    kind=st.sampled_from(["cross_entropy", "nll"]),
    weighted=st.booleans(),
    ignored=st.sampled_from([-100, -1, 0, 2, 255]),
    smoothing=st.sampled_from([0.0, 0.2]),
    form=st.sampled_from(["module", "partial", "nested"]),
    kind_of_label=st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8]),
)
def test_the_mean_over_all_is_pytorch_s_whatever_the_batches(
    sizes: list[int],
    seed: int,
    places: tuple[int, ...],
    kind: str,
    weighted: bool,
    ignored: int,
    smoothing: float,
    form: str,
    kind_of_label: torch.dtype,
) -> None:
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(11, 4, *places, generator=g, dtype=torch.float64).log_softmax(1)
    y = torch.randint(0, 4, (11, *places), generator=g)
    void = ignored % 256 if kind_of_label == torch.uint8 else ignored
    y[torch.rand(y.shape, generator=g) < 0.3] = void
    y.view(-1)[0] = 1
    options: dict[str, Any] = {"ignore_index": void}
    if weighted:
        options["weight"] = torch.tensor([0.1, 1.0, 2.0, 7.0])
    if kind == "cross_entropy":
        options["label_smoothing"] = smoothing
    function = F.cross_entropy if kind == "cross_entropy" else F.nll_loss
    module: Any = nn.CrossEntropyLoss if kind == "cross_entropy" else nn.NLLLoss
    loss: Any = module(**options)
    if form == "partial":
        loss = functools.partial(function, **options)
    elif form == "nested":
        loss = functools.partial(functools.partial(function, reduction="sum"), **options)
        loss = functools.partial(loss, reduction="mean")
    total, weight = parts(taken(loss), z, y.to(kind_of_label), sizes)
    if weighted:
        options["weight"] = options["weight"].double()
    assert total / weight == pytest.approx(float(function(z, y, **options)), rel=1e-9)


ELEMENTS: list[tuple[Any, Callable[..., Tensor], dict[str, Any]]] = [
    (nn.MSELoss, F.mse_loss, {}),
    (nn.L1Loss, F.l1_loss, {}),
    (nn.SmoothL1Loss, F.smooth_l1_loss, {"beta": 0.3}),
    (nn.HuberLoss, F.huber_loss, {"delta": 0.7}),
    (nn.BCELoss, F.binary_cross_entropy, {"weight": torch.tensor([1.0, 2.0, 0.5])}),
    (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, {
        "weight": torch.tensor([1.0, 2.0, 0.5]), "pos_weight": torch.tensor([3.0, 1.0, 0.2]),
    }),
    (nn.PoissonNLLLoss, F.poisson_nll_loss, {"log_input": False, "full": True, "eps": 1e-3}),
    (nn.KLDivLoss, F.kl_div, {"log_target": False}),
    (nn.KLDivLoss, F.kl_div, {"log_target": True}),
    (nn.SoftMarginLoss, F.soft_margin_loss, {}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize(("module", "function", "options"), ELEMENTS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
@pytest.mark.parametrize("form", ["module", "partial"])
@pytest.mark.parametrize("sizes", [[7], [1] * 7, [2, 4, 1]])
def test_criteria_of_entries(
    module: Any, function: Any, options: dict[str, Any], reduction: str, form: str, sizes: list[int]
) -> None:
    if reduction == "batchmean" and module is not nn.KLDivLoss:
        return
    g = torch.Generator().manual_seed(0)
    z = torch.rand(7, 3, generator=g, dtype=torch.float64) * 0.9 + 0.05
    y = torch.rand(7, 3, generator=g, dtype=torch.float64) * 0.9 + 0.05
    given_options = {**options, "reduction": reduction}
    loss = (
        module(**given_options)
        if form == "module"
        else functools.partial(function, **given_options)
    )
    total, weight = parts(taken(loss), z, y, sizes)
    moved = {k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()}
    if reduction == "sum":
        right = function(z, y, **moved, reduction="sum") / 7
    else:
        stated = "mean" if reduction == "none" else reduction
        right = function(z, y, **moved, reduction=stated)
    assert total / weight == pytest.approx(float(right), rel=1e-12)
    assert weight == 7


def test_the_weights_of_a_criterion_follow_dtype_and_device_and_the_user_s_stays() -> None:
    given_weight = torch.tensor([1.0, 2.0, 3.0])
    for criterion in (
        nn.CrossEntropyLoss(weight=given_weight),
        functools.partial(F.cross_entropy, weight=given_weight),
        nn.BCEWithLogitsLoss(pos_weight=given_weight),
        nn.MultiMarginLoss(weight=given_weight),
    ):
        for dtype in (torch.float32, torch.float64):
            model = nn.Linear(2, 3).to(dtype)
            x = torch.randn(3, 2, dtype=dtype)
            y: Tensor = torch.tensor([0, 2, 1])
            if isinstance(criterion, nn.BCEWithLogitsLoss):
                y = F.one_hot(y, 3).to(dtype)
            loss = as_summed_loss(criterion, model, [x, y])
            value, _ = loss(model, (x, y))
            assert value.dtype == dtype
    assert given_weight.dtype == torch.float32
    assert criterion.weight.dtype == torch.float32


class Halved(nn.CrossEntropyLoss):
    def forward(self, *given: Tensor) -> Tensor:
        return super().forward(*given) / 2


class Renamed(nn.CrossEntropyLoss):
    pass


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (nn.CrossEntropyLoss(), "cross_entropy"),
        (Renamed(ignore_index=3), "cross_entropy"),
        (functools.partial(functools.partial(F.nll_loss)), "nll_loss"),
        (functools.partial(nn.CrossEntropyLoss()), "cross_entropy"),
        (F.mse_loss, "mse_loss"),
        (Halved(), None),
        (lambda z, y: F.cross_entropy(z, y), None),
        (nn.MultiMarginLoss(), None),
        (functools.partial(F.cross_entropy, torch.zeros(2, 3)), None),
        (max, None),
    ],
)
def test_what_is_known(criterion: Any, expected: str | None) -> None:
    found = known(criterion, CPU, torch.float64)
    assert (found and found.name) == expected


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_losses_and_weights_of_samples_add_up(reduction: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (6, 4), generator=g)
    y[1], y[3, 1:] = -100, -100
    weight = torch.tensor([0.5, 1.0, 4.0])
    model = nn.Sequential(nn.Linear(5, 12), nn.Unflatten(1, (3, 4))).double()
    loss = taken(nn.CrossEntropyLoss(weight=weight, reduction=reduction))
    values, weights = loss.of_each_sample(model, (x, y))
    total, whole = loss(model, (x, y))
    torch.testing.assert_close(values.sum(), total)
    assert float(weights.sum()) == pytest.approx(whole)
    assert float(weights[1]) == (1.0 if reduction == "sum" else 0.0)


@pytest.mark.parametrize("ignored", [-100, 255, 7])
def test_labels_that_do_not_count_are_in_range(ignored: int) -> None:
    labels = ClassLabels(None, ignored)
    z = torch.zeros(4, 3, 2)
    y = torch.tensor([[0, ignored], [ignored, ignored], [2, 1], [ignored, 0]])
    labels.check(z, y)
    labels.check(z, torch.full((4, 2), ignored))
    assert labels.of_each_sample(y).tolist() == [1, 0, 2, 1]
    y[2, 0] = 3
    with pytest.raises(DataError, match=r"labels are 0 \.\.\. 3, but .* outputs 0 \.\.\. 2"):
        labels.check(z, y)


@pytest.mark.parametrize("shape", [(4, 2, 2), (4,)])
def test_labels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="class labels are of shape"):
        ClassLabels().check(torch.zeros(4, 3, 2), torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("shapes", [((5, 1), (5,)), ((5,), (5, 1)), ((5, 3), (5,)), ((5,), (5, 5))])
def test_outputs_and_targets_are_never_broadcast(shapes: Any) -> None:
    z, y = (torch.rand(shape) for shape in shapes)
    for criterion in (nn.MSELoss(), F.l1_loss, nn.BCEWithLogitsLoss()):
        with pytest.raises(DataError, match="compare every output with every target"):
            taken(criterion, torch.float32).total(z, y)
