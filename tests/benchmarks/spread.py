"""Memory and seconds of products whose parameters are spread over ranks, and a forecast.

    python tests/benchmarks/spread.py [--width 1024] [--layers 6] [--shards 1 2 4]

Each row is a run of so many ranks, all of which share the parameters of a network like GPT-2 in
float32. Numbers are the largest of all ranks, in MiB above the process without the model, but for
the solve, where it is the peak of the whole process. With --forecast only the forecast is printed.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hessdist.spread.memory import Sizes, product_bytes, proof_bytes, solver_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--solve", action="store_true", help="solve for LA(2) and SA(1) as well")
    parser.add_argument("--forecast", action="store_true")
    parser.add_argument("--one", action="store_true")
    options = parser.parse_args()
    if options.one:
        _measure(options)
        return
    if not options.forecast:
        for shards in options.shards:
            words = [sys.executable, __file__, "--one", "--width", str(options.width)]
            words += ["--layers", str(options.layers), "--shards", str(shards)]
            words += ["--solve"] if options.solve else []
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
            subprocess.run(
                ["mpirun", "--oversubscribe", "-n", str(shards), *words],
                check=True,
                env=environment,
            )
    forecast()


# -- measured --------------------------------------------------------------------------------


def _status(name: str) -> float:
    """A line of the process's status in MiB: VmRSS is in use, VmHWM the peak since `_reset`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def _reset() -> None:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class _Random:
    """Sequences of random tokens."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        import torch

        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(0, vocabulary, (count, length), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.ids[index].clone()}


def _measure(options: argparse.Namespace) -> None:
    from hessdist.losses import causal_lm
    from hessdist.objective import Compute, Objective
    from hessdist.parallel.ranks import Ranks
    from hessdist.spectrum import petsc
    from hessdist.spectrum.extreme import extreme_eigenpairs
    from hessdist.spectrum.shell import curvature_matrix
    from hessdist.workload.models import build_model

    (shards,) = options.shards
    ranks = Ranks()
    config = {
        "model_type": "gpt2",
        "vocab_size": 512,
        "n_positions": 64,
        "n_head": 8,
        "n_embd": options.width,
        "n_layer": options.layers,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    build_model("huggingface", {"config": {**config, "n_embd": 8, "n_layer": 1}})  # imports
    before = _status("VmRSS")
    model = build_model("huggingface", {"config": config}, on_meta=shards > 1)
    compute = Compute(batch_size=4, device="cpu", shards=shards, workers=0)
    objective = Objective(
        ranks, model, causal_lm(), _Random(4, 32, 512), np.arange(4), compute=compute
    )
    if objective.spread is not None:
        objective.spread.draw()
    del model
    _reset()
    row = {"parameters": _status("VmRSS") - before}
    weight = objective.evaluate().weight
    shell = curvature_matrix(objective, "hessian", weight)
    x = np.random.default_rng(0).standard_normal(shell.local_size)
    for _ in range(2):  # the check of symmetry keeps the first two
        shell.apply(x)
    _reset()
    held = _status("VmRSS")
    row["held"] = held - before
    counted = dict(objective.ranks.lockstep.counts) if objective.ranks.lockstep else {}
    start = time.perf_counter()
    shell.apply(x)
    row["seconds"] = time.perf_counter() - start
    row["product"] = _status("VmHWM") - held
    if objective.ranks.lockstep is not None:
        for name, count in objective.ranks.lockstep.counts.items():
            row[name] = (count - counted[name]) / objective.local.passes
    products = 0
    if options.solve:
        petsc.initialise([])
        _reset()
        found = extreme_eigenpairs(shell, 2, 1, tolerance=0.1)
        row["solve"], products = _status("VmHWM"), found.products
    rows = ranks.collect(row)
    if ranks.is_root:
        largest = {name: max(one[name] for one in rows) for name in row}
        vector = 4 * objective.layout.size / 2**20
        print(
            f"{objective.layout.size:,} parameters (a vector: {vector:.0f} MiB), "
            f"{shards} shards: "
            + ", ".join(f"{name} {value:.4g}" for name, value in largest.items())
            + (f" ({products} products)" if products else ""),
            flush=True,
        )


# -- foretold --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """The numbers of a transformer that the forecast needs."""

    name: str
    parameters: float  # d
    layers: int  # linear layers
    largest: float  # entries of the largest matrix


@dataclass(frozen=True)
class Cluster:
    """The numbers of a machine that the forecast needs."""

    flops: float = 40e12  # a GPU's float32 operations a second in products
    latency: float = 20e-6  # seconds of a small message
    tokens: float = 8192  # of a pass on one rank


MODELS = (
    Model("1 B", 1.0e9, 24 * 4, 50e6),
    Model("7 B", 6.7e9, 32 * 7, 131e6),
    Model("70 B", 69e9, 80 * 7, 235e6),
)


def seconds(
    model: Model, ranks: int, tokens: float, bandwidth: float, cluster: Cluster
) -> dict[str, float]:
    """Return the seconds of a product with all ranks in one copy, by part.

    Without kept graphs a product costs three gradients, 18 d operations a token. In a pass every
    layer is gathered five times (twice for the gradient, three times for the product) and reduced
    three times, and every collective has a small one before it.
    """
    passes = tokens / (cluster.tokens * ranks)
    moved = 8 * 4 * model.parameters * (ranks - 1) / ranks
    return {
        "operations": 18 * model.parameters * tokens / ranks / cluster.flops,
        "network": passes * moved / bandwidth,
        "latency": passes * 2 * 8 * model.layers * cluster.latency * np.log2(ranks),
    }


def forecast(tokens: float = 1e8, vectors: int = 32) -> None:
    """Print memory and seconds for models that no GPU holds."""
    cluster = Cluster()
    print(
        f"\nA product over {tokens:.0e} tokens, all ranks one copy; assumed of a GPU: "
        f"{cluster.flops / 1e12:g} TFLOP/s of float32, {cluster.tokens:g} tokens a pass, "
        f"{1e6 * cluster.latency:g} us a message; LA(2) and SA(1) with {vectors} vectors\n"
        "model | GPUs | GiB a rank: proof | products | Krylov space | seconds: operations | "
        "network at 25 GB/s | at 100 GB/s | latency"
    )
    for model in MODELS:
        for ranks in (8, 64, 512):
            sizes = Sizes(int(model.parameters), int(model.largest))
            product, proof = product_bytes(sizes, ranks), proof_bytes(sizes, ranks)
            slices = solver_bytes(sizes, ranks, vectors)
            slow, fast = (seconds(model, ranks, tokens, b, cluster) for b in (25e9, 100e9))
            print(
                f"{model.name} | {ranks} | {proof / 2**30:.3g} | {product / 2**30:.3g} | "
                f"{slices / 2**30:.3g} | "
                f"{slow['operations']:.3g} | {slow['network']:.3g} | {fast['network']:.3g} | "
                f"{slow['latency']:.2g}"
            )


if __name__ == "__main__":
    main()
