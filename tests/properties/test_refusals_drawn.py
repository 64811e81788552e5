"""Whatever network, data and dtype are drawn: a loss that is no sum is refused with its cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.drawn import CLASSES, NETWORKS, Recipe, build
from properties.test_losses_drawn import fixed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessdist
from hessdist.errors import WorkloadError

BASE = Recipe(
    network="linear",
    places=False,
    criterion="cross_entropy",
    form="module",
    reduction="mean",
    weighted=False,
    ignored="",
    whole=False,
    soft=False,
    variant=0,
    samples=12,
    batch_size=4,
    sorted=False,
    dtype="float64",
    operator="hessian",
    seed=0,
)

Summed = Callable[[nn.Module, Any], tuple[Tensor, float]]


def weighted(spread: float) -> Summed:
    """A mean by class weights that differ by a share, times the number of samples."""

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        z, y = model(batch[0]), batch[1]
        weight = (1 + spread * torch.arange(CLASSES)).to(z)
        return F.cross_entropy(z, y, weight=weight) * len(y), len(y)

    return loss


def averaged(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    return F.cross_entropy(model(batch[0]), batch[1]), len(batch[1])


def tokens(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    return F.cross_entropy(model(batch[0]), batch[1]) * len(batch[1]), len(batch[1])


def hardest(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    each = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return each.max() * len(each), len(each)


def centred(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    z = model(batch[0])
    return F.cross_entropy(z - z.mean(0), batch[1], reduction="sum"), len(z)


def miscounted(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    z, y = model(batch[0]), batch[1]
    return F.cross_entropy(z, y, reduction="sum"), len(y) ** 0.9


WRONG: dict[str, tuple[Summed, str]] = {
    "weights 1 %": (weighted(0.01), "class weights"),
    "weights 5 %": (weighted(0.05), "class weights"),
    "weights 300 %": (weighted(1.5), "class weights"),
    "mean": (averaged, "the mean over a batch"),
    "tokens": (tokens, "a mean over tokens"),
    "hardest": (hardest, "depends on the other samples|weighs a sample by the other"),
    "centred": (centred, "depends on the other samples"),
    "miscounted": (miscounted, "is no sum over samples"),
}


@st.composite
def wrong_ones(draw: st.DrawFn) -> tuple[Recipe, str]:
    kind = draw(st.sampled_from(tuple(WRONG)))
    recipe = replace(
        BASE,
        network=draw(st.sampled_from(NETWORKS)),
        places=kind == "tokens",
        ignored="-100" if kind == "tokens" else "",
        whole=draw(st.booleans()),  # some samples without any label
        samples=draw(st.integers(8, 16)),
        batch_size=draw(st.sampled_from((1, 2, 3, 5, 64))),
        dtype=draw(st.sampled_from(("float32", "float64"))),
        seed=draw(st.integers(0, 2**20)),
    )
    return recipe, kind


def check(recipe: Recipe, kind: str) -> None:
    drawn = build(recipe)
    x, y = drawn.dataset.tensors
    if kind != "tokens":  # every class is there, and they come in turns
        y = torch.arange(len(y)) % CLASSES
    loss, says = WRONG[kind]
    with pytest.raises(WorkloadError, match=says) as caught:
        hessdist.extreme_eigenpairs(
            drawn.model, loss, TensorDataset(x, y), largest=1, smallest=1,
            batch_size=recipe.batch_size, device="cpu",
        )  # fmt: skip
    assert "\n" not in str(caught.value)


@settings(fixed, max_examples=100)
@given(drawn=wrong_ones())
def test_what_is_no_sum_is_refused(drawn: tuple[Recipe, str]) -> None:
    check(*drawn)


@pytest.mark.slow
def test_thousands_of_refusals() -> None:
    @settings(fixed, derandomize=False, max_examples=3000)
    @given(drawn=wrong_ones())
    def run(drawn: tuple[Recipe, str]) -> None:
        check(*drawn)

    hypothesis.seed(torch.seed() % 2**48)(run)()
