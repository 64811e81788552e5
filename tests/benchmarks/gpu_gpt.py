"""Seconds, memory and error of Hessian products of a GPT, in float32, TF32 and bfloat16.

    python tests/benchmarks/gpu_gpt.py [--device cuda] [--sizes 10M 124M] [--json figures.json]

The networks are GPT-2's layers with random weights, of 10 million parameters and of GPT-2's own 124
million, over random tokens. Floating-point operations are counted by PyTorch while one product is
made. The error is that of one product against float64 on the same device, over the first sequences.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu import NUMBERS, peak_of, rounding, seconds_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.losses import causal_lm
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.shard import Shard


@dataclass(frozen=True)
class Size:
    """The shape of a GPT."""

    vocabulary: int
    length: int  # tokens of a sequence
    width: int
    depth: int
    heads: int


SIZES = {
    "tiny": Size(64, 16, 16, 2, 2),  # to try the script
    "10M": Size(8192, 256, 320, 6, 5),
    "124M": Size(50257, 1024, 768, 12, 12),
}


class Block(nn.Module):
    """Attention and a network of two layers, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.attention(self.norm_1(x)).view(n, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + self.projection(mixed.transpose(1, 2).reshape(n, length, width))
        hidden = nn.functional.gelu(self.up(self.norm_2(x)), approximate="tanh")
        return x + self.down(hidden)


class GPT(nn.Module):
    """GPT-2's layers; the output matrix is that of the embedding."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.length, size.width)
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(size.width)
        self.lm_head = nn.Linear(size.width, size.vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.lm_head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return self.lm_head(
            self.norm(self.blocks(self.embedding(input_ids) + self.positions(places)))
        )


def local_loss(
    size: Size, sequences: int, batch: int, device: torch.device, dtype: torch.dtype
) -> LocalLoss:
    """A GPT's loss over random sequences; the parameters are the same at every call."""
    torch.manual_seed(0)
    model = GPT(size).to(device, dtype).eval()
    samples = list(torch.randint(0, size.vocabulary, (sequences, size.length)))
    shard = Shard(samples, np.arange(sequences), batch_size=batch, device=device, dtype=dtype)
    loss = as_summed_loss(causal_lm(), model, shard.head(1))
    return LocalLoss(model, loss, shard, Parameters(model))


def product_of(local: LocalLoss, options: argparse.Namespace) -> LocalProduct:
    return LocalProduct(local, "hessian", options.cache_gib * 2**30)


def direction(size: int) -> Tensor:
    """A random unit vector, the same at every call."""
    v = torch.randn(size, generator=torch.Generator().manual_seed(1))
    return v / v.norm()


def measure(name: str, numbers: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row: a network in one kind of numbers."""
    device, size = torch.device(options.device), SIZES[name]
    dtype = NUMBERS[numbers]
    batch = max(1, options.batch_tokens // size.length)
    sequences = batch * options.batches
    with rounding(numbers):
        local = local_loss(size, sequences, batch, device, dtype)
        v = direction(local.parameters.layout.size)
        on_device = v.to(device, dtype)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        product = product_of(local, options)
        counter = FlopCounterMode(display=False)
        with counter:
            product(on_device)  # warms up as well
        gradient = seconds_of(local.loss_and_gradient, device)
        seconds = [seconds_of(lambda: product(on_device), device) for _ in range(options.repeat)]
        kept = product.kept_batches
        few = local_loss(size, options.oracle_sequences, 1, device, dtype)
        found = product_of(few, options)(on_device).cpu()
    figures: dict[str, Any] = {
        "size": name,
        "numbers": numbers,
        "shape": asdict(size),
        "parameters": len(v),
        "sequences": sequences,
        "batches_kept": kept,
        "seconds_gradient": gradient,
        "seconds_product": statistics.median(seconds),
        "tflop_a_second": counter.get_total_flops() / statistics.median(seconds) / 1e12,
    }
    if device.type == "cuda":
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        peak = options.peak or peak_of(torch.cuda.get_device_name(device))
        if peak and numbers == "float32":
            figures["share_of_peak"] = figures["tflop_a_second"] / peak
    exact = local_loss(size, options.oracle_sequences, 1, device, torch.float64)
    expected = LocalProduct(exact, "hessian", 0)(v.to(device, dtype).double()).cpu()
    figures["relative_error"] = float((found.double() - expected).norm() / expected.norm())
    return figures


def row(figures: dict[str, Any]) -> str:
    share = figures.get("share_of_peak")
    return (
        f"{figures['size']:>5} {figures['numbers']:<9}{figures['parameters']:>12,}"
        f"{figures['sequences']:>6}{figures['seconds_gradient']:>12.4f}"
        f"{figures['seconds_product']:>12.4f}{figures['tflop_a_second']:>10.3f}"
        f"{'' if share is None else f'{100 * share:.1f} %':>9}"
        f"{figures.get('peak_memory_gib', float('nan')):>8.2f}{figures['relative_error']:>10.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=["10M", "124M"])
    parser.add_argument("--numbers", nargs="+", choices=tuple(NUMBERS), default=["float32"])
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a pass")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cache-gib", type=float, default=20.0, help="kept graphs")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device in float32")
    parser.add_argument("--oracle-sequences", type=int, default=1, help="sequences of the error")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here: give --device cpu --sizes tiny")
    print(
        " size numbers    parameters  seq.  gradient s   product s  TFLOP/s   of peak     GiB"
        "     error",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    for name in options.sizes:
        for numbers in options.numbers:
            rows.append(measure(name, numbers, options))
            print(row(rows[-1]), flush=True)
            if options.json:  # as it goes: a later row may not fit the device
                options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
