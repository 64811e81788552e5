"""A whole solve on a GPU beside the same solve in float64 on the CPU.

    python tests/benchmarks/gpu_solve.py [--device cuda] [--samples 3000] [--json figures.json]

LeNet of 3,274,634 parameters, after a few passes of SGD over the first images of MNIST, or over
random ones where HESSDIST_DATA names no folder. Both solves have the same parameters and images.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import images
from torch import nn
from torch.utils.data import Subset

import hessdist
from hessdist.workload.models import lenet


def trained(data: Any, passes: int, device: torch.device) -> nn.Module:
    """LeNet after some passes of SGD, on the CPU in float32."""
    torch.manual_seed(0)
    model = lenet().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(passes):
        for batch in torch.utils.data.DataLoader(data, batch_size=100, shuffle=True):
            x, y = (part.to(device) for part in batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.cpu()


def solve(model: nn.Module, data: Any, device: str, options: argparse.Namespace) -> Any:
    return hessdist.extreme_eigenpairs(
        model, nn.CrossEntropyLoss(), data, largest=options.largest, smallest=options.smallest,
        tolerance=options.tolerance, eigenvectors=False, batch_size=1000, device=device,
        cache_gib=options.cache_gib,
    )  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed, by name."""
    device = torch.device(options.device)
    whole, which = images(options.samples)
    data = Subset(whole, range(options.samples))
    model = trained(data, options.passes, device)
    here = solve(copy.deepcopy(model), data, device.type, options)
    print(f"{device}: {here.products} products, {here.seconds:.2f} s", flush=True)
    exact = solve(model.double(), data, "cpu", options)
    found, oracle = (
        np.concatenate([one.eigenvalues_largest, one.eigenvalues_smallest]) for one in (here, exact)
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "images": which,
        "samples": options.samples,
        "loss": here.loss,
        "loss_error": abs(here.loss / exact.loss - 1),
        "gradient_error": abs(here.gradient_norm / exact.gradient_norm - 1),
        "eigenvalues": found.tolist(),
        "eigenvalue_error": float(np.abs(found / oracle - 1).max()),
        "converged": [here.converged, exact.converged],
        "products": [here.products, exact.products],
        "seconds": [here.seconds, exact.seconds],
        "residual": float(np.concatenate([here.residuals_largest, here.residuals_smallest]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--passes", type=int, default=5, help="of SGD, before the solve")
    parser.add_argument("--largest", type=int, default=5)
    parser.add_argument("--smallest", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--cache-gib", type=float, default=8.0, help="kept graphs")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here: give --device cpu --samples 100")
    figures = measure(options)
    print(f"{figures['device']}: LeNet, {figures['samples']} images ({figures['images']})")
    for name in ("loss", "gradient", "eigenvalue"):
        print(f"{f'error of {name}':<24}{figures[f'{name}_error']:.1e} (relative)")
    for i, where in enumerate(("here, in float32", "on the CPU, in float64")):
        print(
            f"{where:<24}{figures['products'][i]} products, {figures['seconds'][i]:.2f} s"
            f"{'' if figures['converged'][i] else ', NOT CONVERGED'}"
        )
    print(f"{'largest residual':<24}{figures['residual']:.1e}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
