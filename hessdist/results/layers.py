"""Layers of a network, as the names of its parameters tell them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


def by_layer(shares: NDArray[Any], names: Iterable[str]) -> NDArray[np.float64]:
    """Shares of parameter tensors as shares of layers.

    Args:
        shares: (n, tensors).
        names: Of the tensors.

    Returns:
        (n, layers), in the order of `layers_of`.
    """
    column = {name: i for i, name in enumerate(names)}
    layers = layers_of(column).values()
    return np.stack([shares[:, [column[name] for name in own]].sum(axis=1) for own in layers], 1)
