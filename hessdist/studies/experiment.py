"""An experiment: a section of a study that trains networks of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hessdist.assembly import TrainingLoss, Workload
from hessdist.errors import Stopped
from hessdist.job import Job
from hessdist.ranks import Ranks


@dataclass(frozen=True)
class Experiment:
    """What the sections that train networks of their own need."""

    job: Job
    workload: Workload  # what the job differentiates
    total: TrainingLoss  # of it, over all ranks
    tell: Callable[[str], None] = lambda text: None  # how far this rank is
    say: Callable[[str], None] = lambda text: None  # a line to a person
    on_product: Callable[[int], None] = lambda products: None  # collective; may raise `Stopped`
    stopped: Callable[[], bool] = lambda: False  # whether this rank was told to stop

    def heed(self, text: str) -> None:
        """Say how far this rank is, and end its work where it was told to stop. Not collective.

        Args:
            text: How far.

        Raises:
            Stopped: It was told to.
        """
        self.tell(text)
        if self.stopped():
            raise Stopped("stopped on a signal", "run the same command again")

    @property
    def ranks(self) -> Ranks:
        """The ranks."""
        return self.total.ranks
