"""Seconds of a gradient and of curvature products, and their ratio, measured in one run.

    python tests/benchmarks/product.py [--samples 1024] [--batch-size 256] [--threads 2]

LeNet of 3,274,634 parameters on random images of MNIST's shape: what they show does not matter to
the time. Gradient and products take turns, so that other work on the machine meets them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from hessdist.curvature.differenced import CentralProduct
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.models import lenet
from hessdist.workload.named_losses import LOSSES
from hessdist.workload.shard import Shard


class Noise:
    """Images of noise and random labels, as a map-style data set."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(count, 1, 28, 28, generator=generator)
        self.labels = torch.randint(0, 10, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.labels[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = lenet().eval()
    shard = Shard(
        Noise(options.samples),
        np.arange(options.samples),
        batch_size=options.batch_size,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    loss = as_summed_loss(LOSSES["cross_entropy"], model, shard.head(3))
    local = LocalLoss(model, loss, shard, Parameters(model))
    v = torch.randn(local.parameters.layout.size)
    v /= v.norm()

    kept = {
        name: LocalProduct(local, name, 1e12)
        for name in ("hessian", "gauss_newton", "empirical_fisher")
    }
    rebuilt = LocalProduct(local, "hessian", 0)
    ways: dict[str, Callable[[], object]] = {"gradient": local.loss_and_gradient}
    ways |= {f"{name}, kept": (lambda p=p: p(v)) for name, p in kept.items()}
    ways["hessian, rebuilt"] = lambda: rebuilt(v)
    ways["hessian, finite difference"] = lambda: CentralProduct(local)(v)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.repeat + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)

    print(
        f"LeNet, {options.samples} images, batch {options.batch_size}, {options.threads} threads, "
        f"medians of {options.repeat}; kept graph {kept['hessian'].kept_bytes / 2**20:.0f} MiB"
    )
    unit = statistics.median(seconds["gradient"])
    for name, measured in seconds.items():
        middle = statistics.median(measured)
        spread = f"{min(measured):.3f} ... {max(measured):.3f}"
        print(f"{name:28} {middle:7.3f} s   ({spread})   {middle / unit:5.2f} gradients")


if __name__ == "__main__":
    main()
