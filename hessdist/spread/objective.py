"""The parameters of a workload, spread over the ranks of a solve."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import ParameterLayout, Parameters
from hessdist.errors import CheckpointError, DataError, InputError
from hessdist.parallel.lockstep import Lockstep
from hessdist.parallel.memory import return_freed_memory
from hessdist.parallel.placement import Grid, Spread
from hessdist.parallel.ranks import Ranks
from hessdist.spread.filling import scatter_parameters
from hessdist.spread.local_loss import SpreadLoss
from hessdist.spread.modules import SpreadModel
from hessdist.workload.checkpoints import state_digest
from hessdist.workload.listing import listed
from hessdist.workload.losses import Loss
from hessdist.workload.nestings import Batch
from hessdist.workload.shard import Shard


def spread_over(ranks: Ranks, shards: int, model: nn.Module) -> SpreadParameters:
    """Cut the parameters of a model into pieces over ranks. Collective.

    Args:
        ranks: The ranks of a solve.
        shards: The number of ranks that hold one copy between them.
        model: The model, which is changed; its parameters may be on the meta device.

    Returns:
        The parameters, without values.

    Raises:
        InputError: The number of ranks is no multiple of the shards; on every rank.
        WorkloadError: A module cannot be changed; on every rank.
    """
    if ranks.size % shards:
        raise InputError(
            f"compute.shards = {shards} does not divide the {ranks.size} ranks of a solve",
            "start a multiple of it, for each of service.groups",
        ).on_all_ranks()
    return_freed_memory()
    grid = Grid(ranks.size, shards)
    ranks.lockstep = Lockstep(ranks.comm.Split(ranks.rank // shards, ranks.rank))
    with ranks.agreeing():
        return SpreadParameters(ranks, grid, SpreadModel(model, ranks.lockstep))


class SpreadParameters:
    """Pieces of parameters, and how they are filled and placed.

    Args:
        ranks: The ranks of a solve.
        grid: The grid that they form.
        spread: The model.
    """

    def __init__(self, ranks: Ranks, grid: Grid, spread: SpreadModel) -> None:
        self._ranks, self._grid, self._spread = ranks, grid, spread
        self.skeleton = spread.skeleton
        self._missing = set(spread.shapes)  # parameters without values
        self._read: nn.Module | None = None  # what rank 0 has read
        self.digest = ""  # of what rank 0 has read last

    # -- values --------------------------------------------------------------------------------

    def fill_from_start(self) -> None:
        """Take over the values that the model was built with on rank 0, if any. Collective."""
        built = self._spread.whole
        values = {name: tensor for name, tensor in built.items() if not tensor.is_meta}
        self._scatter(values if self._ranks.is_root else None)
        for tensor in values.values():
            # Without memory, but if code that has kept a reference uses it, the loss is NaN.
            tensor.data = tensor.data.new_full((), math.nan).expand(tensor.shape)
        self._spread.whole.clear()

    def read(self, read: Callable[[nn.Module], None]) -> str:
        """Read values, of which `share` sends the pieces. Not collective.

        Args:
            read: Fills a model. Its parameters are on the meta device, and tensors are assigned to
                it as they are, so that a memory-mapped file is not read here.

        Returns:
            A digest of all tensors.
        """
        model = copy.deepcopy(self.skeleton)
        if any(not p.requires_grad for p in model.parameters()):
            _make_room(model)
        read(model)
        dtype = next(self._spread.model.parameters()).dtype
        self.digest = state_digest(model.state_dict(), dtype)
        self._read = model
        return self.digest

    def share(self) -> None:
        """Send the pieces of what rank 0 has read, and its buffers. Collective."""
        model, self._read = self._read, None
        if self._ranks.is_root and model is not None:
            own = dict(self._spread.model.named_buffers())
            for name, buffer in model.named_buffers():
                own[name].data.copy_(buffer)
            named = dict(model.named_parameters(remove_duplicate=False))
            values = {n: named[n] for n in self._spread.shapes if not named[n].is_meta}
            self._scatter(values)
        else:
            self._scatter({} if self._ranks.is_root else None)

    def _scatter(self, values: Mapping[str, Tensor] | None) -> None:
        filled = scatter_parameters(self._ranks, self._grid, self._spread.model, values)
        self._missing -= set(filled)

    def draw(self) -> None:
        """Draw values for the parameters that have none, which is enough to measure times."""
        generator = torch.Generator().manual_seed(0)
        for name, piece in self._spread.model.named_parameters():
            if name in self._missing:
                values = torch.randn(piece.numel(), generator=generator)
                piece.data.copy_(values / math.sqrt(max(self._spread.shapes[name], default=1)))
        self._missing.clear()

    def require_values(self) -> None:
        """Refuse parameters that nothing has filled. Not collective, and the same on every rank.

        Raises:
            CheckpointError: A parameter has no value.
        """
        if self._missing:
            names = [name for name in self._spread.shapes if name in self._missing]
            raise CheckpointError(
                f"the checkpoint has no values for {listed(names)}, and the model is built without "
                "values",
                "use model.build = 'whole' if model.factory reads them",
            ).on_all_ranks()

    # -- the loss ------------------------------------------------------------------------------

    def local_loss(
        self, loss: Loss, shard: Shard, probe: Shard, layers: Sequence[str]
    ) -> SpreadLoss:
        """Make the loss on this rank's samples. Collective over the copy.

        Args:
            loss: The loss in its summed form.
            shard: This rank's samples.
            probe: A few samples, the same on every rank.
            layers: The names of parameters or modules in use; empty: all.

        Returns:
            The loss.
        """
        parameters = Parameters(self._spread.model, layers)
        rank = self._ranks.rank
        return SpreadLoss(self._spread, loss, shard, parameters, _stand_in(probe), rank)

    def on_samples(self, local: LocalLoss, shard: Shard) -> LocalLoss:
        """Return a loss on samples that are the same on every rank. Collective over the copy."""
        assert isinstance(local, SpreadLoss)
        given = (local.loss, shard, local.parameters, local.stand_in, local.rank)
        return SpreadLoss(self._spread, *given)

    # -- vectors -------------------------------------------------------------------------------

    def layout(self, names: Sequence[str]) -> ParameterLayout:
        """Return the layout of whole parameters in the flat vector."""
        shapes = tuple(self._spread.shapes[name] for name in names)
        offsets = (0, *accumulate(prod(shape) for shape in shapes))
        return ParameterLayout(tuple(names), shapes, offsets)

    def placement(self, layout: ParameterLayout) -> Spread:
        """Return where the entries of vectors lie."""
        return Spread(self._ranks, self._grid, [prod(shape) for shape in layout.shapes])


def _make_room(model: nn.Module) -> None:
    """Give the trainable parameters memory, as adapters are copied and not assigned."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                value = torch.full(parameter.shape, torch.nan, dtype=parameter.dtype)
                module._parameters[name] = made.setdefault(id(parameter), nn.Parameter(value))


def _stand_in(probe: Shard) -> Batch:
    """Return a small batch, of two samples if they can be evaluated together."""
    with suppress(DataError):
        return probe.head(2)
    return probe.head(1)
