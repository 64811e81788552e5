"""Networks of a job that single ranks train, one or many at once. Nothing is collective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.config.job import Job
from hessdist.curvature.additivity import prove_additive
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.second_derivative import prove_product
from hessdist.errors import NumericalError, WorkloadError
from hessdist.objective import DTYPES, Workload
from hessdist.optimizers.ensemble import Ensemble
from hessdist.optimizers.training import initialise, mean_loss, minibatches
from hessdist.studies.context import Context
from hessdist.workload.datasets import MapDataset
from hessdist.workload.losses import CriterionLoss, Loss, as_summed_loss
from hessdist.workload.models import build_model
from hessdist.workload.nestings import batch_length
from hessdist.workload.shard import Shard


def whole_on_rank(
    context: Context,
    dataset: MapDataset,
    indices: NDArray[np.int64] | None = None,
    *,
    memory: float | None = None,
    batch_size: int | None = None,
) -> Shard:
    """Make a shard that has all samples in use, on this rank.

    Args:
        context: The job, and the device.
        dataset: The data set.
        indices: The samples in use, (n,); all when None.
        memory: The bytes that the samples may take; the budget of the job when None.
        batch_size: The samples of a batch; that of the job when None.

    Returns:
        The shard.
    """
    compute = context.job.compute
    return Shard(
        dataset,
        np.arange(len(dataset)) if indices is None else indices,
        batch_size=batch_size or compute.batch_size,
        device=context.objective.device,
        dtype=DTYPES[compute.dtype],
        memory=compute.data_gib * 2**30 if memory is None else memory,
        workers=compute.workers,
        collate=context.workload.collate,
        quiet=True,  # the objective has read the job's samples, and logged its warnings
    )


def loss_over_job(context: Context, model: nn.Module) -> LocalLoss:
    """Prepare the loss of a network over all samples of the job, on this rank.

    Args:
        context: The job, its loss and samples, and the device.
        model: The network, which is moved to the device.

    Returns:
        The loss, in all parameters of the network.
    """
    workload = context.workload
    model = model.to(context.objective.device, DTYPES[context.job.compute.dtype]).eval()
    shard = whole_on_rank(context, workload.dataset, workload.indices)
    loss = as_summed_loss(workload.loss, model, shard.head(3))
    return LocalLoss(model, loss, shard, Parameters(model), context.ranks.rank)


def ensemble_of(context: Context, model: nn.Module, workload: Workload) -> Ensemble:
    """Prepare networks of an architecture, with all samples of a workload on this rank.

    Returns:
        Their losses, for many networks at once.

    Raises:
        WorkloadError: The loss is a callable of (model, batch).
    """
    device, dtype = context.objective.device, DTYPES[context.job.compute.dtype]
    samples = len(workload.indices)
    shard = whole_on_rank(context, workload.dataset, workload.indices, memory=0, batch_size=samples)
    inputs, targets = shard.head(samples)
    loss = as_summed_loss(workload.loss, model.to(device, dtype).eval(), shard.head(3))
    if not isinstance(loss, CriterionLoss):
        raise WorkloadError(
            "networks trained many at once need a loss of (outputs, targets), and this one takes "
            "(model, batch)",
            "use a criterion, such as cross_entropy",
        )
    local = LocalLoss(model, loss, shard, Parameters(model))
    prove_additive(local, None)
    prove_product(local, "hessian")
    return Ensemble(model, loss, inputs, targets)


def build_network(job: Job) -> nn.Module:
    """Build the model of a job. Its parameters follow the seed of PyTorch."""
    return build_model(job.model.factory, job.model.arguments)


class Trainer:
    """A network of the job, its loss and its minibatches.

    Args:
        context: The job, the loss and the device.
        seed: The seed of the initial parameters and of the shuffling.
        samples: The samples that minibatches are drawn from.

    Raises:
        InputError: The model, the loss and the data do not fit together.
    """

    def __init__(self, context: Context, seed: int, samples: Shard) -> None:
        job = context.job
        initialise(seed)
        model = build_network(job).to(context.objective.device, DTYPES[job.compute.dtype])
        self.model: nn.Module = model.eval()
        self.loss: Loss = as_summed_loss(context.workload.loss, self.model, samples.head(3))
        self.l2 = job.loss.l2
        self._samples = samples
        self._minibatches = minibatches(samples.num_samples, job.training.batch_size, seed)

    def loss_over(self, samples: Shard, model: nn.Module | None = None) -> LocalLoss:
        """Return the loss over other samples, of this network or of one of the same kind."""
        used = self.model if model is None else model
        return LocalLoss(used, self.loss, samples, Parameters(used))

    def minibatch_loss(self) -> Tensor:
        """Compute the mean loss over the next minibatch, with the penalty and the graph.

        Returns:
            A scalar.

        Raises:
            NumericalError: The loss is not finite.
        """
        batch = self._samples.fetch(next(self._minibatches).tolist())
        self.model.train()
        value = mean_loss(self.loss, self.model, batch, self.l2, "a minibatch")
        self.model.eval()
        if not bool(torch.isfinite(value)):
            raise NumericalError("the loss of a minibatch is not finite")
        return value

    def backward(self) -> None:
        """Put the gradient of the next minibatch into the parameters.

        Raises:
            NumericalError: The loss is not finite.
        """
        value = self.minibatch_loss()
        self.model.zero_grad()
        torch.autograd.backward(value)


# -- loss and accuracy of predictions --------------------------------------------------------


@torch.no_grad()
def loss_and_accuracy(
    loss: Loss, models: Sequence[Callable[[], nn.Module]], samples: Shard
) -> tuple[float, float]:
    """Compute the loss and the accuracy of a network, or of the mean prediction of several.

    With a cross entropy, the mean is over class probabilities, and otherwise over outputs.

    Args:
        loss: The loss. For several networks it has to be a criterion of (outputs, targets).
        models: Functions that return the networks, and are called one after the other.
        samples: The samples.

    Returns:
        The mean loss without a penalty, and the share of samples whose label has the largest
        output. The share is NaN if targets are not labels, or if the loss is a callable of
        (model, batch).
    """
    if not isinstance(loss, CriterionLoss):
        local = LocalLoss(model := models[0](), loss, samples, Parameters(model))
        total, weight = local.loss_sum()
        return total / weight, float("nan")
    averages_classes = loss.name == "cross_entropy" and len(models) > 1
    means: dict[int, Tensor] = {}
    for make in models:
        model = make()
        for number, (inputs, _) in samples.batches():
            outputs = model(inputs)
            if averages_classes:
                outputs = outputs.softmax(1)
            means[number] = means.get(number, 0) + outputs / len(models)
    total, weight, correct, count, labelled = 0.0, 0.0, 0, 0, True
    for number, (_, targets) in samples.batches():
        outputs = means[number].log() if averages_classes else means[number]
        total += float(loss.total(outputs, targets))
        weight += loss.weight(targets)
        count += batch_length(targets)
        labelled &= targets.ndim == 1 and not targets.is_floating_point() and outputs.ndim == 2
        correct += int((outputs.argmax(1) == targets).sum()) if labelled else 0
    return total / weight, correct / count if labelled else float("nan")


def mlp_of_widths(job: Job, hidden: Sequence[int], section: str, **arguments: Any) -> nn.Module:
    """Build the job's mlp with other hidden layers.

    Args:
        job: The job, whose model is an mlp.
        hidden: The widths of the hidden layers.
        section: The name of the study, for messages.
        arguments: Arguments of the mlp that replace those of the job.

    Returns:
        The network, newly initialised.

    Raises:
        WorkloadError: The model is not an mlp, or cannot be built.
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
            f"model.arguments.widths = {list(widths)} does not name inputs and outputs",
            "give at least two numbers",
        )
    given = {**job.model.arguments, "widths": [widths[0], *hidden, widths[-1]], **arguments}
    return build_model("mlp", given)
