"""Nudged elastic bands between two points (Jónsson and others 1998; Draxler and others 2018).

A band is a chain of points, its pivots. Each pivot follows the negative gradient across the band.
In place of springs along the band, the pivots are put at even distances after each step, as if
springs were infinitely stiff (the string method of E, Ren and Vanden-Eijnden 2002). So the band
comes to lie in the valley that leads from one end to the other, and its highest point is near a
pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hessdist.landscape.paths import Gradients, Moves, along, require_finite, straight


def tangents(band: Tensor, losses: Tensor) -> Tensor:
    """Compute the direction of the band at each pivot: towards the neighbour of higher loss.

    Where both neighbours are higher or both are lower, it is a mean of both directions that
    depends on the losses (Henkelman and Jónsson 2000, equations 8 to 11).

    Args:
        band: The pivots and both ends, (n + 2, d).
        losses: Their losses, (n + 2,).

    Returns:
        Unit vectors, (n, d); zero at a pivot that lies on both its neighbours.
    """
    before, after = band[1:-1] - band[:-2], band[2:] - band[1:-1]
    down, up = losses[1:-1] - losses[:-2], losses[2:] - losses[1:-1]  # rises from piece to piece
    more, less = torch.maximum(up.abs(), down.abs()), torch.minimum(up.abs(), down.abs())
    is_after_higher = losses[2:] > losses[:-2]
    of_after = torch.where(is_after_higher, more, less)
    of_before = torch.where(is_after_higher, less, more)
    rising, falling = (up > 0) & (down > 0), (up < 0) & (down < 0)
    flat = (of_after == 0) & (of_before == 0)
    of_after = torch.where(rising | flat, 1.0, torch.where(falling, 0.0, of_after))
    of_before = torch.where(rising, 0.0, torch.where(falling | flat, 1.0, of_before))
    found = of_after[:, None] * after + of_before[:, None] * before
    sizes = found.norm(dim=1, keepdim=True)
    return torch.where(sizes > 0, found / sizes, 0.0)


def forces(band: Tensor, losses: Tensor, slopes: Tensor) -> Tensor:
    """Compute the force on each pivot: the negative gradient across the band.

    Args:
        band: The pivots and both ends, (n + 2, d).
        losses: Their losses, (n + 2,).
        slopes: The gradients g at the pivots, (n, d).

    Returns:
        −g + (gᵀτ) τ, (n, d), with the direction τ of the band.
    """
    direction = tangents(band, losses)
    return (slopes * direction).sum(dim=1, keepdim=True) * direction - slopes


def relax_band(
    first: Tensor,
    second: Tensor,
    gradients: Gradients,
    moves: Moves,
    *,
    pivots: int = 9,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Relax a nudged elastic band, which begins as the straight line.

    As forces across a band are no gradient, momentum can drive them: the velocity of a pivot is
    forgotten where it points against the force.

    Args:
        first: The fixed first point, (d,).
        second: The fixed last point, (d,).
        gradients: The losses and gradients at points.
        moves: The steps.
        pivots: The number n of points between the ends.
        on_step: Called after every step with its number, from 1.

    Returns:
        The pivots and both ends, (n + 2, d), evenly spaced along the band.

    Raises:
        NumericalError: A pivot becomes infinite or NaN.
    """
    even = torch.arange(pivots + 2, dtype=first.dtype, device=first.device) / (pivots + 1)
    band = straight(first, second, even)
    velocity = torch.zeros_like(band[1:-1])
    ends = gradients(band[[0, -1]])[0]
    for step in range(moves.steps):
        inner, slopes = gradients(band[1:-1])
        force = forces(band, torch.cat([ends[:1], inner, ends[1:]]), slopes)
        agrees = (velocity * force).sum(dim=1, keepdim=True) > 0
        velocity = moves.momentum * velocity * agrees + moves.rate(step) * force
        band[1:-1] += velocity
        require_finite(band, "a pivot of the elastic band", step + 1)
        band = along(band, even)
        on_step(step + 1)
    return band
