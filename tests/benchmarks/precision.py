"""A solve with its first products in reduced precision, beside one in float32.

    OMP_NUM_THREADS=1 python tests/benchmarks/precision.py [--samples 256]

LeNet-5 on MNIST at its initial parameters and after 50 minibatches of RMSProp, and a perceptron of
4.3 million parameters; LA(20) and SA(3) to relative residuals of 1e-3. Seconds are processor
time of one thread; a product is timed alone, the fastest of three turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import hessdist
from hessdist.curvature.products import LocalProduct
from hessdist.objective import Compute, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.workload.datasets import mnist
from hessdist.workload.models import lenet5

PRECISIONS = ("float32", "bfloat16")


def trained(model: nn.Module, steps: int) -> nn.Module:
    """Train on random minibatches of 32 images."""
    data, rng = mnist(), np.random.default_rng(0)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    for _ in range(steps):
        drawn = [data[int(i)] for i in rng.integers(len(data), size=32)]
        images = torch.stack([torch.as_tensor(image) for image, _ in drawn])
        labels = torch.tensor([int(label) for _, label in drawn])
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


def perceptron() -> nn.Module:
    layers = nn.Linear(784, 1500), nn.Tanh(), nn.Linear(1500, 2000), nn.Tanh(), nn.Linear(2000, 10)
    return nn.Sequential(nn.Flatten(), *layers)


def seconds(work: Callable[[], object]) -> float:
    turns = []
    for _ in range(4):
        start = time.process_time()
        work()
        turns.append(time.process_time() - start)
    return min(turns[1:])


def show(name: str, model: nn.Module, samples: int) -> None:
    """Print products and seconds of both solves."""
    workload = Workload(
        model, nn.CrossEntropyLoss(), mnist(), np.arange(samples), compute=Compute(workers=0)
    )
    product = workload.on(Ranks()).local_product("hessian")
    assert isinstance(product, LocalProduct)
    v = torch.randn(product.size)
    times = [
        seconds(lambda: product(v)),
        seconds(lambda: product.reduced("bfloat16")(v)),
    ]
    data = torch.utils.data.Subset(mnist(), range(samples))
    for precision, each in zip(PRECISIONS, times, strict=True):
        start = time.process_time()
        found = hessdist.extreme_eigenpairs(
            model, nn.CrossEntropyLoss(), data, eigenvectors=False, precision=precision
        )
        spent = time.process_time() - start
        worst = max(found.residuals_largest.max(), found.residuals_smallest.max())
        print(
            f"{name:28} {precision:8} {1e3 * each:9.1f} ms a product {found.reduced_products:5} "
            f"reduced {found.products - found.reduced_products:4} in float32 "
            f"{spent:7.1f} s, error {found.reduced_error:.0e}, residuals to {worst:.1e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=256)
    samples = parser.parse_args().samples
    torch.manual_seed(0)
    show("LeNet-5, initial", lenet5(), samples)
    show("LeNet-5, 50 minibatches", trained(lenet5(), 50), samples)
    show("perceptron, 50 minibatches", trained(perceptron(), 50), samples)


if __name__ == "__main__":
    main()
