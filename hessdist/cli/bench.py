"""What a solve will cost here: seconds of its parts, products to both ends, memory, scaling.

Measured on the job's own model and samples before a long run is submitted. Times are medians over
repetitions in which what is compared takes turns; a time is that of the slowest rank.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist import __version__
from hessdist.config.job import Job
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.products import LocalProduct, finite_difference
from hessdist.errors import InputError, OutputError
from hessdist.objective import Objective, Workload, library_versions
from hessdist.studies.context import eigenpairs_as
from hessdist.parallel.memory import peak_bytes
from hessdist.parallel.ranks import Ranks, set_threads
from hessdist.service.console import Console
from hessdist.spectrum import petsc
from hessdist.spectrum.krylov_schur import basis_sizes
from hessdist.spectrum.shell import ShellMatrix
from hessdist.spectrum.start import random_entries
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.steps import Checkpoint, find_checkpoints


@dataclass(frozen=True)
class Seconds:
    """Repeated times of one thing, on the slowest rank."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.4g} s ({self.least:.4g} to {self.most:.4g})"


@dataclass(frozen=True)
class Kept:
    """The graphs that one rank keeps."""

    batches: int
    kept_batches: int
    bytes: int


@dataclass(frozen=True)
class Solve:
    """Both ends, at the tolerance of the job."""

    largest: int
    smallest: int
    tolerance: float
    converged: bool
    products: int
    restarts: int
    seconds: float  # with the building of the kept graphs
    gradients: float  # the same, in gradients
    seconds_graphs: float  # building the kept graphs
    seconds_gather: float
    seconds_product: float
    seconds_reduction: float
    seconds_algebra: float  # all that is none of these
    seconds_algebra_a_step: float
    algebra_share: float  # of the whole


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    peak: int  # of the process
    basis: int  # the Krylov basis: (ncv + 1) d / P scalars
    recorded: int  # products kept for the residuals


@dataclass(frozen=True)
class Scaling:
    """A gradient and a product on the first ranks, the others waiting."""

    ranks: int
    samples: int  # over all of these ranks
    gradient: Seconds
    product: Seconds
    efficiency: float  # of the product, against one rank


@dataclass(frozen=True)
class Bench:
    """All that was measured; `hessdist bench` writes it as JSON."""

    job: str
    checkpoint: str  # "initial parameters" where the job has none yet
    num_parameters: int
    num_samples: int
    ranks: int
    threads: int  # a rank
    device: str
    dtype: str
    batch_size: int
    software_version: str
    versions: dict[str, str]
    gradient: Seconds
    products: dict[str, Seconds]  # "kept", "rebuilt", "finite difference"
    product_in_gradients: dict[str, float]
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
    """Measure. Collective.

    Args:
        job: The job.
        ranks: The ranks.
        console: Where it is told.
        step: The checkpoint; the last one when None, the initial parameters where there is none.
        repeat: Repetitions of gradient and products.
        solve: Whether both ends are solved for.
        path: Where the JSON goes; beside the job's result when None.
        options: PETSc's options.

    Returns:
        What was measured, the same on every rank.

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
            _write(target, "{}\n")
        workload = Workload.of(job)
    petsc.initialise(options)
    for line in petsc.ineffective_options(options):
        console.line(line)
    objective = workload.on(ranks, job)
    threads = torch.get_num_threads()
    _load(objective, checkpoint, job)
    name = "initial parameters" if checkpoint is None else checkpoint.path.name
    console.line(
        f"{job.name}, {name}: {objective.layout.size:,} parameters, {len(workload.indices):,} "
        f"samples, {_count(ranks.size, 'rank')} on {objective.device.type} with "
        f"{_count(threads, 'thread')}"
    )
    objective.evaluate()  # refuses what cannot be solved
    gradient, products, kept = _time_products(job, objective, repeat)
    ratios = {form: each.median / gradient.median for form, each in products.items()}
    console.line(f"{'gradient':18} {gradient}")
    for form, each in products.items():
        console.line(f"{form:18} {each}, {ratios[form]:.2f} gradients")
    console.line(
        f"kept graphs: {sum(k.kept_batches for k in kept)} of {sum(k.batches for k in kept)} "
        f"batches, at most {_gib(k.bytes for k in kept)} a rank"
    )
    solved = _solve(job, objective, gradient, console) if solve else None
    memory = ranks.collect(_memory(job, objective, solved))
    console.line(
        f"memory: at most {_gib(m.peak for m in memory)} a rank, of which the Krylov basis is "
        f"{_gib(m.basis for m in memory)} and recorded products {_gib(m.recorded for m in memory)}"
    )
    result = Bench(
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
        kept=kept,
        solve=solved,
        memory=memory,
        strong=_scaling("strong", job, workload, ranks, threads, repeat, console),
        weak=_scaling("weak", job, workload, ranks, threads, repeat, console),
    )
    with ranks.agreeing():
        if ranks.is_root:
            _write(target, json.dumps(asdict(result), indent=2) + "\n")
    console.line(f"written: {target}")
    return result


def _checkpoint(job: Job, step: int | None) -> Checkpoint | None:
    """The checkpoint to measure at; None for the initial parameters."""
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


def _load(objective: Objective, checkpoint: Checkpoint | None, job: Job) -> None:
    """Give every rank the parameters of the checkpoint, or those that rank 0 has drawn."""

    def read(model: nn.Module) -> None:
        if checkpoint is not None:
            place = job.checkpoints.place()
            load_into(model, read_whole(checkpoint.path), checkpoint.path, **place)

    objective.load(read)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror})", "name another file with --json"
        ) from error


# -- gradient and products -------------------------------------------------------------------


class _Differences:
    """Hv by central differences, in the place of an exact product."""

    def __init__(self, local: LocalLoss) -> None:
        self.local = local
        self.size, self.dtype, self.device = local.parameters.layout.size, local.dtype, local.device

    def __call__(self, v: Tensor) -> Tensor:
        return finite_difference(self.local, v)


def _time_products(
    job: Job, objective: Objective, repeat: int
) -> tuple[Seconds, dict[str, Seconds], list[Kept]]:
    """A gradient, the product in its forms, and what is kept for the first. Collective."""
    ranks, operator = objective.ranks, job.spectrum.operator
    with ranks.agreeing():
        keeping = LocalProduct(objective.local, operator, job.compute.cache_gib * 2**30)
        forms = {"kept": keeping, "rebuilt": LocalProduct(objective.local, operator, 0)}
    shells = {name: ShellMatrix(local, ranks) for name, local in forms.items()}
    if operator == "hessian":
        shells["finite difference"] = ShellMatrix(_Differences(objective.local), ranks)
    x = _entries(objective)
    ways: dict[str, Callable[[], object]] = {"gradient": lambda: _gradient(objective)}
    ways |= {name: partial(shell.apply, x) for name, shell in shells.items()}
    seconds = _turns(ranks, ways, repeat)
    kept = Kept(len(objective.local.shard), keeping.kept_batches, keeping.kept_bytes)
    return seconds.pop("gradient"), seconds, ranks.collect(kept)


def _entries(objective: Objective) -> NDArray[np.float64]:
    """This rank's entries of a random unit vector, near enough."""
    size = objective.layout.size
    entries = random_entries(0, *objective.ranks.shard(size))
    entries /= np.sqrt(size)
    return entries


def _gradient(objective: Objective) -> None:
    """The gradient over all samples, as a product is assembled. Collective."""
    whole = objective.local.loss_and_gradient().gradient.to(objective.local.dtype).cpu().numpy()
    begin, end = objective.ranks.shard(objective.layout.size)
    objective.ranks.reduce_scatter(whole, np.empty(end - begin, whole.dtype))


def _turns(
    ranks: Ranks, ways: Mapping[str, Callable[[], object]], repeat: int
) -> dict[str, Seconds]:
    """Time things that take turns, so that other work on the machine meets them alike. Collective.

    Returns:
        By name; a time is the slowest rank's, and the first turn, which warms up, does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeat + 1):
        for name, work in ways.items():
            ranks.comm.Barrier()
            start = time.perf_counter()
            work()
            if turn:
                taken[name].append(time.perf_counter() - start)
    everyone = ranks.collect(taken)
    slowest = {name: np.max([one[name] for one in everyone], axis=0) for name in ways}
    return {
        name: Seconds(float(np.median(each)), float(each.min()), float(each.max()))
        for name, each in slowest.items()
    }


# -- a solve ---------------------------------------------------------------------------------


def _solve(job: Job, objective: Objective, gradient: Seconds, console: Console) -> Solve:
    """Both ends, and where the time goes. Collective."""
    wanted = job.spectrum
    start = time.perf_counter()
    shell = objective.shell(wanted.operator, objective.weight())
    graphs = time.perf_counter() - start
    pairs = eigenpairs_as(wanted, shell)
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
    console.line(
        f"both ends, LA({solve.largest}) and SA({solve.smallest}) to {solve.tolerance:g}: "
        f"{solve.products} products, {solve.restarts} cycles, {solve.seconds:.4g} s = "
        f"{solve.gradients:.0f} gradients{'' if solve.converged else ', NOT converged'}"
    )
    console.line(
        f"  graphs {solve.seconds_graphs:.3g} s, gather {solve.seconds_gather:.3g} s, product "
        f"{solve.seconds_product:.4g} s, reduction {solve.seconds_reduction:.3g} s, algebra "
        f"{solve.seconds_algebra:.3g} s ({solve.algebra_share:.1%}; "
        f"{solve.seconds_algebra_a_step:.3g} s a step)"
    )
    return solve


def _memory(job: Job, objective: Objective, solved: Solve | None) -> Memory:
    begin, end = objective.ranks.shard(objective.layout.size)
    wanted = min(job.spectrum.largest + job.spectrum.smallest, objective.layout.size)
    vectors = petsc.integer_option("eps_ncv", basis_sizes(wanted, objective.layout.size)[1])
    recorded = solved.products if solved and job.spectrum.residuals == "recorded" else 0
    recorded = min(recorded, 2 * vectors)
    return Memory(
        peak=peak_bytes(),
        basis=(vectors + 1) * (end - begin) * petsc.scalar_bytes(),
        recorded=recorded * (end - begin) * objective.local.dtype.itemsize,
    )


# -- scaling ---------------------------------------------------------------------------------


def _scaling(
    kind: str,
    job: Job,
    workload: Workload,
    ranks: Ranks,
    threads: int,
    repeat: int,
    console: Console,
) -> list[Scaling]:
    """A product on 1, 2, 4, ... of the ranks. Collective."""
    counts = sorted({2**power for power in range(ranks.size.bit_length())} | {ranks.size})
    found: list[Scaling] = []
    console.line(f"{kind} scaling:")
    for count in [count for count in counts if count <= ranks.size]:
        share = len(workload.indices) * count // ranks.size if kind == "weak" else None
        gradient, product = _on_first(ranks, count, job, workload, share, threads, repeat)
        one = found[0].product.median if found else product.median
        ideal = one / count if kind == "strong" else one
        samples = len(workload.indices[:share])
        found.append(Scaling(count, samples, gradient, product, ideal / product.median))
        console.line(
            f"  {_count(count, 'rank')}, {samples:,} samples: gradient {gradient.median:.4g} s, "
            f"product {product}, efficiency {found[-1].efficiency:.0%}"
        )
    return found


def _on_first(
    ranks: Ranks,
    count: int,
    job: Job,
    workload: Workload,
    share: int | None,
    threads: int,
    repeat: int,
) -> tuple[Seconds, Seconds]:
    """Gradient and kept product on the first `count` ranks. Collective over all of them."""
    failure: Exception | None = None
    seconds: dict[str, Seconds] = {}
    some = ranks.first(count)
    if some is not None:
        try:
            objective = workload.on(some, job, workload.indices[:share])
            set_threads(threads)  # as many a rank as when all of them work
            shell = objective.shell(job.spectrum.operator, 1)
            x = _entries(objective)
            ways = {"gradient": lambda: _gradient(objective), "product": lambda: shell.apply(x)}
            seconds = _turns(some, ways, repeat)
        except Exception as error:
            if not getattr(error, "agreed", False):
                ranks.abort(error)
            failure = error
    ranks.wait()
    with ranks.agreeing():
        if failure is not None:
            raise failure
    seconds = ranks.broadcast(seconds)
    return seconds["gradient"], seconds["product"]


# -- words -----------------------------------------------------------------------------------


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _gib(sizes: Iterable[int]) -> str:
    return f"{max(sizes) / 2**30:.2f} GiB"
