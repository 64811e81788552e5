"""Gradient descent of many functions at once, by a number of steps each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessdist.landscape.critical_points import Functions


def descend(
    functions: Functions,
    theta: Tensor,
    lengths: Tensor,
    learning_rate: float,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Descend. A step that raises a value is not taken, and halves the learning rate.

    Args:
        functions: The functions.
        theta: The starts, (K, d).
        lengths: The number of steps of each function, (K,).
        learning_rate: The learning rate at the start.
        on_step: Called before every step. An exception in it ends the descent.

    Returns:
        The ends, (K, d).
    """
    values, gradients = functions.losses_and_gradients(theta)
    rates = torch.full_like(values, learning_rate)
    for step in range(int(lengths.max())):
        on_step()
        tried = theta - rates[:, None] * gradients
        tried_values, tried_gradients = functions.losses_and_gradients(tried)
        falls = tried_values <= values
        moves = falls & (step < lengths)
        theta = torch.where(moves[:, None], tried, theta)
        values = torch.where(moves, tried_values, values)
        gradients = torch.where(moves[:, None], tried_gradients, gradients)
        rates = torch.where(falls, rates, rates / 2)
    return theta
