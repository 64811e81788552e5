"""What everybody solves: a LeNet, a checkpoint of it and the first images of MNIST, in plain torch.

Neither hessdist nor a peer is imported, so that every environment can read it, and so that the
check of the residuals has none of our code in it.
"""

from __future__ import annotations

import argparse
import gzip
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

LARGEST, SMALLEST, TOLERANCE = 20, 3, 1e-3


@dataclass(frozen=True)
class Problem:
    """A model at a checkpoint, and its training samples."""

    model: nn.Module
    images: Tensor  # (N, 1, 28, 28) float32 in [0, 1]
    labels: Tensor  # (N,) int64
    batch_size: int

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Views of the samples, in order; the last batch may be smaller."""
        parts = self.images.split(self.batch_size), self.labels.split(self.batch_size)
        return list(zip(*parts, strict=True))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order of the flat vector."""
        return list(self.model.parameters())

    @property
    def size(self) -> int:
        """The dimension d."""
        return sum(parameter.numel() for parameter in self.parameters)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that the driver and all workers share."""
    parser.add_argument("--samples", type=int, default=512, help="the first N images of MNIST")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the starting vectors")
    parser.add_argument(
        "--limit", type=float, default=120, help="seconds after which PyHessian is given up"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="default: the reference beside the folder HESSDIST_DATA"
    )


def read(options: argparse.Namespace) -> Problem:
    """The problem that the options name, and torch's threads set as they say."""
    torch.set_num_threads(options.threads)
    if "HESSDIST_DATA" not in os.environ:
        raise SystemExit("HESSDIST_DATA must name the folder that holds MNIST/raw")
    data = Path(os.environ["HESSDIST_DATA"])
    checkpoint = options.checkpoint
    if checkpoint is None:
        checkpoint = data.resolve().parent / "reference" / "lenet-mnist-512" / "step-50.pt"
    model = _lenet()
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    images = _read_idx(data, "train-images-idx3-ubyte")[: options.samples]
    labels = _read_idx(data, "train-labels-idx1-ubyte")[: options.samples]
    return Problem(
        model.eval(),
        torch.from_numpy(images.astype(np.float32))[:, None] / 255,
        torch.from_numpy(labels.astype(np.int64)),
        options.batch_size,
    )


def gradient(problem: Problem) -> None:
    """The unit of all times: a plain gradient of the mean loss over all samples."""
    problem.model.zero_grad()
    for images, labels in problem.batches:
        loss = nn.functional.cross_entropy(problem.model(images), labels, reduction="sum")
        (loss / len(problem.labels)).backward()


def _lenet() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(3136, 1024),
            relu3=nn.ReLU(),
            fc2=nn.Linear(1024, 10),
        )
    )


def _read_idx(data: Path, name: str) -> np.ndarray:
    plain = data / "MNIST" / "raw" / name
    packed = plain.with_name(f"{name}.gz")
    raw = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">u4", dimensions, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
