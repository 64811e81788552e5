"""hessdist: the user's three lines, and single products."""

from __future__ import annotations

from collections.abc import Callable

import language_problem
import numpy as np
import torch
from language_problem import LARGEST, SMALLEST, TOLERANCE
from torch import Tensor, nn

import hessdist
from hessdist.losses import causal_lm
from hessdist.objective import Compute, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import petsc


class Ours(language_problem.Solver):
    def __init__(self) -> None:
        petsc.initialise()  # an import, as those of the peer are
        self.ranks = Ranks()

    def solve(self, model: nn.Module, ids: Tensor) -> tuple[dict[str, np.ndarray], str]:
        spectrum = hessdist.extreme_eigenpairs(
            model, causal_lm(), ids, largest=LARGEST, smallest=SMALLEST, tolerance=TOLERANCE
        )
        assert spectrum.converged
        pairs = {
            f"{what}_{end}": np.asarray(getattr(spectrum, f"eigen{what}_{end}"))
            for end in ("largest", "smallest")
            for what in ("values", "vectors")
        }
        return pairs, str(spectrum.products)

    def product(self, model: nn.Module, ids: Tensor, operator: str) -> Callable[[Tensor], Tensor]:
        indices = np.arange(len(ids))
        workload = Workload(model, causal_lm(), ids, indices, compute=Compute(device="cpu"))
        objective = workload.on(self.ranks)
        weight = ids.shape[0] * (ids.shape[1] - 1)
        local = objective.local_product(operator)
        return lambda v: local(v) / weight


if __name__ == "__main__":
    torch.manual_seed(0)
    language_problem.serve(lambda options: Ours())
