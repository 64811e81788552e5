"""Losses over tokens: H, G, S and F of tiny transformers against dense matrices."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from language_models import (
    Dense,
    Sequences,
    bert,
    by_hand,
    causal,
    gpt2,
    llama,
    mixtral,
    of_model,
    random_sequences,
)
from torch import Tensor, nn

import hessdist
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.errors import HessdistError
from hessdist.losses import causal_lm, masked_lm
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.shard import Shard
from hessdist.workload.tokens import TokenDataset, sequences

pytest.importorskip("transformers")

PACKED, PADDED = (5, 5, 5, 5, 5), (5, 3, 6, 2, 4)
MODELS: dict[str, Any] = {
    "gpt2": (gpt2, of_model, True),
    "gpt2-untied": (lambda: gpt2(tied=False), of_model, True),
    "llama": (llama, by_hand, True),
    "mixtral": (lambda: mixtral(tied=True), by_hand, True),
    "bert": (bert, of_model, False),
    "bert-untied": (lambda: bert(tied=False), of_model, False),
}


class Labelled:
    """Samples with labels of their own, padded to one length."""

    def __init__(self, data: Sequences) -> None:
        def pad(rows: Any, value: int) -> Tensor:
            return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)

        self.ids, self.labels = pad(data.ids, 0), pad(data.labels, -100)
        self.mask = pad([torch.ones_like(row) for row in data.ids], 0)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i]}


def masked(ids: list[Tensor]) -> Sequences:
    """Some places are predicted; in the last sequence none is."""
    labels = [torch.full_like(row, -100) for row in ids]
    for row, label in zip(ids[:-1], labels, strict=False):
        label[::2] = row[::2].flip(0)
    return Sequences(ids, labels)


@cache
def problem(name: str, lengths: tuple[int, ...], mean: str) -> tuple[Any, Any, dict[str, Tensor]]:
    make, logits, shift = MODELS[name]
    model, ids = make(), random_sequences(lengths)
    data = causal(ids) if shift else masked(ids)
    dataset: Any = Labelled(data)
    if shift:
        dataset = sequences([one.numpy() for one in ids], 6, packed=False)
    return model, dataset, Dense(model, data, logits, mean).matrices()


def local_loss(model: nn.Module, loss: Any, dataset: Any, batch_size: int) -> LocalLoss:
    shard = Shard(
        dataset,
        np.arange(len(dataset)),
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=torch.float64,
    )
    summed = as_summed_loss(loss, model, shard.head(3))
    return LocalLoss(model, summed, shard, Parameters(model, ()))


def error(local: LocalLoss, operator: str, expected: Tensor) -> float:
    """The relative error of products with random vectors."""
    product = LocalProduct(local, operator, 1e9)
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(2, product.size, generator=generator, dtype=torch.float64)
    right = v @ expected
    return float((product.of_block(v) - right).norm() / right.norm())


@pytest.mark.parametrize(("chunk", "batch_size"), [(3, 2), (0, 2), (3, 1), (None, 5)])
@pytest.mark.parametrize("mean", ["tokens", "sequences"])
@pytest.mark.parametrize("lengths", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_dense_matrices(
    name: str, lengths: tuple[int, ...], mean: Any, chunk: int | None, batch_size: int
) -> None:
    model, dataset, exact = problem(name, lengths, mean)
    make = causal_lm if MODELS[name][2] else masked_lm
    for fisher in ("tokens", "sequences"):
        local = local_loss(model, make(mean, -100, chunk, fisher), dataset, batch_size)
        assert error(local, "empirical_fisher", exact[fisher]) <= 1e-10
    for operator in ("hessian", "gauss_newton", "residual"):
        assert error(local, operator, exact[operator]) <= 1e-10
