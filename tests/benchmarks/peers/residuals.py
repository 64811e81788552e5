"""The check of everybody's pairs: one product in float64 by double backward, in plain torch."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from problem import Problem
from torch import nn

ENDS = ("largest", "smallest")


class Residuals:
    """Checks the files that workers write; the same pairs are not checked twice."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._known: dict[str, dict[str, list[float]]] = {}
        self._gradients: list[torch.Tensor] = []  # of the batches, flat, with their graphs
        self._parameters: list[nn.Parameter] = []

    def __call__(self, path: Path) -> dict[str, list[float]]:
        """Check the pairs of a file.

        Args:
            path: What a worker wrote.

        Returns:
            Of each end, the solver's values (`values_largest`), ‖Hv − λv‖ / |λ| with unit v
            (`residuals_largest`), and the largest |vᵢᵀvⱼ| of different vectors
            (`overlap_largest`, one entry), which is 1 where a pair is given twice.
        """
        pairs = dict(np.load(path))
        digest = hashlib.sha256()
        for array in pairs.values():
            digest.update(np.ascontiguousarray(array).data)
        if (key := digest.hexdigest()) not in self._known:
            checked: dict[str, list[float]] = {}
            for end in ENDS:
                values, vectors = pairs[f"values_{end}"], pairs[f"vectors_{end}"]
                checked[f"values_{end}"] = [float(value) for value in values]
                checked[f"residuals_{end}"] = [
                    self._residual(float(value), vector)
                    for value, vector in zip(values, vectors, strict=True)
                ]
                gram = np.abs(vectors @ vectors.T - np.eye(len(vectors)))
                checked[f"overlap_{end}"] = [float(gram.max(initial=0))]
            self._known[key] = checked
        return self._known[key]

    def _residual(self, value: float, vector: np.ndarray) -> float:
        v = torch.from_numpy(vector.astype(np.float64))
        v /= v.norm()
        return float((self._product(v) - value * v).norm()) / abs(value)

    def _product(self, v: torch.Tensor) -> torch.Tensor:
        if not self._gradients:
            self._build()
        total = torch.zeros_like(v)
        for gradient in self._gradients:
            pieces = torch.autograd.grad(gradient @ v, self._parameters, retain_graph=True)
            total += torch.cat([piece.reshape(-1) for piece in pieces])
        return total

    def _build(self) -> None:
        model = copy.deepcopy(self._problem.model).double()
        self._parameters = list(model.parameters())
        for images, labels in self._problem.batches:
            outputs = model(images.double())
            loss = nn.functional.cross_entropy(outputs, labels, reduction="sum")
            pieces = torch.autograd.grad(
                loss / len(self._problem.labels), self._parameters, create_graph=True
            )
            self._gradients.append(torch.cat([piece.reshape(-1) for piece in pieces]))
