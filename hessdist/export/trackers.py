"""A result as a run of W&B or MLflow, in their own local files; nothing is sent anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessdist.errors import HessdistError, OutputError
from hessdist.export.points import folder_name, points_of
from hessdist.printable import printable
from hessdist.results.files import unwritable
from hessdist.studies.shows import histograms
from hessdist.workload.optional import import_library

if TYPE_CHECKING:
    from hessdist.config.job import Job
    from hessdist.results.reader import Run

PROJECT = "hessdist"
"""The project of W&B, and the experiment of MLflow."""


def write_wandb(run: Run, job: Job, folder: Path, option: str) -> Iterator[Path]:
    """Write a run of W&B in its offline mode.

    Args:
        run: The run.
        job: Its job.
        folder: The folder for all files.
        option: The option that names the folder, for messages.

    Yields:
        The folder of the run of W&B.

    Raises:
        DependencyError: The package wandb cannot be imported.
        OutputError: wandb cannot write the run.
    """
    wandb = import_library("wandb", "")
    steps: dict[int, dict[str, Any]] = {
        point.step: {printable(name): value for name, value in point.scalars.items()}
        for point in points_of(run, job)
    }
    for found in histograms(run):
        counts = wandb.Histogram(np_histogram=(found.counts.tolist(), found.edges.tolist()))
        steps.setdefault(found.step, {})[printable(found.name)] = counts
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tracked = wandb.init(
            project=PROJECT,
            name=printable(job.name),
            dir=str(folder),
            config=_facts(run, job),
            mode="offline",
            settings=wandb.Settings(silent=True, console="off"),
        )
        for step in sorted(steps):
            tracked.log(steps[step], step=step)
        tracked.finish()
    except Exception as error:
        failure = _failed("W&B", folder, error, option)
        raise failure from error
    yield Path(tracked.dir).parent


def write_mlflow(run: Run, job: Job, folder: Path, option: str) -> Iterator[Path]:
    """Write a run into a file store of MLflow.

    MLflow has no histograms of its own, so those of whole spectra are left out.

    Args:
        run: The run.
        job: Its job.
        folder: The folder for all files.
        option: The option that names the folder, for messages.

    Yields:
        The folder of the store.

    Raises:
        DependencyError: The package mlflow cannot be imported.
        OutputError: mlflow cannot write the run.
    """
    mlflow = import_library("mlflow", "")
    metric = import_library("mlflow.entities", "").Metric
    store = folder / "mlruns"
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        client = mlflow.MlflowClient(tracking_uri=store.resolve().as_uri())
        known = client.get_experiment_by_name(PROJECT)
        experiment = client.create_experiment(PROJECT) if known is None else known.experiment_id
        identity = client.create_run(experiment, run_name=printable(job.name)).info.run_id
        for name, value in _facts(run, job).items():
            client.log_param(identity, name, value)
        for point in points_of(run, job):
            metrics = [
                metric(printable(name), value, int(1000 * point.time), point.step)
                for name, value in point.scalars.items()
            ]
            for first in range(0, len(metrics), 500):  # MLflow takes 1,000 at once
                client.log_batch(identity, metrics=metrics[first : first + 500])
        client.set_terminated(identity)
    except Exception as error:
        failure = _failed("MLflow", store, error, option)
        raise failure from error
    yield store


def _facts(run: Run, job: Job) -> dict[str, Any]:
    """Return what says which result it is."""
    return {
        "result": folder_name(run.path),
        "fingerprint": printable(run.fingerprint),
        "operator": job.spectrum.operator,
        "metric": printable(run.metric),
        "num_parameters": run.num_parameters,
        "num_samples": run.num_samples,
    }


def _failed(program: str, place: Path, error: Exception, option: str) -> HessdistError:
    """Make the error for whatever another program raises while it writes."""
    if isinstance(error, HessdistError):
        return error
    if isinstance(error, OSError):
        return unwritable(place, error, option)
    said = " ".join(str(error).split())[:200]
    return OutputError(f"{program} cannot write to {place} ({said})", f"change {option}")
