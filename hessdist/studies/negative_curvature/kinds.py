"""Depth and kind of the parameters of a transformer, found from their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

OUTSIDE = "outside"
"""The depth of what is not in a numbered layer: embeddings, the last norm, the output."""

_KINDS = {
    "norms": r"norm|(^|_)(ln|bn)(_|\d*$)",
    "attention": r"attn|attention",
    "output": r"^embed_out$|unembed",
    "embeddings": r"embed|(^|_)emb(_|$)|^(wte|wpe|shared)$|_token$",
    "mlp": r"mlp|ffn|^ff$|feed_?forward|moe|expert|^intermediate$|densereludense",
}
_WITHIN = {"mlp": r"^(fc|lin|linear|dense|w)\d*$|^(gate|up|down)_proj$|^output$"}
_BEYOND = {"output": r"head|classifier|^vocab_|^(output|cls|score|qa_outputs|proj_out|pooler)$"}


@dataclass(frozen=True)
class Place:
    """The place of a parameter in a network."""

    depth: str
    """The number of its layer; the name of the layer where there are several stacks of layers;
    `OUTSIDE` of all of them."""
    kind: str
    """attention, mlp, embeddings, norms or output; of another module the last part of its name."""

    @property
    def name(self) -> str:
        """The name of the block of this depth and kind, such as "3 attention"."""
        return self.kind if self.depth == OUTSIDE else f"{self.depth} {self.kind}"


def by_depth_and_kind(names: Iterable[str]) -> dict[Place, list[str]]:
    """Group parameters by depth and kind.

    Args:
        names: The names of the parameters, such as "transformer.h.3.attn.c_attn.weight".

    Returns:
        The names at each place, in order.
    """
    names = list(names)
    layers = {name: _layer(name.split(".")) for name in names}
    stacks = {re.sub(r"\d+$", "", layer) for layer in layers.values() if layer}
    places: dict[Place, list[str]] = {}
    for name, layer in layers.items():
        depth = layer if len(stacks) > 1 else re.sub(r"^.*\D", "", layer)
        parts = name.removeprefix(layer).strip(".").split(".")
        place = Place(depth or OUTSIDE, _kind(parts, bool(layer)))
        places.setdefault(place, []).append(name)
    return places


def _layer(parts: list[str]) -> str:
    """Return the name of the numbered layer, such as "transformer.h.3", or nothing.

    A number in a module of a known kind, such as "mlp.0" or "mlp.experts.5", counts no layers.
    """
    for i, part in enumerate(parts[:-1]):
        if re.search(r"^(\w*(layer|block)_)?\d+$", part):
            return ".".join(parts[: i + 1])
        if _kind_of(part, False):
            break
    return ""


def _kind(parts: list[str], in_layer: bool) -> str:
    """Return the kind of a parameter, whose names of modules are those below its layer.

    The outermost module counts: `attention.output` is attention. A norm is one wherever it is.
    """
    found = [kind for part in parts if (kind := _kind_of(part, in_layer))]
    if found:
        return "norms" if "norms" in found else found[0]
    modules = [part for part in parts[:-1] if not part.isdigit()]
    return modules[-1] if modules else "layer" if parts[-1] in ("weight", "bias") else parts[-1]


def _kind_of(part: str, in_layer: bool) -> str:
    """Return the kind that a part of a name says, or nothing."""
    known = [*_KINDS.items(), *(_WITHIN if in_layer else _BEYOND).items()]
    return next((kind for kind, words in known if re.search(words, part.lower())), "")
