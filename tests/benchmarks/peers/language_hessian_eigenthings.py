"""hessian-eigenthings: its helpers for transformers, and Lanczos of a fixed number of steps.

Its loss is a mean of batch means, which is the mean over tokens only if all batches have as many:
here all sequences are one batch. The steps are the fewest that serve, found beforehand.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import language_problem
import numpy as np
import torch
from hessian_eigenthings import GGNOperator, HessianOperator, lanczos
from hessian_eigenthings.loss_fns import hf_lm_forward, hf_lm_loss, hf_lm_loss_of_output
from hessian_eigenthings_lanczos import fewest_steps
from language_problem import LARGEST, SMALLEST, TOLERANCE
from torch import Tensor, nn


class Eigenthings(language_problem.Solver):
    def __init__(self, options: argparse.Namespace) -> None:
        self.counts = options.steps

    def steps(self, model: nn.Module, ids: Tensor) -> tuple[int, int]:
        """Find the fewest steps of LA and SA that serve."""
        return fewest_steps(HessianOperator(model, _batches(ids), hf_lm_loss()), 0)

    def solve(self, model: nn.Module, ids: Tensor) -> tuple[dict[str, np.ndarray], str]:
        operator = HessianOperator(model, _batches(ids), hf_lm_loss())
        pairs = {}
        ends = (("LA", "largest", LARGEST), ("SA", "smallest", SMALLEST))
        for (which, name, wanted), steps in zip(ends, self.counts, strict=True):
            found = lanczos(
                operator,
                k=wanted,
                max_iter=steps,
                which=which,
                reorthogonalize=True,  # off by default above 50 steps, and then values repeat
                tol=TOLERANCE,
                seed=0,
            )
            pairs[f"values_{name}"] = found.eigenvalues.numpy()
            pairs[f"vectors_{name}"] = found.eigenvectors.numpy()
        return pairs, " + ".join(map(str, self.counts))

    def product(self, model: nn.Module, ids: Tensor, operator: str) -> Callable[[Tensor], Tensor]:
        if operator == "hessian":
            return HessianOperator(model, _batches(ids), hf_lm_loss()).matvec
        return GGNOperator(model, _batches(ids), hf_lm_forward(), hf_lm_loss_of_output()).matvec


def _batches(ids: Tensor) -> list[dict[str, Any]]:
    return [{"input_ids": ids, "labels": ids}]


if __name__ == "__main__":
    torch.manual_seed(0)
    language_problem.serve(Eigenthings)
