"""Layers of a network, as the names of its parameters tell them."""

from __future__ import annotations

from collections.abc import Iterable


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Parameter tensors by layer.

    Args:
        names: Of the tensors, such as "fc1.weight".

    Returns:
        Names of tensors by what they have in front of their last dot, in order.
    """
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers
