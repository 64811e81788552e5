"""The reference problem: a LeNet after 50 steps, 512 MNIST images, solved elsewhere in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from torch import nn

import hessdist
from hessdist.workload.checkpoints import read_state
from hessdist.workload.datasets import mnist
from hessdist.workload.models import lenet

JOB = """
name = "reference"
[model]
factory = "lenet"
[data]
dataset = "mnist"
root = "{root}"
samples = 512
subset = "first"
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 20
smallest = 3
tolerance = 1e-3
[output]
path = "reference.h5"
"""


@pytest.fixture
def reference(data_root: Path) -> Path:
    folder = data_root.parent / "reference" / "lenet-mnist-512"
    if not (folder / "step-50.pt").is_file():
        pytest.skip("there is no reference/lenet-mnist-512 beside the folder of HESSDIST_DATA")
    return folder


@pytest.fixture
def job(tmp_path: Path, data_root: Path, reference: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-50.pt").symlink_to(reference / "step-50.pt")
    path = tmp_path / "job.toml"
    path.write_text(JOB.format(root=data_root), encoding="utf-8")
    return path


def independent_product(reference: Path, data_root: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Hv in float64 by double backward, none of our code in it but the readers."""
    model = lenet()
    model.load_state_dict(read_state(reference / "step-50.pt"))
    model = model.double()
    dataset = mnist(data_root)
    images, labels = dataset.images[:512].double() / 255, dataset.labels[:512]
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(images), labels)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])

    def product(v: np.ndarray) -> np.ndarray:
        pieces = torch.autograd.grad(flat @ torch.from_numpy(v), parameters, retain_graph=True)
        return torch.cat([p.reshape(-1) for p in pieces]).numpy()

    return product


@pytest.mark.timeout(600)
def test_the_reference_spectrum(run: Run, job: Path, data_root: Path, reference: Path) -> None:
    done = run("spectrum", str(job), ranks=2, timeout=400)
    assert done.returncode == 0, done.stderr
    result = hessdist.open_run(job.parent / "reference.h5")
    expected = json.loads((reference / "expected.json").read_text(encoding="utf-8"))
    here = result[50]
    assert result.num_parameters == expected["num_parameters"]
    assert here.loss == pytest.approx(expected["loss"], rel=1e-5)
    assert here.gradient_norm == pytest.approx(expected["gradient_norm"], rel=1e-5)
    assert here.eigenvalues_largest == pytest.approx(expected["eigenvalues_largest"], rel=1e-4)
    assert here.eigenvalues_smallest == pytest.approx(expected["eigenvalues_smallest"], rel=1e-4)
    assert here.products <= 75

    torch.set_num_threads(2)
    product = independent_product(reference, data_root)
    ends = (
        (here.eigenvalues_largest, here.residuals_largest, here.eigenvectors_largest),
        (here.eigenvalues_smallest, here.residuals_smallest, here.eigenvectors_smallest),
    )
    for end in ends:
        # A product takes a second: of 23 pairs, eight.
        for value, residual, stored in list(zip(*end, strict=True))[::-3]:
            vector = stored.astype(np.float64)
            vector /= np.linalg.norm(vector)
            image = product(vector)
            assert value == pytest.approx(vector @ image, rel=1e-6)
            true = np.linalg.norm(image - value * vector) / abs(value)
            assert true <= 1e-3
            assert residual == pytest.approx(true, rel=0.05, abs=2e-5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_starting_vectors_find_the_same_pairs(run: Run, job: Path, reference: Path) -> None:
    expected = json.loads((reference / "expected.json").read_text(encoding="utf-8"))
    for seed in range(20):
        done = run(
            "spectrum", str(job), "--overwrite", "--set", f"spectrum.seed={seed}",
            "--set", "spectrum.eigenvectors=false", ranks=2, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        here = hessdist.open_run(job.parent / "reference.h5")[50]
        print(f"start {seed}: {here.products} products")
        assert here.products <= 75
        for name in ("eigenvalues_largest", "eigenvalues_smallest"):
            assert getattr(here, name) == pytest.approx(expected[name], rel=1e-5)
