"""What both solve: networks like GPT-2 and their tokens, in plain torch and transformers.

Neither hessdist nor a peer is imported, so that both environments can read it, and so that the
check of the residuals has none of our code in it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

LARGEST, SMALLEST, TOLERANCE = 20, 3, 1e-3


@dataclass(frozen=True)
class Size:
    """A network, its tokens, and the steps of AdamW that it has behind it."""

    vocabulary: int
    width: int
    depth: int
    sequences: int
    length: int = 128
    steps: int = 0


SIZES = {
    "solve": Size(vocabulary=256, width=128, depth=6, sequences=24, steps=100),
    "product": Size(vocabulary=32768, width=32, depth=2, sequences=8),
}
"""1.24 M parameters for whole solves, and 1.08 M, nearly all in the vocabulary, for products."""


def network(size: Size) -> nn.Module:
    """Make a network with random weights, in eval mode."""
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=size.vocabulary, n_positions=size.length, n_embd=size.width,
        n_layer=size.depth, n_head=size.width // 16, bos_token_id=0, eos_token_id=0,
        use_cache=False,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def size_of(task: str) -> str:
    """Return the name of the size that a task is for."""
    return "solve" if task in {"steps", "solve"} else "product"


def write(folder: Path, tasks: Sequence[str]) -> None:
    """Write the weights and the tokens that tasks need."""
    for name in sorted({size_of(task) for task in tasks}):
        size = SIZES[name]
        ids = _tokens(size)
        model = network(size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for batch in ids[torch.randint(len(ids), (size.steps, 8))]:
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
        torch.save(model.state_dict(), folder / f"{name}.pt")
        np.save(folder / f"{name}.npy", ids[: size.sequences].numpy())


def _tokens(size: Size) -> Tensor:
    """Bytes of Python's own help for a network that is trained, and random ids for another."""
    if not size.steps:
        generator = torch.Generator().manual_seed(0)
        shape = (size.sequences, size.length)
        return torch.randint(0, size.vocabulary, shape, generator=generator)
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics)).encode()
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return ids[: len(ids) // size.length * size.length].reshape(-1, size.length)


def read(folder: Path, name: str) -> tuple[nn.Module, Tensor]:
    """Read a network and its tokens, (sequences, length)."""
    model = network(SIZES[name])
    model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return model, torch.from_numpy(np.load(folder / f"{name}.npy"))


class Solver:
    """What a library offers; each method begins with the network and the tokens in memory."""

    def solve(self, model: nn.Module, ids: Tensor) -> tuple[dict[str, np.ndarray], str]:
        """Compute LA(20) and SA(3) of H; also the number of products, in words."""
        raise NotImplementedError

    def product(self, model: nn.Module, ids: Tensor, operator: str) -> Callable[[Tensor], Tensor]:
        """Return the map of v to Hv or Gv."""
        raise NotImplementedError


def serve(make: Callable[[argparse.Namespace], Solver]) -> None:
    """Do one task in this process, and print what it took as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=["steps", "solve", "hessian", "gauss_newton"])
    parser.add_argument("--steps", type=int, nargs=2, help="of LA and SA, for the peer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, ids = read(options.folder, size_of(options.task))
    solver = make(options)
    with torch.no_grad():
        model(ids[:1])  # warms up
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    start = time.process_time()
    if options.task == "steps":
        print(json.dumps(solver.steps(model, ids)))  # type: ignore[attr-defined]
        return
    if options.task == "solve":
        pairs, products = solver.solve(model, ids)
        row = {"cpu": time.process_time() - start, "products": products}
        np.savez(options.folder / f"{Path(sys.argv[0]).stem}.npz", **pairs)
    else:
        v = torch.randn(
            sum(p.numel() for p in model.parameters()), generator=torch.Generator().manual_seed(1)
        )
        start = time.process_time()
        product = solver.product(model, ids, options.task)
        image = product(v)
        row = {"cpu": time.process_time() - start, "norm": float(image.detach().norm())}
    row |= {"peak": _status("VmHWM"), "above": _status("VmHWM") - before}
    if options.task != "solve":
        start = time.process_time()
        for _ in range(3):
            product(v)
        row["next"] = (time.process_time() - start) / 3
    usage = resource.getrusage(resource.RUSAGE_SELF)
    row["process"] = usage.ru_utime + usage.ru_stime
    print(json.dumps(row))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
