"""The parameters in use, as one flat vector in `named_parameters()` order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from hessdist.curvature.patterns import chosen_names, trainable_names
from hessdist.errors import WorkloadError


@dataclass(frozen=True)
class ParameterLayout:
    """The layout of the parameter tensors in the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]  # of each tensor, and at the end d

    @property
    def size(self) -> int:
        """The number of parameters, d."""
        return self.offsets[-1]

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return views of a flat vector (d,) in the shapes of the parameters."""
        pieces = zip(self.offsets[:-1], self.offsets[1:], self.shapes, strict=True)
        return [vector[begin:end].view(shape) for begin, end, shape in pieces]

    def add_to(self, vector: Tensor, pieces: Iterable[Tensor | None]) -> None:
        """Add parameter-shaped pieces to a flat vector (d,) in place; None stands for zero."""
        for begin, end, piece in zip(self.offsets[:-1], self.offsets[1:], pieces, strict=True):
            if piece is not None:
                dense = piece.to_dense() if piece.is_sparse else piece
                vector[begin:end].add_(dense.reshape(-1))


class Parameters:
    """The trainable parameters of a model, or of some layers; the others are constants.

    Args:
        model: The model; parameters that do not require a gradient are left out.
        layers: The names of parameters ("fc1.weight") or of modules ("fc1"), or patterns of them
            as in `patterns.fits` ("h.*.attn"); empty: all. A tied parameter has all its names.
        key: The key of the job file that names the layers, for messages.

    Raises:
        WorkloadError: A name is unknown, or no parameter is left.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str] = (), key: str = "spectrum.layers"
    ) -> None:
        names = chosen_names(trainable_names(model), layers, key)
        chosen = {name: p for name, p in model.named_parameters() if name in names}
        if not chosen:
            raise WorkloadError(
                "the model has no trainable parameter", "set requires_grad on some parameters"
            )
        self.tensors: list[nn.Parameter] = list(chosen.values())
        shapes = tuple(tuple(p.shape) for p in self.tensors)
        offsets = [0]
        for shape in shapes:
            offsets.append(offsets[-1] + prod(shape))
        self.layout = ParameterLayout(tuple(chosen), shapes, tuple(offsets))

    def flat(self) -> Tensor:
        """Return a copy of θ, (d,), in the dtype and on the device of the parameters."""
        return torch.cat([p.detach().reshape(-1) for p in self.tensors])

    @torch.no_grad()
    def assign(self, theta: Tensor) -> None:
        """Overwrite the parameters by a flat vector (d,)."""
        for parameter, value in zip(self.tensors, self.layout.split(theta), strict=True):
            parameter.copy_(value)
