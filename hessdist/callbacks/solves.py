"""Solves in place, on the trainer's own processes, into a file like that of `hessdist spectrum`."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hessdist.api import borrowed_objective
from hessdist.callbacks.description import job_text
from hessdist.callbacks.result_place import claim_place
from hessdist.callbacks.trained import (
    HasState,
    NamedOptimizer,
    full_precision,
    plain_model,
    require_replicas,
)
from hessdist.config.job import Job
from hessdist.config.loader import parse_job
from hessdist.objective import Objective, Operator
from hessdist.parallel.crew import MpiCrew, TorchCrew, solving_crew
from hessdist.parallel.ranks import import_mpi
from hessdist.service.locks import Lock
from hessdist.service.samples import require_samples_of_before
from hessdist.service.scaling import metric_at
from hessdist.service.storing import RunStore
from hessdist.spectrum.memory_plan import reserved_bytes
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import eigenpairs_as
from hessdist.workload.datasets import count_samples, require_map_style
from hessdist.workload.steps import Checkpoint

if TYPE_CHECKING:
    from mpi4py import MPI

    from hessdist.workload.collate import Collate
    from hessdist.workload.datasets import MapDataset
    from hessdist.workload.losses import AnyLoss

_log = logging.getLogger("hessdist")


@dataclass(eq=False)
class Solves:
    """Computes extreme eigenpairs over a whole data set, of a copy of the model in `eval()` mode.

    The ranks of MPI solve together, each with its share of the samples. Where the trainer has
    torch.distributed without MPI, as under torchrun, rank 0 solves alone, with the same result, and
    the others wait for it. Fields that `hessdist.extreme_eigenpairs` has as arguments are the same.

    The network is evaluated in the precision of its parameters, without autocast; those in half
    precision are converted to float32.
    """

    path: str | os.PathLike[str]
    """The HDF5 file of the results, one for a training."""
    loss: AnyLoss
    dataset: MapDataset
    """The samples, without random augmentation: the data set is the same at every solve."""
    largest: int = 20
    smallest: int = 3
    tolerance: float = 1e-3
    operator: Operator = "hessian"
    metric: Literal["none", "optimizer"] = "none"
    """Whether eigenpairs are those of H v = λ P v, with P of the optimiser."""
    layers: Sequence[str] = ()
    l2: float = 0.0
    eigenvectors: bool = True
    seed: int = 0
    batch_size: int = 256
    batch_tokens: int | None = 8192
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cache_gib: float = 4.0
    data_gib: float = 8.0
    memory_gib: float | None = None
    collate: Collate | None = None
    comm: MPI.Comm | None = None
    _lock: Lock | None = field(default=None, init=False, repr=False)

    def crew(self) -> MpiCrew | TorchCrew:
        """Find the processes of the trainer. Collective."""
        return solving_crew(self.comm)

    def prepare(self, crew: MpiCrew | TorchCrew, model: nn.Module, step: int) -> None:
        """Check the settings, the model and the place of the result. Collective.

        Args:
            crew: The processes.
            model: The model.
            step: The first step of this process.

        Raises:
            OutputError: The file cannot be written, or has another result.
            InputError: The settings do not fit.
        """
        require_replicas(crew, model)

        def check() -> None:
            require_map_style(self.dataset)
            count_samples(self.dataset)
            job, _ = self._job(plain_model(model))
            if self._lock is not None:
                self._lock.release()  # of an earlier training in this process
            self._lock = claim_place(job, step)
            if self._lock is not None:
                weakref.finalize(self, self._lock.release)

        crew.lead(check)

    def act(
        self,
        crew: MpiCrew | TorchCrew,
        model: nn.Module,
        optimizer: HasState | None,
        step: int,
    ) -> bool:
        """Solve once, and store the result. Collective.

        Args:
            crew: The processes.
            model: The model.
            optimizer: Its optimiser; None: the bound on its steps is unknown.
            step: The step.

        Returns:
            False if an optimiser is the metric, and has made no step.

        Raises:
            HessdistError: The solve is not possible; on every process.
        """
        if self.metric == "optimizer" and step == 0:
            return False
        require_replicas(crew, model)
        inner = plain_model(model)
        if isinstance(crew, TorchCrew):
            crew.lead(lambda: self._solve(import_mpi().COMM_SELF, inner, optimizer, step))
            return True
        try:
            self._solve(crew.ranks.comm, inner, optimizer, step)
        except BaseException as error:
            if crew.size > 1 and not getattr(error, "agreed", False):
                crew.ranks.abort(error)  # the other ranks wait in the solve
            raise
        return True

    def _solve(
        self, comm: MPI.Comm, model: nn.Module, optimizer: HasState | None, step: int
    ) -> None:
        job, text = self._job(model)
        compute = {
            "device": self.device,
            "batch_size": self.batch_size,
            "batch_tokens": self.batch_tokens,
            "cache_gib": self.cache_gib,
            "data_gib": self.data_gib,
            "memory_gib": self.memory_gib,
        }
        state = {} if optimizer is None else NamedOptimizer(optimizer, model).state_dict()
        with (
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            full_precision(model) as precise,
            borrowed_objective(
                comm,
                precise,
                self.loss,
                self.dataset,
                compute,
                self.l2,
                self.layers,
                self.collate,
                job=job.determining(),
            ) as objective,
        ):
            _solve_and_store(objective, job, text, {"optimizer": state} if state else {}, step)

    def _job(self, model: nn.Module) -> tuple[Job, str]:
        """Return the job that describes this, and its text."""
        dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
        text = job_text(
            model,
            self.loss,
            self.dataset,
            os.fspath(self.path),
            l2=self.l2,
            spectrum={
                "operator": self.operator,
                "largest": self.largest,
                "smallest": self.smallest,
                "tolerance": self.tolerance,
                "eigenvectors": self.eigenvectors,
                "metric": self.metric,
                "layers": list(self.layers),
                "seed": self.seed,
            },
            compute={"dtype": "float64" if dtypes == {"float64"} else "float32"},
        )
        return parse_job(text, "hessdist.callbacks.Solves")


def _solve_and_store(
    objective: Objective, job: Job, text: str, content: dict[str, Any], step: int
) -> None:
    """Solve at the parameters that a loss has, and write the file of the step. Collective."""
    ranks, wanted = objective.ranks, job.spectrum
    at = Checkpoint(step, Path(f"step {step} of the trainer"))
    require_samples_of_before(ranks, job, objective.sample_digests)
    metric, about = None, None
    with ranks.agreeing():
        if ranks.is_root:
            metric, about = metric_at(job, objective, content, at.path)
    objective.measure_by(metric, about)
    here = objective.evaluate()
    reserved = reserved_bytes(objective, wanted.largest + wanted.smallest)
    shell = curvature_matrix(objective, wanted.operator, here.weight, reserved=reserved)
    pairs = eigenpairs_as(wanted, shell)
    if not pairs.converged and ranks.is_root:
        _log.warning("step %d: not all eigenpairs converged: %s", step, pairs.outcome.value)
    store = RunStore(job, text, ranks, objective, ranks.size, keep_index=False)
    store.write(at, objective.digest(), objective.metric, here, pairs, 0)
    with ranks.agreeing():
        if ranks.is_root:
            store.publish()
