"""Layers of a network, found from the names of its parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Group the names of parameter tensors by layer.

    Args:
        names: The names of the tensors, such as "fc1.weight".

    Returns:
        The names of the tensors of each layer, in order. A layer is the text before the last dot.
    """
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return layers


def by_layer(shares: NDArray[Any], names: Iterable[str]) -> NDArray[np.float64]:
    """Add up the shares of parameter tensors layer by layer.

    Args:
        shares: The shares of the tensors, (n, tensors).
        names: The names of the tensors.

    Returns:
        The shares of the layers, (n, layers), in the order of `layers_of`.
    """
    column = {name: i for i, name in enumerate(names)}
    layers = layers_of(column).values()
    return np.stack([shares[:, [column[name] for name in own]].sum(axis=1) for own in layers], 1)
