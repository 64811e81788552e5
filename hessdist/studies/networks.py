"""A network that one rank trains by itself, minibatch after minibatch. Nothing is collective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.config.job import Job
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.errors import NumericalError, WorkloadError
from hessdist.objective import DTYPES, Workload
from hessdist.optimizers.training import initialise, minibatches, penalty
from hessdist.workload.collate import find_collate
from hessdist.workload.datasets import MapDataset
from hessdist.workload.losses import CriterionLoss, Loss, as_summed_loss, checked_loss
from hessdist.workload.models import build_model
from hessdist.workload.nestings import batch_length
from hessdist.workload.shard import Shard


def shard_of(
    job: Job,
    device: torch.device,
    dataset: MapDataset,
    indices: NDArray[np.int64] | None = None,
    memory: float | None = None,
    batch_size: int | None = None,
) -> Shard:
    """Samples of a data set on this rank.

    Args:
        job: For the dtype and, where they are not given, batch size and memory.
        device: Where batches are wanted.
        dataset: The data set.
        indices: Its samples in use, (n,); None: all.
        memory: Bytes that it may take; None: the job's budget.
        batch_size: Samples of a batch; None: the job's.

    Returns:
        The samples.
    """
    return Shard(
        dataset,
        np.arange(len(dataset)) if indices is None else indices,
        batch_size=batch_size or job.compute.batch_size,
        device=device,
        dtype=DTYPES[job.compute.dtype],
        memory=job.compute.data_gib * 2**30 if memory is None else memory,
        workers=job.compute.workers,
        collate=find_collate(job.data.collate),
        quiet=True,  # the job's own samples were read before, and what there is to say was said
    )


class Alone:
    """A network of the job, its minibatches and its loss.

    Args:
        job: The job.
        workload: Loss and data.
        device: Of this rank.
        seed: Of the initial parameters and the shuffling.
        samples: Those that minibatches are drawn from.

    Raises:
        InputError: The model, the loss and the data do not fit together.
    """

    def __init__(
        self, job: Job, workload: Workload, device: torch.device, seed: int, samples: Shard
    ) -> None:
        initialise(seed)
        built = build_model(job.model.factory, job.model.arguments)
        self.model: nn.Module = built.to(device, DTYPES[job.compute.dtype]).eval()
        self.loss: Loss = as_summed_loss(workload.loss, self.model, samples.head(3))
        self.l2 = job.loss.l2
        self._samples = samples
        self._draw = minibatches(samples.num_samples, job.training.batch_size, seed)

    def local(self, samples: Shard, model: nn.Module | None = None) -> LocalLoss:
        """The loss over some samples, of this network or of one like it."""
        used = self.model if model is None else model
        return LocalLoss(used, self.loss, samples, Parameters(used))

    def minibatch(self) -> Tensor:
        """The mean loss over the next minibatch, the penalty included, with its graph.

        Returns:
            A scalar.

        Raises:
            NumericalError: The loss is not finite.
        """
        batch = self._samples.fetch(next(self._draw).tolist())
        self.model.train()
        value, weight = checked_loss(self.loss, self.model, batch, "a minibatch")
        self.model.eval()
        value = value / (weight or 1.0) + penalty(self.model, self.l2)
        if not bool(torch.isfinite(value)):
            raise NumericalError("the loss of a minibatch is not finite")
        return value

    def backward(self) -> None:
        """Put the gradient of the next minibatch into the parameters.

        Raises:
            NumericalError: The loss is not finite.
        """
        value = self.minibatch()
        self.model.zero_grad()
        torch.autograd.backward(value)


# -- what predictions are worth --------------------------------------------------------------


@torch.no_grad()
def judged(
    loss: Loss, models: Sequence[Callable[[], nn.Module]], samples: Shard
) -> tuple[float, float]:
    """Loss and accuracy of a network, or of the mean prediction of several.

    Of a cross entropy class probabilities are averaged, of other losses outputs.

    Args:
        loss: The loss; with several networks one of (outputs, targets).
        models: Each puts a network together, one after the other.
        samples: What is predicted.

    Returns:
        The mean loss without a penalty, and the share of samples whose label has the largest
        output; NaN where targets are no labels, or the loss is a callable of (model, batch).
    """
    if not isinstance(loss, CriterionLoss):
        local = LocalLoss(model := models[0](), loss, samples, Parameters(model))
        total, weight = local.loss_sum()
        return total / weight, float("nan")
    of_classes = _is_cross_entropy(loss)
    means: dict[int, Tensor] = {}
    for make in models:
        model = make()
        for number, (inputs, _) in samples.batches():
            outputs = model(inputs)
            if of_classes and len(models) > 1:
                outputs = outputs.softmax(1)
            means[number] = means.get(number, 0) + outputs / len(models)
    total, weight, right, count, labelled = 0.0, 0.0, 0, 0, True
    for number, (_, targets) in samples.batches():
        outputs = means[number].log() if of_classes and len(models) > 1 else means[number]
        total += float(loss.total(outputs, targets))
        weight += loss.weight(targets)
        count += batch_length(targets)
        labelled &= targets.ndim == 1 and not targets.is_floating_point() and outputs.ndim == 2
        right += int((outputs.argmax(1) == targets).sum()) if labelled else 0
    return total / weight, right / count if labelled else float("nan")


def _is_cross_entropy(loss: CriterionLoss) -> bool:
    return loss.name == "cross_entropy"


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
