"""The cost of a solve on this machine, measured before a long run is submitted.

It is measured with the model and the samples of the job: times of a gradient and of products, a
solve for both ends, memory, and scaling over ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from hessdist import __version__
from hessdist.config.job import Job
from hessdist.errors import InputError
from hessdist.objective import Objective, Workload
from hessdist.parallel.memory import peak_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.results.files import write_text
from hessdist.results.outputs import Kind, require_output
from hessdist.service.console import Console
from hessdist.service.petsc_files import require_petsc_files
from hessdist.service.timing import Kept, Scaling, Seconds, time_products, time_scaling
from hessdist.service.versions import library_versions
from hessdist.service.workload import basis_vectors, with_shards, workload_of
from hessdist.spectrum import petsc
from hessdist.spectrum.memory_plan import MemoryPlan, gib, plan_solve, reserved_bytes
from hessdist.spectrum.shell import curvature_matrix
from hessdist.studies.context import eigenpairs_as
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import Checkpoint, find_checkpoints


@dataclass(frozen=True)
class Solve:
    """A solve for both ends, to the tolerance of the job."""

    largest: int
    smallest: int
    tolerance: float
    converged: bool
    products: int
    restarts: int
    seconds: float  # building the kept graphs included
    gradients: float  # the same time, in gradients
    seconds_graphs: float  # building the kept graphs
    seconds_gather: float
    seconds_product: float
    seconds_reduction: float
    seconds_algebra: float  # the rest
    seconds_algebra_a_step: float
    algebra_share: float  # of all seconds

    def lines(self) -> list[str]:
        """The solve in words."""
        return [
            f"both ends, LA({self.largest}) and SA({self.smallest}) to {self.tolerance:g}: "
            f"{self.products} products, {self.restarts} cycles, {self.seconds:.4g} s = "
            f"{self.gradients:.0f} gradients{'' if self.converged else ', NOT converged'}",
            f"  graphs {self.seconds_graphs:.3g} s, gather {self.seconds_gather:.3g} s, product "
            f"{self.seconds_product:.4g} s, reduction {self.seconds_reduction:.3g} s, algebra "
            f"{self.seconds_algebra:.3g} s ({self.algebra_share:.1%}; "
            f"{self.seconds_algebra_a_step:.3g} s a step)",
        ]


@dataclass(frozen=True)
class Memory:
    """Memory of one rank, in bytes."""

    peak: int  # of the process, after the solve
    planned: int  # of the process, for the basis that the solve came to
    budget: float  # what the plan may take in all
    basis: int  # vectors that the Krylov basis came to
    parts: dict[str, int]  # of the plan, by name


@dataclass(frozen=True)
class Bench:
    """All that was measured; `hessdist bench` writes it as JSON."""

    job: str
    checkpoint: str  # "initial parameters" if the job has none yet
    num_parameters: int
    num_samples: int
    ranks: int
    threads: int  # of each rank
    device: str
    dtype: str
    batch_size: int
    software_version: str
    versions: dict[str, str]
    gradient: Seconds
    products: dict[str, Seconds]  # "kept", "recomputed by block", "rebuilt", "finite difference"
    product_in_gradients: dict[str, float]
    graph_bytes: dict[str, int]  # that the graph of one batch saves, by form of the product
    kept: list[Kept]  # by rank
    solve: Solve | None
    memory: list[Memory]  # by rank
    strong: list[Scaling]  # all samples on some of the ranks
    weak: list[Scaling]  # samples in proportion to the ranks


def bench(
    job: Job,
    ranks: Ranks,
    console: Console,
    *,
    step: int | None = None,
    repeat: int = 5,
    solve: bool = True,
    path: Path | None = None,
    options: Sequence[str] = (),
) -> Bench:
    """Measure what a solve costs. Collective.

    Args:
        job: The job.
        ranks: The ranks.
        console: Where the figures are written.
        step: The step of the checkpoint. None: the last one, or initial parameters if there is
            none.
        repeat: Number of repetitions of gradient and products.
        solve: Whether to solve for both ends as well.
        path: The JSON file; None: next to the result of the job.
        options: PETSc's options.

    Returns:
        The figures, the same on every rank.

    Raises:
        InputError: Anything that a user can get wrong; on every rank.
    """
    target = job.output.path.with_suffix(".bench.json") if path is None else path
    with ranks.agreeing():
        if repeat < 1:
            raise InputError(f"--repeat {repeat} measures nothing", "use 1 or more")
        checkpoint = _checkpoint(job, step)
        petsc.require()
        if ranks.is_root:
            require_petsc_files(options)
        if ranks.is_root:
            require_output(target, Kind.JSON, option="--json")
            write_text(target, "{}\n", "--json")
    petsc.initialise(options)
    job = with_shards(job, ranks, basis_vectors(job), console.line)
    with ranks.agreeing():
        workload = workload_of(job)
    for line in petsc.ineffective_options(options):
        console.line(line)
    result = _measure(job, workload, ranks, console, checkpoint, repeat, solve)
    with ranks.agreeing():
        if ranks.is_root:
            write_text(target, json.dumps(asdict(result), indent=2) + "\n", "--json")
    console.line(f"written: {target}")
    return result


def _checkpoint(job: Job, step: int | None) -> Checkpoint | None:
    """The checkpoint to measure at; None for initial parameters."""
    folder, pattern = job.checkpoints.directory, job.checkpoints.pattern
    if step is None and not folder.is_dir():
        return None
    found = {checkpoint.step: checkpoint for checkpoint in find_checkpoints(folder, pattern)}
    if step is None:
        return found[max(found)]
    if step not in found:
        raise InputError(
            f"there is no checkpoint of step {step} in {folder}",
            f"use one of {', '.join(map(str, found))}",
        )
    return found[step]


def _measure(
    job: Job,
    workload: Workload,
    ranks: Ranks,
    console: Console,
    checkpoint: Checkpoint | None,
    repeat: int,
    solve: bool,
) -> Bench:
    """Measure and write the figures to the console. Collective."""
    objective = workload.on(ranks)
    threads = torch.get_num_threads()
    _load(objective, checkpoint, job)
    name = "initial parameters" if checkpoint is None else checkpoint.path.name
    console.line(
        f"{job.name}, {name}: {objective.layout.size:,} parameters, {len(workload.indices):,} "
        f"samples, {ranks.size} rank{'s' * (ranks.size > 1)} on {objective.device.type} with "
        f"{threads} thread{'s' * (threads > 1)}"
    )
    objective.evaluate()  # refuses what cannot be solved
    gradient, products, kept, sizes = time_products(job, objective, repeat)
    ratios = {form: each.median / gradient.median for form, each in products.items()}
    for line in _lines(gradient, products, ratios, kept, sizes):
        console.line(line)
    solved, memory = None, ranks.collect(Memory(peak_bytes(), 0, 0.0, 0, {}))
    if solve:
        solved, memory = _solve(job, objective, gradient, console)
        for line in solved.lines():
            console.line(line)
    console.line(_memory_line(memory))
    return Bench(
        job=job.name,
        checkpoint=name,
        num_parameters=objective.layout.size,
        num_samples=len(workload.indices),
        ranks=ranks.size,
        threads=threads,
        device=str(objective.device),
        dtype=job.compute.dtype,
        batch_size=job.compute.batch_size,
        software_version=__version__,
        versions=dict(library_versions()),
        gradient=gradient,
        products=products,
        product_in_gradients=ratios,
        graph_bytes=sizes,
        kept=kept,
        solve=solved,
        memory=memory,
        strong=time_scaling("strong", job, workload, ranks, repeat, console.line),
        weak=time_scaling("weak", job, workload, ranks, repeat, console.line),
    )


def _load(objective: Objective, checkpoint: Checkpoint | None, job: Job) -> None:
    """Load the parameters of the checkpoint, or those that rank 0 has drawn. Collective."""

    def read(model: nn.Module) -> None:
        if checkpoint is not None:
            place = job.checkpoints.place()
            load_into(
                model, read_whole(checkpoint.path, objective.maps_files), checkpoint.path, **place
            )

    objective.load(read)
    if checkpoint is None and objective.spread is not None:
        objective.spread.draw()


def _lines(
    gradient: Seconds,
    products: dict[str, Seconds],
    ratios: dict[str, float],
    kept: list[Kept],
    sizes: dict[str, int],
) -> list[str]:
    """Gradient, products and kept graphs in words."""
    return [
        f"{'gradient':19} {gradient}",
        *(
            f"{form:19} {each}, {ratios[form]:.2f} gradients, "
            f"{sizes[form] / 2**20:.3g} MiB for the graph of a batch"
            for form, each in products.items()
        ),
        f"kept graphs: {sum(k.kept_batches for k in kept)} of {sum(k.batches for k in kept)} "
        f"batches, at most {_gib(k.bytes for k in kept)} a rank",
    ]


def _solve(
    job: Job, objective: Objective, gradient: Seconds, console: Console
) -> tuple[Solve, list[Memory]]:
    """Solve for both ends, and measure the parts. Collective.

    Returns:
        The solve, and the memory of each rank.
    """
    wanted = job.spectrum
    start = time.perf_counter()
    reserved = reserved_bytes(objective, wanted.largest + wanted.smallest)
    shell = curvature_matrix(objective, wanted.operator, objective.weight(), reserved=reserved)
    graphs = time.perf_counter() - start
    plan = plan_solve(shell, wanted.largest, wanted.smallest, wanted.residuals)
    for line in _table(plan):
        console.line(line)
    pairs = eigenpairs_as(wanted, shell, plan=plan)
    seconds = time.perf_counter() - start
    parts = shell.seconds
    algebra = seconds - graphs - sum(parts.values())
    mine = Solve(
        largest=wanted.largest,
        smallest=wanted.smallest,
        tolerance=pairs.tolerance,
        converged=pairs.converged,
        products=pairs.products,
        restarts=pairs.restarts,
        seconds=seconds,
        gradients=seconds / gradient.median,
        seconds_graphs=graphs,
        seconds_gather=parts["gather"],
        seconds_product=parts["product"],
        seconds_reduction=parts["reduction"],
        seconds_algebra=algebra,
        seconds_algebra_a_step=algebra / pairs.products,
        algebra_share=algebra / seconds,
    )
    solve: Solve = objective.ranks.broadcast(mine)
    return solve, objective.ranks.collect(_memory(plan, pairs.basis, pairs.products))


def _table(plan: MemoryPlan) -> list[str]:
    """The plan of the memory in words."""
    return [
        "memory of a rank in GiB, planned:",
        *(f"  {name:14} {gib(size):>8}  {remark}".rstrip() for name, size, remark in plan.rows()),
        f"  {'at most':14} {gib(plan.total()):>8}  of {gib(plan.budget)}",
    ]


def _memory(plan: MemoryPlan, basis: int, products: int) -> Memory:
    count = basis or plan.most
    parts = {name: size for name, size, _ in plan.rows(count, products)}
    return Memory(peak_bytes(), plan.total(count, products), plan.budget, count, parts)


def _memory_line(memory: list[Memory]) -> str:
    """The measured memory in words, beside the planned one."""
    most = max(memory, key=lambda one: one.peak)
    line = f"memory: at most {gib(most.peak)} GiB a rank"
    if most.planned:
        line += (
            f", planned {gib(most.planned)} for the {most.basis} vectors that the solve came to "
            f"({most.peak / most.planned - 1:+.0%})"
        )
    return line


def _gib(sizes: Iterable[int]) -> str:
    return f"{max(sizes) / 2**30:.2f} GiB"
