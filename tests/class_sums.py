"""The Gauss-Newton matrix of a small network by classes, by explicit sums over samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from networks import Problem
from numpy.typing import NDArray


@dataclass
class Explicit:
    """All of it by sums over samples, with dense matrices."""

    weights: NDArray[np.float64]  # (C, C)
    means: NDArray[np.float64]  # (C, C, d), g_{c,c'}; zero without samples
    class_weights: NDArray[np.float64]  # (C,)
    class_means: NDArray[np.float64]  # (C, d)
    parts: dict[str, NDArray[np.float64]]  # (d, d) each


def explicit(given: Problem, classes: int) -> Explicit:
    """Split the matrix, summand by summand."""
    inputs, labels = (tensor.detach() for tensor in given.dataset.tensors)
    parameters = list(given.model.parameters())
    count, size = len(labels), sum(p.numel() for p in parameters)
    gradients = np.zeros((count, classes, size))  # g_{i,c'}
    p = np.zeros((count, classes))
    for i in range(count):
        logs = given.model(inputs[i : i + 1]).log_softmax(1)[0]
        p[i] = logs.exp().detach().numpy()
        for c in range(classes):
            pieces = torch.autograd.grad(logs[c], parameters, retain_graph=True)
            gradients[i, c] = torch.cat([piece.reshape(-1) for piece in pieces]).numpy()
    weights, means = np.zeros((classes, classes)), np.zeros((classes, classes, size))
    class_weights, centres = np.zeros(classes), np.zeros((classes, size))
    parts = {name: np.zeros((size, size)) for name in ("class", "cross", "true", "within")}
    for c in range(classes):
        members = np.flatnonzero(labels.numpy() == c)
        for other in range(classes if len(members) else 0):
            w = p[members, other] / count
            weights[c, other] = w.sum()
            means[c, other] = w @ gradients[members, other] / w.sum()
            for i, one in zip(members, w, strict=True):
                away = gradients[i, other] - means[c, other]
                parts["within"] += one * np.outer(away, away)
        if not len(members):
            continue
        others = [other for other in range(classes) if other != c]
        class_weights[c] = weights[c, others].sum()
        centres[c] = weights[c, others] @ means[c, others] / class_weights[c]
        parts["class"] += class_weights[c] * np.outer(centres[c], centres[c])
        parts["true"] += weights[c, c] * np.outer(means[c, c], means[c, c])
        for other in others:
            away = means[c, other] - centres[c]
            parts["cross"] += weights[c, other] * np.outer(away, away)
    return Explicit(weights, means, class_weights, centres, parts)
