"""The metric of a job at a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hessdist.config.job import Job
from hessdist.curvature.metric import (
    Asked,
    Description,
    Metric,
    bound_without_metric,
    diagonal_metric,
    optimizer_metric,
)
from hessdist.objective import Objective


def metric_at(
    job: Job, objective: Objective, content: Mapping[str, Any], path: Path
) -> tuple[Metric | None, Description]:
    """Read the metric that a job asks for. On rank 0 alone, not collective.

    Args:
        job: The job.
        objective: The loss over the ranks.
        content: The content of the checkpoint.
        path: The path of the checkpoint.

    Returns:
        The metric, None without one, and what results say of it. Without a metric, that is the
        bound on the eigenvalues of H itself, as far as it is known.

    Raises:
        CheckpointError: The metric is missing, is of another model, or is not positive.
        JobError: Its file cannot be read.
    """
    wanted, layout = job.spectrum, objective.layout
    if wanted.metric == "diagonal":
        assert wanted.metric_file is not None
        metric = diagonal_metric(wanted.metric_file, layout)
        return metric, metric.description
    model = objective.model if objective.spread is None else objective.spread.skeleton
    asked = Asked(wanted.operator, wanted.layers, job.loss.l2)
    if wanted.metric == "optimizer":
        metric = optimizer_metric(content, path, model, layout, asked)
        return metric, metric.description
    return None, Description(bound=bound_without_metric(content, path, model, layout, asked))
