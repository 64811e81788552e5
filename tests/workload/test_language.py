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
    Small,
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
from hessdist.workload.tokens import sequences

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


@pytest.mark.parametrize(("chunk", "batch_size"), [(3, 2), (0, 5)])
@pytest.mark.parametrize("mean", ["tokens", "sequences"])
@pytest.mark.parametrize(
    ("name", "lengths"),
    [(name, PADDED) for name in MODELS] + [(name, PACKED) for name in ("gpt2", "llama", "mixtral")],
)
def test_products_are_those_of_the_dense_matrices(
    name: str, lengths: tuple[int, ...], mean: Any, chunk: int, batch_size: int
) -> None:
    model, dataset, exact = problem(name, lengths, mean)
    make = causal_lm if MODELS[name][2] else masked_lm
    for fisher in ("tokens", "sequences"):
        local = local_loss(model, make(mean, -100, chunk, fisher), dataset, batch_size)
        assert error(local, "empirical_fisher", exact[fisher]) <= 1e-10
    for operator in ("hessian", "gauss_newton"):
        assert error(local, operator, exact[operator]) <= 1e-10
    z = local.loss.outputs(model, next(local.shard.batches())[1])
    assert set(z) & {"weight", "logits"} == {"weight" if chunk else "logits"}


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "bert"])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_the_batch_size_does_not_matter(name: str, batch_size: int) -> None:
    model, dataset, exact = problem(name, PADDED, "tokens")
    make = causal_lm if MODELS[name][2] else masked_lm
    for chunk in (None, 3, 1):
        local = local_loss(model, make(chunk_tokens=chunk), dataset, batch_size)
        assert error(local, "residual", exact["residual"]) <= 1e-10


@pytest.mark.parametrize("name", ["gpt2", "gpt2-untied", "bert"])
@pytest.mark.parametrize("chunk", [3, 100, 0])
def test_a_frozen_output_matrix(name: str, chunk: int) -> None:
    make, _, shift = MODELS[name]
    model = make()
    _, dataset, exact = problem(name, PADDED, "sequences")
    frozen = model.get_output_embeddings().weight
    free = torch.cat([torch.full_like(p, p is not frozen).reshape(-1) for p in model.parameters()])
    frozen.requires_grad_(False)
    rows = free.nonzero()[:, 0]
    loss = (causal_lm if shift else masked_lm)("sequences", -100, chunk, "sequences")
    local = local_loss(model, loss, dataset, 2)
    for operator in ("hessian", "gauss_newton", "empirical_fisher"):
        matrix = exact["sequences" if operator == "empirical_fisher" else operator]
        assert error(local, operator, matrix[rows][:, rows]) <= 1e-10


# -- other forms of models and samples -------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "scale", "chunked"), [(None, 1.0, True), (30.0, 1.0, False), (None, 1.001, False)]
)
def test_logits_are_whole_where_the_output_layer_is_not_the_last_step(
    cap: float | None, scale: float, chunked: bool
) -> None:
    model, ids = Small(cap, scale).double(), random_sequences(PACKED)
    exact = Dense(model, causal(ids), lambda m, one: m(one[None])[0]).matrices()
    pairs = [(one, one) for one in ids]
    for dataset in (ids, pairs, [{"tokens": one} for one in ids]):
        local = local_loss(model, causal_lm(chunk_tokens=3), dataset, 2)
        for operator in ("hessian", "gauss_newton"):
            assert error(local, operator, exact[operator]) <= 1e-10
        assert ("weight" in local.loss.outputs(model, local.shard.head(2))) == chunked


def test_a_loss_serves_models_of_one_class_with_different_last_steps() -> None:
    loss, ids = causal_lm(chunk_tokens=3), random_sequences(PACKED)
    values = [
        float(local_loss(model, loss, ids, 5).loss_and_gradient().loss)
        for model in (Small().double(), Small(cap=0.5).double())
    ]
    capped = causal_lm(chunk_tokens=0)
    whole = local_loss(Small(cap=0.5).double(), capped, ids, 5).loss_and_gradient().loss
    assert values[1] == pytest.approx(whole, rel=1e-12)
    assert values[0] != pytest.approx(whole, rel=1e-3)


def test_the_public_call_gives_the_pairs_of_the_dense_matrix() -> None:
    model, dataset, exact = problem("llama", PADDED, "tokens")
    count = sum(length - 1 for length in PADDED)
    for operator in ("hessian", "empirical_fisher"):
        matrix = exact["hessian" if operator == "hessian" else "tokens"].numpy() / count
        right = np.linalg.eigvalsh(matrix)
        found = hessdist.extreme_eigenpairs(
            model,
            hessdist.losses.causal_lm(fisher="tokens"),
            dataset,
            largest=3,
            smallest=2 if operator == "hessian" else 0,
            tolerance=1e-8,
            operator=operator,  # type: ignore[arg-type]
            batch_size=2,
        )
        assert found.converged
        assert found.weight == count
        assert found.eigenvalues_largest == pytest.approx(right[::-1][:3], rel=1e-9)
        assert found.eigenvalues_smallest == pytest.approx(right[: len(found.eigenvalues_smallest)])


def test_a_float32_model_is_close() -> None:
    _, dataset, exact = problem("llama", PADDED, "tokens")
    single = llama().float()
    found = hessdist.extreme_eigenpairs(single, causal_lm(), dataset, largest=2, smallest=1)
    right = torch.linalg.eigvalsh(exact["hessian"]).numpy()[::-1][:2]
    assert found.eigenvalues_largest * found.weight == pytest.approx(right, rel=1e-4)


# -- refusals --------------------------------------------------------------------------------


def refusal(model: nn.Module, loss: Any, dataset: Any) -> str:
    with pytest.raises(HessdistError) as caught:
        hessdist.extreme_eigenpairs(model, loss, dataset, largest=2, smallest=1)
    line = str(caught.value)
    assert line.isprintable()
    assert caught.value.remedy
    return line


def test_refusals() -> None:
    ids = random_sequences(PACKED)
    assert "labels are 0 ... 9, but the model has outputs 0 ... 6" in refusal(
        gpt2(), causal_lm(), [{"input_ids": one, "labels": torch.tensor([0, 1, 2, 0, 9])}
                              for one in ids]
    )  # fmt: skip
    assert "a sequence has 9 tokens, but the model has 8 positions" in refusal(
        gpt2(), causal_lm(), random_sequences([9] * 4)
    )
    assert "tokens are 0 ... 7, but the model knows 0 ... 6" in refusal(
        gpt2(), causal_lm(), [torch.tensor([0, 3, 7])] * 4
    )
    none = [{"input_ids": one, "labels": torch.full((5,), -100)} for one in ids]
    assert "no label of any sample counts" in refusal(gpt2(), causal_lm(), none)
    assert "no labels" in refusal(bert(), masked_lm(), [{"input_ids": one} for one in ids])
    assert "but no input_ids" in refusal(gpt2(), causal_lm(), [{"words": one} for one in ids])
    assert "labels are (5,)" in refusal(
        gpt2(), causal_lm(), [{"input_ids": one, "labels": 1} for one in ids]
    )
    assert "the model gives" in refusal(
        nn.Sequential(nn.Embedding(7, 4), nn.Flatten()), causal_lm(), ids
    )


def test_experts_by_a_fused_kernel_are_refused_in_float64() -> None:
    model = mixtral()
    model.set_experts_implementation("grouped_mm")  # type: ignore[operator]
    line = refusal(model, causal_lm(), random_sequences(PACKED))
    assert "experts_implementation='eager'" in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"mean": "words"}, "mean is 'words'"),
        ({"fisher": "batches"}, "fisher is 'batches'"),
        ({"chunk_tokens": -1}, "chunk_tokens is -1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(HessdistError, match=line):
        causal_lm(**arguments)
