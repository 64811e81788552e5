"""Products of several vectors at once beside products one by one: where do blocks pay?

    OMP_NUM_THREADS=1 python tests/benchmarks/blocks.py

Milliseconds of processor time a vector, the fastest of three turns: one by one, then for blocks of
4, 16 and 64 vectors side by side by vmap. `entries` is the average number of entries of a tensor
that the graph saves (see hessdist/curvature/blocks.py), by which the rule chooses. The last columns
are for a graph that is not kept: a product alone, and one of a block of 8.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hessdist.curvature import blocks
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.workload.losses import as_summed_loss
from hessdist.workload.models import lenet5
from hessdist.workload.shard import Shard

WIDTHS = (4, 16, 64)
Data = tuple[Tensor, Tensor]


class Transformer(nn.Module):
    """Two layers over 16 tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        layer = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, **layer) for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        head: Tensor = self.head(x.mean(1))
        return head


def perceptron(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
    )


def local_loss(model: nn.Module, data: Data) -> LocalLoss:
    size = len(data[0])
    shard = Shard(
        TensorDataset(*data),
        np.arange(size),
        batch_size=256,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    loss = as_summed_loss(nn.CrossEntropyLoss(), model.eval(), shard.head(min(3, size)))
    return LocalLoss(model, loss, shard, Parameters(model))


def milliseconds(work: Callable[[], object], vectors: int) -> float:
    """Time of the fastest of three turns, for one vector."""
    work()
    turns = []
    for _ in range(3):
        start = time.process_time()
        work()
        turns.append(time.process_time() - start)
    return 1e3 * min(turns) / vectors


def line(name: str, model: nn.Module, data: Data) -> None:
    """Print the times of a model."""
    local = local_loss(model, data)
    average = []
    rule = blocks.is_small

    def remembered(entries: int, tensors: int, device: torch.device) -> bool:
        average.append(entries / tensors)
        return True

    blocks.is_small = remembered
    product = LocalProduct(local, "hessian", 2**32)
    blocks.is_small = rule
    chosen = rule(round(average[0]), 1, local.device) if average else False
    vectors = torch.randn(max(WIDTHS), product.size)
    alone = milliseconds(lambda: [product(v) for v in vectors[:8]], 8)
    cells = [f"{alone:8.2f}"]
    for width in WIDTHS:
        if not average:
            cells.append(" " * 14)
            continue
        together = milliseconds(lambda width=width: product.of_block(vectors[:width]), width)  # type: ignore[misc]
        cells.append(f"{together:8.2f} {alone / together:4.1f}x")
    again = LocalProduct(local, "hessian", 0)
    rebuilt = milliseconds(lambda: [again(v) for v in vectors[:8]], 8)
    block = milliseconds(lambda: again.of_block(vectors[:8]), 8)
    entries = f"{average[0]:9,.0f}" if average else " (convol.)"[-9:]
    print(
        f"{name:22} {product.size:8,} {entries} {'blocks' if chosen else 'one by one':>10}"
        f"{' '.join(cells)} | {rebuilt:7.2f} {block:7.2f} {rebuilt / block:4.1f}x",
        flush=True,
    )


def main() -> None:
    torch.manual_seed(0)
    print(
        f"{'':22} {'d':>8} {'entries':>9} {'rule':>10}{'alone':>8}"
        + "".join(f"{f'{width} at once':>15}" for width in WIDTHS)
        + " |  rebuilt: alone, of 8"
    )
    for width in (32, 128, 512):
        for count in (1, 16, 64, 256):
            data = torch.randn(count, 64), torch.randint(10, (count,))
            line(f"perceptron {width}, n = {count}", perceptron(width), data)
    for width, count in ((32, 1), (32, 16), (32, 128), (128, 16)):
        data = torch.randint(50, (count, 16)), torch.randint(10, (count,))
        line(f"transformer {width}, n = {count}", Transformer(width), data)
    for count in (16, 256):
        data = torch.randn(count, 1, 28, 28), torch.randint(10, (count,))
        line(f"LeNet-5, n = {count}", lenet5(), data)


if __name__ == "__main__":
    main()
