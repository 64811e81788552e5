"""The loss on one rank's samples, as a function of parameters that are spread over ranks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from hessdist.curvature.local_loss import LocalLoss, Pieces, SavingHooks
from hessdist.curvature.parameters import Parameters
from hessdist.errors import NumericalError
from hessdist.spread.modules import SpreadModel
from hessdist.workload.losses import Loss
from hessdist.workload.nestings import Batch
from hessdist.workload.shard import Shard


class SpreadLoss(LocalLoss):
    """Σ ℓ_i(θ) over one rank's samples, with respect to this rank's pieces of θ.

    Gradients and products are sums over the samples of all ranks of the copy, as the contributions
    to a piece are summed in the graph. Therefore all of these ranks evaluate the same number of
    batches: a rank with fewer takes part with a batch that does not count. Making the object, and
    every evaluation, is collective over the copy.

    Args:
        spread: The model.
        loss: The loss in its summed form.
        shard: This rank's samples.
        parameters: The pieces in use.
        stand_in: A batch for the passes in which a rank has none of its own.
        rank: The number of the rank among all, for messages.
    """

    vectorizes = False  # collectives are not

    def __init__(
        self,
        spread: SpreadModel,
        loss: Loss,
        shard: Shard,
        parameters: Parameters,
        stand_in: Batch,
        rank: int = 0,
    ) -> None:
        super().__init__(spread.model, loss, shard, parameters, rank)
        self.spread, self._lockstep = spread, spread.lockstep
        self.stand_in = stand_in
        self._passes = self._lockstep.most(len(shard))

    def of_parameters(self, parameters: Parameters) -> LocalLoss:
        """Return the loss as a function of other pieces, on the same samples. Collective."""
        given = (self.loss, self.shard, parameters, self.stand_in, self.rank)
        return SpreadLoss(self.spread, *given)

    @property
    def passes(self) -> int:
        """The largest number of batches of a rank of the copy."""
        return self._passes

    def batches(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, Batch]]:
        """Iterate over batches, those that only stand in last.

        Args:
            wanted: The numbers of the batches; None for all.

        Yields:
            The number of a batch, and the batch.
        """
        numbers = range(self._passes) if wanted is None else sorted(wanted)
        yield from self.shard.batches([number for number in numbers if self.counts(number)])
        yield from ((number, self.stand_in) for number in numbers if not self.counts(number))

    def counts(self, number: int) -> bool:
        """Return whether a batch is made of this rank's samples."""
        return number < len(self.shard)

    def part_in(self, number: int) -> AbstractContextManager[None]:
        """Return a context in which a batch that only stands in adds nothing."""
        return nullcontext() if self.counts(number) else self._lockstep.absent()

    def derivatives(
        self, twice: bool = False, hooks: SavingHooks | None = None
    ) -> AbstractContextManager[None]:
        """Return a context in which graphs save no gathered tensors.

        Args:
            twice: Whether second derivatives are to be fast.
            hooks: Functions for the other tensors that graphs save.

        Returns:
            The context.
        """
        return self._saving(super().derivatives(twice), hooks)

    @contextmanager
    def _saving(
        self, made: AbstractContextManager[None], hooks: SavingHooks | None
    ) -> Iterator[None]:
        def pack(tensor: Tensor) -> object:
            packed = self.spread.pack(tensor)
            return hooks[0](packed) if hooks is not None and isinstance(packed, Tensor) else packed

        with ExitStack() as stack:
            stack.enter_context(made)
            stack.enter_context(saved_tensors_hooks(pack, self.spread.unpack))
            yield

    def require_finite(self, value: Tensor | Pieces, what: str) -> None:
        """Refuse NaN and infinity; collective over the copy for tensors in parameter shapes.

        Args:
            value: A tensor, or tensors in parameter shapes.
            what: The name of the value in the message.

        Raises:
            NumericalError: The value is not finite; the message names the rank.
        """
        failure: NumericalError | None = None
        try:
            super().require_finite(value, what)
        except NumericalError as error:
            failure = error
        if not isinstance(value, Tensor):
            # All ranks get a share of another one's NaN. One of them is to speak; if that is the
            # rank that has found it in its loss, it is not here any more.
            mine = self._lockstep.size - self._lockstep.rank
            speaker = self._lockstep.most(mine if failure else 0)
            if speaker not in {0, mine}:
                self._lockstep.most(0)  # where that rank does not come
        if failure:
            raise failure

    def guarding(self) -> AbstractContextManager[None]:
        """Return a context in which changes of gathered parameters are refused."""
        return self.spread.guarding()

    def totals(self, *values: float) -> list[float]:
        """Sum over the ranks of the copy; collective over these."""
        return self._lockstep.total(values)

    def norm(self, mine: float) -> float:
        """Return the norm of a vector from those of the ranks' pieces; collective over these."""
        (square,) = self.totals(mine * mine)
        return math.sqrt(square)

    def most(self, value: int) -> int:
        """Return the largest value of the ranks of the copy; collective over these."""
        return self._lockstep.most(value)
