"""An experiment: a section of a study that trains networks of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hessdist.config.job import Job
from hessdist.errors import Stopped, WorkloadError
from hessdist.objective import Objective, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.workload.models import build_model


@dataclass(frozen=True)
class Experiment:
    """What the sections that train networks of their own need."""

    job: Job
    workload: Workload  # what the job differentiates
    objective: Objective  # of it, over all ranks
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
        return self.objective.ranks


def mlp_of_widths(job: Job, hidden: Sequence[int], section: str, **arguments: Any) -> nn.Module:
    """The job's mlp with other hidden layers. Not collective.

    Args:
        job: Its model is an mlp.
        hidden: Widths of the hidden layers.
        section: Of the study, for messages.
        arguments: Of the mlp, in place of the job's.

    Returns:
        The network, newly initialised.

    Raises:
        WorkloadError: The model is no mlp, or cannot be built.
    """
    if job.model.factory != "mlp":
        raise WorkloadError(
            f"study.{section} varies the hidden widths of an mlp, and model.factory is "
            f"'{job.model.factory}'",
            "use model.factory = 'mlp'",
        )
    widths = job.model.arguments.get("widths", ())
    if len(widths) < 2:
        raise WorkloadError(
            f"model.arguments.widths = {list(widths)} names no inputs and outputs",
            "give at least two numbers",
        )
    given = {**job.model.arguments, "widths": [widths[0], *hidden, widths[-1]], **arguments}
    return build_model("mlp", given)
