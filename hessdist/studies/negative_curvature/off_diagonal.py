"""How far the diagonal blocks are from the whole matrix, after Granziol and Juarev (2026).

D is the block-diagonal matrix of the blocks, which hold every parameter in use once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hessdist.objective import Objective
from hessdist.results.schema import ENDS
from hessdist.results.units import Variable
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.shell import ShellMatrix, curvature_matrix
from hessdist.studies.context import Context, Pair


class OffDiagonal:
    """The share ‖Hv − Dv‖ / ‖Hv‖ along the first eigenvector v of each end. Collective.

    D v takes a product of each block and vector, with `add` while the block's matrix is there.

    Args:
        context: The job and the loss.
        pairs: Eigenpairs of the whole matrix; the first of each end is used if it converged.
    """

    def __init__(self, context: Context, pairs: Sequence[Pair]) -> None:
        self._ranks, objective = context.ranks, context.objective
        layout = objective.local.parameters.layout  # of the entries that a rank needs
        self._pairs = [pair for pair in pairs if pair.rank == 1 and pair.converged]
        bounds = zip(layout.offsets[:-1], layout.offsets[1:], strict=True)
        self._places = dict(zip(layout.names, map(slice, *zip(*bounds, strict=True)), strict=True))
        self._vectors = context.vectors(self._pairs)
        shell = curvature_matrix(
            context.objective, context.job.spectrum.operator, context.weight(), context.on_product
        )
        self._images = np.empty(self._vectors.shape, shell.dtype)  # H v, as the vectors
        self._norms = np.zeros(len(self._pairs))  # of H v
        for row, (vector, image) in enumerate(zip(self._vectors, self._images, strict=True)):
            mine = shell.apply(objective.slice_of(vector.astype(np.float64)))
            objective.placement.gather(mine.astype(shell.dtype), image)
            self._norms[row] = np.sqrt(self._ranks.sum(np.array([mine @ mine]))[0])
        self._squares = np.zeros(len(self._pairs))  # of this rank's entries of H v - D v

    def add(self, part: Objective, shell: ShellMatrix) -> None:
        """Multiply by a block. Collective.

        Args:
            part: The loss as a function of the block's parameters.
            shell: The block of the matrix.
        """
        for row, (vector, image) in enumerate(zip(self._vectors, self._images, strict=True)):
            product = shell.apply(part.slice_of(self._entries(part, vector)))
            difference = part.slice_of(self._entries(part, image)) - product
            self._squares[row] += difference @ difference

    def _entries(self, part: Objective, whole: NDArray[Any]) -> NDArray[np.float64]:
        """Return the entries of a vector that belong to a block, in its order."""
        pieces = [whole[self._places[name]] for name in part.layout.names]
        return np.concatenate(pieces, dtype=np.float64)

    def shares(self) -> dict[str, float]:
        """Return the share of each end that was measured, when all blocks are added. Collective."""
        squares = self._ranks.sum(self._squares)
        return {
            pair.end: float(np.sqrt(square) / norm)
            for pair, square, norm in zip(self._pairs, squares, self._norms, strict=True)
        }


def distance_variables(
    pairs: Sequence[Pair], solved: Sequence[Eigenpairs], shares: dict[str, float]
) -> dict[str, Variable]:
    """Return the variables that compare the block-diagonal matrix D with the whole one.

    Args:
        pairs: Eigenpairs of the whole matrix.
        solved: Those of each block.
        shares: From `OffDiagonal.shares`.

    Returns:
        The variables; NaN where an eigenvalue is missing or did not converge.
    """
    variables = {}
    for end in ENDS:
        share, ratio = shares.get(end, np.nan), _ratio(pairs, solved, end)
        variables[f"block_diagonal_ratio_{end}"] = Variable(
            (), np.array(ratio), f"{end} eigenvalue of the block-diagonal matrix D / that of H"
        )
        variables[f"off_diagonal_share_{end}"] = Variable(
            (), np.array(share), f"|Hv - Dv| / |Hv| along the {end} eigenvector v of H"
        )
    return variables


def _ratio(pairs: Sequence[Pair], solved: Sequence[Eigenpairs], end: str) -> float:
    """Return the extreme eigenvalue over all blocks, divided by that of the whole matrix."""
    whole = [pair.value for pair in pairs if (pair.end, pair.rank) == (end, 1) and pair.converged]
    ends = [getattr(one, end) for one in solved]
    if not whole or whole[0] == 0 or not all(len(e.values) and e.converged[0] for e in ends):
        return float("nan")
    extreme = max if end == "largest" else min
    return float(extreme(e.values[0] for e in ends) / whole[0])
