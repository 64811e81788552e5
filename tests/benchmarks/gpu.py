"""Seconds of a Hessian product on a GPU, the share of its peak, and its error.

    python tests/benchmarks/gpu.py [--device cuda] [--samples 60000] [--json figures.json]
    python tests/benchmarks/gpu.py --numbers tf32      # or bfloat16

LeNet of 3,274,634 parameters over MNIST's training set, where HESSDIST_DATA has it, or over random
images of its shape, which cost the same. Floating-point operations are those of matrix products
and convolutions, two for a multiplication and an addition, counted by PyTorch on the CPU for one
batch. The error is that of one product against float64 on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.workload.datasets import DATA_VARIABLE, MapDataset, mnist
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.models import lenet
from hessdist.workload.named_losses import LOSSES
from hessdist.workload.shard import Shard

# Float32 without tensor cores, TFLOP/s, by the makers' data sheets. The first that fits counts.
PEAKS = {
    "H100 PCIe": 51.0,
    "H100 NVL": 60.0,
    "H100": 67.0,  # SXM: "NVIDIA H100 80GB HBM3"
    "H200 NVL": 60.0,
    "H200": 67.0,
    "GH200": 67.0,
    "A100": 19.5,
    "V100-PCIE": 14.0,
    "V100": 15.7,
    "L40S": 91.6,
    "A40": 37.4,
    "T4": 8.1,
}


# Kinds of numbers, and the dtype of parameters and activations in each. hessdist itself has float32
# and float64; the others show what they would cost in accuracy, and gain in time.
NUMBERS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@contextmanager
def rounding(numbers: str) -> Iterator[None]:
    """Kernels that repeat to the bit, as Objective has them, and TF32 only if asked for."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.deterministic = True
    cudnn.allow_tf32 = matmul.allow_tf32 = numbers == "tf32"
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def peak_of(device_name: str) -> float | None:
    """TFLOP/s of a device in float32; None where the table does not know it."""
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def images(samples: int) -> tuple[MapDataset, str]:
    """The first images of MNIST, or random ones, and which."""
    folder = os.environ.get(DATA_VARIABLE)
    if folder and (Path(folder) / "MNIST").is_dir():
        return mnist(Path(folder)), "MNIST"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(samples, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (samples,), generator=generator)
    return TensorDataset(pixels, labels), "random"


def local_loss(
    dataset: MapDataset, samples: int, batch_size: int, device: torch.device, dtype: torch.dtype
) -> LocalLoss:
    """LeNet's loss over the first samples; the parameters are the same at every call."""
    torch.manual_seed(0)
    model: nn.Module = lenet().to(device, dtype).eval()
    shard = Shard(dataset, np.arange(samples), batch_size=batch_size, device=device, dtype=dtype)
    loss = as_summed_loss(LOSSES["cross_entropy"], model, shard.head(3))
    return LocalLoss(model, loss, shard, Parameters(model))


def operations_a_sample(dataset: MapDataset, samples: int, batch_size: int) -> float:
    """Counted floating-point operations of a product with the graph kept, for one sample.

    Args:
        dataset: The images.
        samples: How many there are.
        batch_size: Samples that are counted.

    Returns:
        The count of one batch over its samples: every operation counted is linear in them.
    """
    count = min(samples, batch_size)
    local = local_loss(dataset, count, count, torch.device("cpu"), torch.float32)
    product = LocalProduct(local, "hessian", 1e12)
    counter = FlopCounterMode(display=False)
    with counter:
        product(torch.ones(product.size))
    return counter.get_total_flops() / count


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of some work, its kernels included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def spread(measured: list[float]) -> dict[str, float]:
    return {"median": statistics.median(measured), "min": min(measured), "max": max(measured)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed, by name."""
    device, dtype = torch.device(options.device), NUMBERS[options.numbers]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        free, _ = torch.cuda.mem_get_info(device)
        cache = 0.6 * free if options.cache_gib is None else options.cache_gib * 2**30
        torch.cuda.reset_peak_memory_stats(device)
    else:
        name, cache = "cpu", 2**30 * (4 if options.cache_gib is None else options.cache_gib)
    dataset, which = images(options.samples)
    counted = operations_a_sample(dataset, options.samples, 64) * options.samples

    local = local_loss(dataset, options.samples, options.batch_size, device, dtype)
    product = LocalProduct(local, "hessian", cache)
    v = torch.randn(product.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v /= v.norm()
    direction = v.to(device, dtype)
    seconds: dict[str, list[float]] = {"gradient": [], "product": []}
    found: Tensor = product(direction)  # warms up
    local.loss_and_gradient()
    for _ in range(options.repeat):
        seconds["gradient"].append(seconds_of(local.loss_and_gradient, device))
        seconds["product"].append(seconds_of(lambda: product(direction), device))
    figures: dict[str, Any] = {
        "device": name,
        "torch": str(torch.__version__),
        "numbers": options.numbers,
        "images": which,
        "samples": options.samples,
        "batch_size": options.batch_size,
        "batches": len(local.shard),
        "batches_kept": product.kept_batches,
        "kept_gib": product.kept_bytes / 2**30,
        "seconds": {work: spread(measured) for work, measured in seconds.items()},
        "operations": counted,
    }
    if device.type == "cuda":
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    figures["tflop_a_second"] = counted / figures["seconds"]["product"]["median"] / 1e12
    peak = (options.peak or peak_of(name)) if device.type == "cuda" else None
    if peak and options.numbers == "float32":
        figures["peak_tflop_a_second"] = peak
        figures["share_of_peak"] = figures["tflop_a_second"] / peak

    samples = min(options.samples, options.oracle_samples or options.samples)
    if samples < options.samples:
        part = local_loss(dataset, samples, options.batch_size, device, dtype)
        found = LocalProduct(part, "hessian", 0)(direction)
    exact_local = local_loss(dataset, samples, 256, torch.device("cpu"), torch.float64)
    # The direction that the dtype can hold: the product's error, and not the rounding of v.
    exact = LocalProduct(exact_local, "hessian", 0)(direction.cpu().double())
    figures["oracle_samples"] = samples
    figures["relative_error"] = float((found.cpu().double() - exact).norm() / exact.norm())
    return figures


def report(figures: dict[str, Any]) -> None:
    """Print the figures as lines."""
    print(
        f"{figures['device']}, PyTorch {figures['torch']}: LeNet in {figures['numbers']}, "
        f"{figures['samples']} images "
        f"({figures['images']}), batches of {figures['batch_size']}"
    )
    print(
        f"graphs kept      {figures['batches_kept']} of {figures['batches']} batches, "
        f"{figures['kept_gib']:.2f} GiB"
    )
    if "peak_memory_gib" in figures:
        print(f"peak memory      {figures['peak_memory_gib']:.2f} GiB of the device")
    unit = figures["seconds"]["gradient"]["median"]
    for work, measured in figures["seconds"].items():
        print(
            f"{work:16} {measured['median']:.4f} s   ({measured['min']:.4f} ... "
            f"{measured['max']:.4f})   {measured['median'] / unit:.2f} gradients"
        )
    print(f"operations       {figures['operations']:.3e} a product, counted")
    rate = f"speed            {figures['tflop_a_second']:.3f} TFLOP/s"
    if "share_of_peak" in figures:
        rate += (
            f", {100 * figures['share_of_peak']:.1f} % of {figures['peak_tflop_a_second']:g} "
            "(float32 without tensor cores)"
        )
    elif figures["device"] != "cpu" and figures["numbers"] == "float32":
        rate += "; the peak of this device is not known: give --peak"
    print(rate)
    print(
        f"relative error   {figures['relative_error']:.1e} against float64 on the CPU, "
        f"{figures['oracle_samples']} images"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--numbers", choices=tuple(NUMBERS), default="float32")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--cache-gib", type=float, help="kept graphs; default: 60 %% of the device")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device in float32")
    parser.add_argument("--oracle-samples", type=int, help="images of the error; default: all")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here: give --device cpu --samples 512")
    with rounding(options.numbers):
        figures = measure(options)
    report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
