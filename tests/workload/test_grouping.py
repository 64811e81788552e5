"""Batches by tokens: every sequence once, little padding, and the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Subset

import hessdist
from hessdist.losses import causal_lm
from hessdist.workload.grouping import by_tokens, lengths_of
from hessdist.workload.shard import Shard
from hessdist.workload.tokens import TokenDataset, sequences


class Bigrams(nn.Module):
    """Predicts the next token from the present one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.lm_head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map (B, T) to logits (B, T, 7)."""
        logits: Tensor = self.lm_head(torch.tanh(self.embedding(input_ids)))
        return logits


@pytest.fixture
def documents() -> TokenDataset:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 12, 30)
    return sequences([rng.integers(0, 7, size) for size in sizes], length=9, packed=False)


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=80), st.integers(1, 100), st.integers(1, 9)
)
def test_every_sequence_is_in_one_batch_that_fits(
    lengths: list[int], tokens: int, most: int
) -> None:
    sizes = np.array(lengths)
    groups = by_tokens(np.arange(len(sizes)) + 5, sizes, tokens, most)
    assert sorted(i for group in groups for i in group) == list(range(5, 5 + len(sizes)))
    for group in groups:
        longest = max(sizes[i - 5] for i in group)
        assert len(group) <= most
        assert len(group) == 1 or len(group) * longest <= tokens


def test_lengths_of_a_part_of_a_data_set(documents: TokenDataset) -> None:
    part = Subset(documents, [3, 1, 4])
    assert lengths_of(part).tolist() == documents.lengths[[3, 1, 4]].tolist()  # type: ignore[union-attr]
    assert lengths_of([1, 2]) is None


def test_positions_and_batches_are_the_same_samples(documents: TokenDataset) -> None:
    shard = Shard(
        documents, np.arange(len(documents)), batch_size=8, batch_tokens=24,
        device=torch.device("cpu"), dtype=torch.float64, memory=0,
    )  # fmt: skip
    for number, batch in shard.batches():
        positions = shard.positions_of(number)
        again = shard.fetch(list(positions))
        assert torch.equal(again["input_ids"], batch["input_ids"])
        assert all(shard.batch_of(position) == positions for position in positions)


@pytest.mark.parametrize("mean", ["tokens", "sequences"])
def test_the_spectrum_does_not_depend_on_batches_and_padding(
    documents: TokenDataset, mean: str
) -> None:
    found = []
    for tokens, size in ((8192, 256), (20, 256), (20, 2), (None, 256), (None, 1)):
        spectrum = hessdist.extreme_eigenpairs(
            Bigrams().double(), causal_lm(mean=mean), documents, largest=3, smallest=2,  # type: ignore[arg-type]
            batch_size=size, batch_tokens=tokens, tolerance=1e-8,
        )  # fmt: skip
        found.append([*spectrum.eigenvalues_largest, *spectrum.eigenvalues_smallest])
        expected = (documents.lengths - 1).sum() if mean == "tokens" else len(documents)
        assert spectrum.weight == expected
    np.testing.assert_allclose(found, found[:1] * len(found), rtol=1e-10)
