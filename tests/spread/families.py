"""Small networks of several kinds, drawn at random, with samples and a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from language_models import gpt2, random_sequences
from networks import Problem, Samples
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import hessdist
from hessdist.workload.models import mlp
from hessdist.workload.tokens import sequences

Rng = np.random.Generator
Family = Callable[[Rng, int], Problem]
CLASSES = 3


def among(rng: Rng, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def classified(rng: Rng, model: nn.Module, *shape: int, count: int) -> Problem:
    """Random inputs and labels, with parameters drawn again far from zero."""
    seed(rng)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    inputs = torch.randn(count, *shape, dtype=torch.float64)
    labels = torch.randint(CLASSES, (count,))
    return Problem(model.double(), nn.CrossEntropyLoss(), Samples(inputs, labels))


def seed(rng: Rng) -> None:
    """Every rank builds the same model."""
    torch.manual_seed(int(rng.integers(1000)))


def multilayer(rng: Rng, count: int) -> Problem:
    """Linear layers, some of them frozen."""
    seed(rng)
    widths = [int(rng.integers(1, 8)) for _ in range(int(rng.integers(2, 4)))]
    model = mlp([4, *widths, CLASSES], activation=among(rng, "tanh", "gelu", "sigmoid"))
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if len(layers) > 2:
        among(rng, *layers[:-1]).weight.requires_grad_(False)
    return classified(rng, model, 4, count=count)


class Convolutional(nn.Module):
    """A small LeNet, with norms of several kinds and a parameter of the model's own."""

    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, bias=bias), nn.BatchNorm2d(channels), nn.GELU(),
            nn.Conv2d(channels, 2, 2), nn.Flatten(), nn.LayerNorm(18), nn.Tanh(),
            nn.Linear(18, CLASSES, bias=bias),
        )  # fmt: skip
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layers(x)


def convolutional(rng: Rng, count: int) -> Problem:
    seed(rng)
    model = Convolutional(int(rng.integers(1, 4)), bias=bool(rng.integers(2)))
    return classified(rng, model, 1, 6, 6, count=count)


class Recurrent(nn.Module):
    """Modules that hand their parameters to functions: an LSTM, attention, a weight norm."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(2, width, num_layers=layers, batch_first=True)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm, self.shared = nn.BatchNorm1d(width), nn.Linear(width, width)
        self.head = weight_norm(nn.Linear(width, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.recurrent(x)
        a, _ = self.attention(h, h, h, need_weights=False)
        return self.head(self.norm(self.shared(torch.tanh(self.shared(a[:, -1])))))


def recurrent(rng: Rng, count: int) -> Problem:
    seed(rng)
    model = Recurrent(width=int(among(rng, 2, 4)), layers=int(rng.integers(1, 3)))
    return classified(rng, model, 3, 2, count=count)


class Decoder(nn.Module):
    """A block of a transformer, whose embedding is its last layer too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, width), nn.Embedding(6, width)
        self.norm, self.mixed = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, idx: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        length = idx.shape[1]
        h = self.tokens(idx) + self.places(torch.arange(length))
        q, k, v = self.mixed(self.norm(h)).chunk(3, -1)
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        scores = (q @ k.mT).masked_fill(~seen, -torch.inf)
        return self.head(h + torch.softmax(scores, -1) @ v)


def tied(rng: Rng, count: int) -> Problem:
    seed(rng)
    return _of_language(rng, Decoder(int(rng.integers(2, 5))).double(), count)


def _of_language(rng: Rng, model: nn.Module, count: int) -> Problem:
    """Sequences of random lengths for a causal language model."""
    ids = random_sequences([int(n) for n in rng.integers(2, 7, count)])
    loss = hessdist.losses.causal_lm(among(rng, "tokens", "sequences"))
    return Problem(model, loss, sequences([one.numpy() for one in ids], 6, packed=False))  # type: ignore[arg-type]


def transformers(rng: Rng, count: int) -> Problem:
    """GPT-2, with layers of transformers' own, whose embedding is its last layer too."""
    return _of_language(rng, gpt2(), count)


def adapted(rng: Rng, count: int) -> Problem:
    """GPT-2, of which only LoRA's matrices are in use."""
    seed(rng)
    peft = pytest.importorskip("peft")
    given = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(gpt2(), given).double()
    seed(rng)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return _of_language(rng, model, count)


FAMILIES: dict[str, Family] = {
    function.__name__: function for function in (multilayer, convolutional, recurrent, tied)
}
LIBRARIES: dict[str, Family] = {function.__name__: function for function in (transformers, adapted)}
