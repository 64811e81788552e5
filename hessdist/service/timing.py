"""Wall times of a gradient and of products, on all ranks and on some of them.

Things to compare are timed in turns, so that other work on the machine affects them alike. A time
is that of the slowest rank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.config.job import Job
from hessdist.curvature.differenced import CentralProduct
from hessdist.curvature.products import LocalProduct, graph_bytes
from hessdist.curvature.recomputation import recomputing, repeated_blocks
from hessdist.objective import Objective, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.shell import LocalOperator, ShellMatrix, curvature_matrix
from hessdist.spectrum.start import random_entries

BY_BLOCK = "recomputed by block"


@dataclass(frozen=True)
class Seconds:
    """Repeated times of one thing."""

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
class Scaling:
    """A gradient and a product on the first ranks, while the others wait."""

    ranks: int
    samples: int  # over all of these ranks
    gradient: Seconds
    product: Seconds
    efficiency: float  # of the product, against one rank


class _Recomputing:
    """A product whose batches are evaluated while some blocks are computed again, or none."""

    def __init__(self, product: LocalOperator, model: nn.Module, blocks: Sequence[str]) -> None:
        self._product, self._model, self._blocks = product, model, blocks
        self.size, self.dtype, self.device = product.size, product.dtype, product.device

    def __call__(self, v: Tensor) -> Tensor:
        with recomputing(self._model, self._blocks):
            return self._product(v)


def time_products(
    job: Job, objective: Objective, repeat: int
) -> tuple[Seconds, dict[str, Seconds], list[Kept], dict[str, int]]:
    """Time a gradient, and a product in several forms, and measure their graphs. Collective.

    The forms are "kept" graphs, "rebuilt" ones, those of a network with blocks that are "recomputed
    by block", and for a Hessian a "finite difference". If the job has compute.recompute, the first
    two are those of the network without it.

    Args:
        job: The job.
        objective: The loss over all ranks.
        repeat: Number of repetitions.

    Returns:
        The gradient; the products by form; the kept graphs, by rank; the bytes that the graph of
        one batch saves at most on a rank, by form.
    """
    ranks, operator, local = objective.ranks, job.spectrum.operator, objective.local
    blocks = objective.blocks or repeated_blocks(local.model)
    blocks = [n for n in blocks if not any(n.startswith(f"{other}.") for other in blocks)]
    forms: dict[str, LocalOperator] = {}
    sizes: dict[str, int] = {}
    with ranks.agreeing():
        with recomputing(local.model, ()):
            keeping = LocalProduct(local, operator, job.compute.cache_gib * 2**30)
            sizes["kept"] = sizes["rebuilt"] = graph_bytes(local, operator)
            sizes["finite difference"] = graph_bytes(local, None)
        forms["kept"] = _Recomputing(keeping, local.model, ())
        forms["rebuilt"] = _Recomputing(LocalProduct(local, operator, 0), local.model, ())
        if blocks:
            with recomputing(local.model, blocks):
                sizes[BY_BLOCK] = graph_bytes(local, operator)
                again = LocalProduct(local, operator, job.compute.cache_gib * 2**30)
            forms[BY_BLOCK] = _Recomputing(again, local.model, blocks)
        if operator == "hessian":
            forms["finite difference"] = CentralProduct(local)
    placement = objective.placement
    # They are timed, not used: their errors are measured before a solve.
    shells = {
        name: ShellMatrix(form, ranks, placement=placement, asymmetry=math.inf)
        for name, form in forms.items()
    }
    x = _entries(objective)
    work: dict[str, Callable[[], object]] = {"gradient": lambda: _gradient(objective)}
    work |= {name: partial(shell.apply, x) for name, shell in shells.items()}
    seconds = _in_turns(ranks, work, repeat)
    kept = Kept(len(local.shard), keeping.kept_batches, keeping.kept_bytes)
    everyone = ranks.collect(sizes)
    most = {name: max(one[name] for one in everyone) for name in forms}
    return seconds.pop("gradient"), seconds, ranks.collect(kept), most


def time_scaling(
    kind: str,
    job: Job,
    workload: Workload,
    ranks: Ranks,
    repeat: int,
    line: Callable[[str], None] = lambda text: None,
) -> list[Scaling]:
    """Time a product on 1, 2, 4, ... of the ranks. Collective.

    Args:
        kind: "strong": all samples on each number of ranks; "weak": samples in proportion to it.
        job: The job.
        workload: The model, the loss and the data of the job.
        ranks: All ranks.
        repeat: Number of repetitions.
        line: Writes a line for the user.

    Returns:
        The times, by number of ranks; none if the parameters are spread.
    """
    if job.compute.shards > 1:
        return []
    counts = sorted({2**power for power in range(ranks.size.bit_length())} | {ranks.size})
    found: list[Scaling] = []
    line(f"{kind} scaling:")
    for count in [count for count in counts if count <= ranks.size]:
        share = len(workload.indices) * count // ranks.size if kind == "weak" else None
        gradient, product = _on_first(ranks, count, job, workload, share, repeat)
        one = found[0].product.median if found else product.median
        ideal = one / count if kind == "strong" else one
        samples = len(workload.indices[:share])
        found.append(Scaling(count, samples, gradient, product, ideal / product.median))
        line(
            f"  {count} rank{'s' * (count > 1)}, {samples:,} samples: gradient "
            f"{gradient.median:.4g} s, product {product}, efficiency {found[-1].efficiency:.0%}"
        )
    return found


def _on_first(
    ranks: Ranks,
    count: int,
    job: Job,
    workload: Workload,
    share: int | None,
    repeat: int,
) -> tuple[Seconds, Seconds]:
    """Time gradient and kept product on the first `count` ranks. Collective over all of them."""
    failure: BaseException | None = None
    seconds: dict[str, Seconds] = {}
    some = ranks.first(count)
    if some is not None:
        try:
            objective = workload.on(some, workload.indices[:share])
            shell = curvature_matrix(objective, job.spectrum.operator, 1)
            x = _entries(objective)
            work = {"gradient": lambda: _gradient(objective), "product": lambda: shell.apply(x)}
            seconds = _in_turns(some, work, repeat)
        except BaseException as error:
            if not getattr(error, "agreed", False):
                ranks.abort(error)
            failure = error
    ranks.wait()
    with ranks.agreeing():
        if failure is not None:
            raise failure
    seconds = ranks.broadcast(seconds)
    return seconds["gradient"], seconds["product"]


def _entries(objective: Objective) -> NDArray[np.float64]:
    """This rank's entries of a random vector of about unit norm."""
    size = objective.layout.size
    entries = random_entries(0, *objective.ranks.shard(size))
    entries /= np.sqrt(size)
    return entries


def _gradient(objective: Objective) -> None:
    """Compute the gradient over all samples, assembled like a product. Collective."""
    whole = objective.local.loss_and_gradient().gradient.to(objective.local.dtype).cpu().numpy()
    begin, end = objective.ranks.shard(objective.layout.size)
    objective.placement.reduce(whole, np.empty(end - begin, whole.dtype))


def _in_turns(
    ranks: Ranks, work: Mapping[str, Callable[[], object]], repeat: int
) -> dict[str, Seconds]:
    """Time several things in turns; the first turn, which warms up, is not counted. Collective."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeat + 1):
        for name, compute in work.items():
            ranks.comm.Barrier()
            start = time.perf_counter()
            compute()
            if turn:
                taken[name].append(time.perf_counter() - start)
    everyone = ranks.collect(taken)
    slowest = {name: np.max([one[name] for one in everyone], axis=0) for name in work}
    return {
        name: Seconds(float(np.median(each)), float(each.min()), float(each.max()))
        for name, each in slowest.items()
    }
