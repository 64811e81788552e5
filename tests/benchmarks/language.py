"""Peaks of memory and CPU seconds of products with matrices of transformers, each by a process.

python tests/benchmarks/language.py [--vocabulary 32768] [--sequences 8] [--length 128]

A row is one product of a network like GPT-2 of about that many parameters, with logits in chunks
or whole. The peak is that of the process while the graph is built and the product is taken, above
what it has before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

SIZES = {"1 M": (32, 2), "4 M": (112, 2), "16 M": (320, 4)}
"""Width and depth by the approximate number of parameters, at a vocabulary of 32,768."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--one", nargs=3, metavar=("SIZE", "OPERATOR", "CHUNK"))
    options = parser.parse_args()
    if options.one:
        print(_measured(options))
        return
    print("parameters   operator       logits     peak MiB   kept MiB   CPU s")
    words = [sys.executable, __file__, *sys.argv[1:], "--one"]
    for size in SIZES:
        for operator in ("hessian", "gauss_newton", "empirical_fisher"):
            for logits in ("chunks", "whole"):
                one = [*words, size, operator, logits]
                print(
                    subprocess.run(one, check=True, capture_output=True, text=True).stdout.strip()
                )


def _measured(options: argparse.Namespace) -> str:
    """Take one product, and return a row of the table."""
    from mpi4py import MPI
    from transformers import AutoModelForCausalLM, GPT2Config

    from hessdist.curvature.products import LocalProduct
    from hessdist.losses import causal_lm
    from hessdist.objective import Compute, Workload
    from hessdist.parallel.ranks import Ranks

    size, operator, logits = options.one
    width, depth = SIZES[size]
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(
        GPT2Config(
            vocab_size=options.vocabulary, n_positions=options.length, n_embd=width, n_layer=depth,
            n_head=width // 16, bos_token_id=0, eos_token_id=0, use_cache=False,
        ),
        attn_implementation="eager",
    ).eval()  # fmt: skip
    shape = (options.sequences, options.length)
    samples = [{"input_ids": ids} for ids in torch.randint(0, options.vocabulary, shape)]
    loss = causal_lm(chunk_tokens=0 if logits == "whole" else None)
    workload = Workload(network, loss, samples, np.arange(len(samples)), compute=Compute())
    local = workload.on(Ranks(MPI.COMM_SELF)).local
    v = torch.randn(local.parameters.layout.size)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    product = LocalProduct(local, operator, 4 * 2**30)
    start = time.process_time()
    product(v)
    seconds = time.process_time() - start
    peak = (_status("VmHWM") - before) / 2**20
    return (
        f"{len(v):>10,}   {operator:<17}{logits:<8}{peak:>9.0f}  "
        f"{product.kept_bytes / 2**20:>9.0f}   {seconds:>5.2f}"
    )


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


if __name__ == "__main__":
    main()
