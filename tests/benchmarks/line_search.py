"""What a line search costs, in forward passes: 23 directions x 64 step sizes, LeNet on MNIST.

    HESSDIST_DATA=... python tests/benchmarks/line_search.py [SAMPLES [DIRECTIONS [TURNS]]]

The unit is a plain pass without gradients over the same batches, measured in turn with the line
search; the directions are random, which costs the same as eigenvectors.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from hessdist.config.loader import parse_job
from hessdist.landscape.lines import Lines
from hessdist.landscape.span import LossInSpan
from hessdist.landscape.step_size import step_grid
from hessdist.objective import Objective
from hessdist.parallel.ranks import Ranks
from hessdist.service.workload import workload_of

JOB = """
[model]
factory = "lenet"
[data]
dataset = "mnist"
samples = {samples}
[checkpoints]
directory = "checkpoints"
[output]
path = "run.h5"
"""
STEPS = 64


def plain_pass(objective: Objective) -> float:
    """Seconds of a forward pass over all samples of this rank."""
    start = time.perf_counter()
    with torch.no_grad():
        for _, batch in objective.local.shard.batches():
            objective.local.loss(objective.local.model, batch)
    return time.perf_counter() - start


def main(samples: int, count: int, turns: int) -> None:
    torch.manual_seed(0)
    job, _ = parse_job(JOB.format(samples=samples), "the benchmark")
    workload, ranks = workload_of(job), Ranks()
    objective = workload.on(ranks)
    size = objective.layout.size
    directions = np.random.default_rng(0).standard_normal((count, size)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lines = Lines(LossInSpan(objective, directions, samples), np.full(count, 1e-2))
    grid = step_grid(1e-3, 1e2, STEPS)
    plain_pass(objective)
    ratios = []
    for _ in range(turns):
        passes, searches = [], []
        for row in range(count):  # one direction, one block of plain passes, in turn
            passes.append(np.mean([plain_pass(objective) for _ in range(4)]))
            start = time.perf_counter()
            alone = LossInSpan(objective, directions[row : row + 1], samples)
            Lines(alone, lines.slopes[:1]).losses(grid[None])
            searches.append(time.perf_counter() - start)
        ratios.append(sum(searches) / (sum(passes) * STEPS))
    if ranks.is_root:
        print(f"LeNet, {size:,} parameters, {samples} images, {ranks.size} ranks")
        print(f"{count} directions x {STEPS} step sizes: {count * STEPS} forward passes")
        print(f"a forward pass: {np.mean(passes):.4f} s; line search: {sum(searches):.2f} s")
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"line search over its forward passes: {shown} (median {np.median(ratios):.3f})")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*given, *(512, 23, 3)[len(given) :])
