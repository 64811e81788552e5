"""Parameters by patterns of their names, and by all names of tied ones."""

from __future__ import annotations

import random
from fnmatch import fnmatchcase
from itertools import product

import pytest
from torch import nn

from hessdist.curvature.parameters import Parameters
from hessdist.curvature.patterns import fits
from hessdist.errors import WorkloadError


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(2), nn.Linear(2, 2), nn.LayerNorm(2)


class Language(nn.Module):
    """Two layers, and an output whose weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(3, 2)
        self.h = nn.ModuleList([Layer(), Layer()])
        self.lm_head = nn.Linear(2, 3, bias=False)
        self.lm_head.weight = self.wte.weight


def names(*layers: str) -> list[str]:
    return list(Parameters(Language(), layers).layout.names)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["lm_head"], ["wte.weight"]),
        (["lm_head.weight", "wte"], ["wte.weight"]),
        (["h.*.attn"], [f"h.{i}.attn.{of}" for i in (0, 1) for of in ("weight", "bias")]),
        (["h.1.ln_?.bias", "*.weight"], ["wte.weight", "h.1.ln_1.bias", "h.1.ln_2.bias"]),
        (["**.attn.weight"], ["h.0.attn.weight", "h.1.attn.weight"]),
        (["h.[!0].attn.*"], ["h.1.attn.weight", "h.1.attn.bias"]),
        (["**.lm_head"], ["wte.weight"]),
    ],
)
def test_what_patterns_choose(layers: list[str], expected: list[str]) -> None:
    assert names(*layers) == expected


def test_no_pattern_chooses_frozen_parameters() -> None:
    model = Language()
    model.wte.weight.requires_grad_(False)
    assert all("wte" not in name for name in Parameters(model, ["**"]).layout.names)
    with pytest.raises(WorkloadError, match="no trainable parameter 'lm_head'"):
        Parameters(model, ["lm_head"])


def fits_by_trying(name: str, pattern: str) -> bool:
    """Write each `**` as 0 to 5 stars of one part, and compare part by part."""
    parts, given = pattern.split("."), name.split(".")
    for counts in product(range(6), repeat=parts.count("**")):
        left, plain = list(counts), list[str]()
        for part in parts:
            plain += ["*"] * left.pop() if part == "**" else [part]
        if len(plain) <= len(given) and all(map(fnmatchcase, given, plain)):
            return True
    return False


def test_patterns_that_are_drawn_at_random() -> None:
    draw = random.Random(0)
    fitting = 0
    for _ in range(4000):
        name = ".".join(draw.choices(["a", "b", "ab", "1"], k=draw.randint(1, 5)))
        words = ["a", "b", "*", "a*", "?", "[a1]", "[!b]", "**", "**"]
        pattern = ".".join(draw.choices(words, k=draw.randint(1, 4)))
        expected = fits_by_trying(name, pattern)
        assert fits(name, pattern) == expected, (name, pattern)
        fitting += expected
    assert 1000 < fitting < 3000


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("h.*.atn", "did you mean 'h.*.attn'?"),
        ("h.*.atn.weight", "did you mean 'h.*.attn.weight'?"),
        ("attn", "did you mean '**.attn'?"),
        ("lm_hed", "did you mean 'lm_head'?"),
        ("h.7.attn", "h has 0, 1"),
        ("*.foo", "* has weight, 0, 1"),
        ("zzz", "there are wte, lm_head, h"),
        ("", "there are wte, lm_head, h"),
    ],
)
def test_what_fits_nothing_is_refused_with_near_names(layer: str, says: str) -> None:
    with pytest.raises(WorkloadError) as raised:
        Parameters(Language(), ["wte", layer], "study.blocks.blocks")
    expected = f"study.blocks.blocks: no trainable parameter '{layer}'; {says}"
    assert str(raised.value) == expected
