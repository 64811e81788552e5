"""The architectures that people train, against dense matrices that owe nothing to hessdist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from zoo.architectures import ARCHITECTURES, OURS, network, samples
from zoo.dense import gauss_newton, hessian
from zoo.libraries import LIBRARIES

import hessdist
from hessdist.errors import WorkloadError

# The second derivative of this criterion by the outputs is zero almost everywhere.
NO_GAUSS_NEWTON = {"perceptron"}
# More than 1,000 parameters, or a Hessian by differences that takes its time.
LONG = {
    "hf_llama",
    "hf_mixtral",
    "tv_convnext",
    "tv_mobilenet",
    "tv_swin",
    "tv_densenet",
    "timm_mixer",
    "hf_resnet",
}

# PyTorch advises other forms of what is here on purpose, and lazy imports of libraries warn.
pytestmark = pytest.mark.filterwarnings("ignore")


def model_of(name: str) -> nn.Module:
    """The network, unless its library is not installed, or not for this PyTorch."""
    package = LIBRARIES.get(name)
    if package is not None:
        try:
            __import__(package)
        except Exception as error:  # a library for CUDA fails to load in many ways
            pytest.skip(f"{package} does not import: {error}")
    return network(name)


def eigenpairs(name: str, model: nn.Module, **options: Any) -> Any:
    architecture = ARCHITECTURES[name]
    given = {"largest": 3, "smallest": 2, "tolerance": 1e-5, "batch_size": 5} | options
    return hessdist.extreme_eigenpairs(
        model, architecture.loss, samples(name), collate=architecture.collate, **given
    )


def both_ends(spectrum: Any) -> np.ndarray:
    return np.concatenate([spectrum.eigenvalues_smallest, spectrum.eigenvalues_largest])


def ends_of(matrix: torch.Tensor) -> np.ndarray:
    """The two smallest eigenvalues ascending, the three largest descending."""
    values = torch.linalg.eigvalsh(matrix).numpy()
    return np.concatenate([values[:2], values[:-4:-1]])


def check(name: str) -> None:
    architecture, model = ARCHITECTURES[name], model_of(name).double()
    exact = ends_of(hessian(name, architecture, model, samples(name)))
    scale = np.abs(exact).max()
    found = eigenpairs(name, model)
    assert found.converged
    # Models of transformers round some of what they compute to single precision.
    rounding = 1e-6 if name in LIBRARIES else 1e-8
    np.testing.assert_allclose(both_ends(found), exact, rtol=1e-6, atol=rounding * scale)
    single = eigenpairs(name, model.float(), tolerance=1e-3, batch_size=4)
    np.testing.assert_allclose(both_ends(single), exact, rtol=1e-3, atol=1e-5 * scale)
    if architecture.takes_outputs and name not in NO_GAUSS_NEWTON:
        model = model_of(name).double()
        largest = ends_of(gauss_newton(architecture, model, samples(name)))[2:]
        found = eigenpairs(name, model, smallest=0, operator="gauss_newton")
        np.testing.assert_allclose(
            found.eigenvalues_largest, largest, rtol=1e-6, atol=rounding * largest.max()
        )


@pytest.mark.parametrize("name", OURS)
def test_eigenvalues_of_both_ends_are_those_of_the_dense_matrix(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in LIBRARIES],
)
def test_models_of_libraries_are_taken_as_they_come(name: str) -> None:
    check(name)


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_a_contrastive_loss_has_no_mean_over_samples(batch_size: int) -> None:
    with pytest.raises(WorkloadError, match=r"depends on the other samples.*contrastive"):
        eigenpairs("contrastive", network("contrastive").double(), batch_size=batch_size)


def test_a_row_of_padding_is_a_constant() -> None:
    """PyTorch gives it no gradient, so its rows and columns of the Hessian are zero."""
    name = "bags"
    model = network(name).double()
    spectrum = eigenpairs(name, model, layers=["rows"], largest=21, smallest=0, tolerance=1e-3)
    vectors = spectrum.eigenvectors_largest.reshape(21, 7, 3)
    apart = np.abs(spectrum.eigenvalues_largest) > 1e-12
    assert 0 < apart.sum() <= 18
    assert np.abs(vectors[apart, 0]).max() < 1e-10


# -- no false alarm --------------------------------------------------------------------------


def zero_last(model: nn.Module) -> None:
    """The last layer starts at zero, as in many recipes."""
    for parameter in [p for p in model.parameters() if p.requires_grad][-2:]:
        nn.init.zeros_(parameter)


def zero_biases(model: nn.Module) -> None:
    """ReLU of a black image is at its kink."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)


def constant(model: nn.Module) -> None:
    """Every unit of a layer is the same: max pooling and top-k have ties."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.constant_(parameter, 0.1)


class Black:
    """The samples of a data set with inputs of zero; with a count, the first ones alone."""

    def __init__(self, dataset: Any, count: int | None = None) -> None:
        self.dataset, self.count = dataset, count or len(dataset)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        inputs, labels = self.dataset[index]
        return torch.zeros_like(inputs), labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [zero_last, zero_biases, constant])
@pytest.mark.parametrize("name", ["resnet", "pointnet", "perceptron"])
def test_kinks_ties_and_black_images_are_no_fault_of_the_loss(
    name: str, start: Any, dtype: torch.dtype
) -> None:
    architecture, model = ARCHITECTURES[name], network(name).to(dtype)
    start(model)
    for dataset in (samples(name), Black(samples(name)), Black(samples(name), 1)):
        spectrum = hessdist.extreme_eigenpairs(
            model, architecture.loss, dataset, largest=1, smallest=0, tolerance=0.1, batch_size=5
        )
        assert np.isfinite(spectrum.loss)


@pytest.mark.parametrize(
    ("dtype", "factors"), [(torch.float32, (1.0, 1.5)), (torch.float64, (1.0, 1.5, 1.5, 1.2, 1.2))]
)
def test_a_loss_that_is_trained_to_nothing_is_no_fault(
    dtype: torch.dtype, factors: tuple[float, ...]
) -> None:
    """Down to 1e-12 in double precision, 1e-6 in single: below, curvature itself is rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)).double()
    dataset = samples("lora")
    inputs, labels = dataset.tensors
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.double()), labels).backward()
        optimizer.step()
    for factor in factors:
        with torch.no_grad():
            for parameter in model[2].parameters():
                parameter.mul_(factor)
        loss = float(nn.functional.cross_entropy(model(inputs.double()), labels).detach())
        spectrum = hessdist.extreme_eigenpairs(
            model.to(dtype), nn.CrossEntropyLoss(), dataset, largest=1, smallest=0, batch_size=5
        )
        model.double()
        assert spectrum.loss == pytest.approx(loss, rel=0.1 if dtype == torch.float32 else 1e-3)
    assert loss < (1e-5 if dtype == torch.float32 else 1e-9)


# -- the command line ------------------------------------------------------------------------

JOB = """
name = "{name}"
[model]
factory = "zoo.architectures:network"
arguments = {{ name = "{name}" }}
[loss]
factory = "zoo.architectures:loss"
arguments = {{ name = "{name}" }}
[data]
dataset = "zoo.architectures:samples"
arguments = {{ name = "{name}" }}
{collate}
[training]
optimizer = "sgd"
learning_rate = {rate}
batch_size = 5
steps = 3
checkpoint_steps = [3]
[checkpoints]
directory = "checkpoints/{name}"
[spectrum]
largest = 3
smallest = 2
[compute]
dtype = "float64"
batch_size = 4
[output]
path = "results/{name}.h5"
[study.blocks]
blocks = [["{block}"]]
largest = 2
smallest = 1
[study.density]
probes = 2
lanczos_steps = 10
trace_products = 0
"""


def write_job(folder: Path, name: str) -> None:
    architecture = ARCHITECTURES[name]
    collate = architecture.collate and architecture.collate.__name__
    first = next(n for n, p in network(name).named_parameters() if p.requires_grad)
    (folder / f"{name}.toml").write_text(
        JOB.format(
            name=name,
            collate=f'collate = "zoo.architectures:{collate}"' if collate else "",
            rate=architecture.learning_rate,
            block=first,
        ),
        encoding="utf-8",
    )


def commands(folder: Path, words: list[str], names: list[str], ranks: int = 0) -> None:
    """Run commands for several jobs in one process, or in one for each rank."""
    each = [[word, f"{name}.toml"] for name in names for word in words]
    joined = [piece for one in each for piece in (",", *one)][1:]
    launcher = ["mpirun", "-n", str(ranks)] if ranks else []
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "zoo.commands", *joined],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-500:]


def taken_through(folder: Path, names: list[str]) -> None:
    """Train, sweep at two ranks, diagnose and study; compare with the oracle at the checkpoint."""
    for name in names:
        write_job(folder, name)
    commands(folder, ["train"], names)
    commands(folder, ["spectrum"], names, ranks=2)
    commands(folder, ["diagnose", "study"], names)
    for name in names:
        architecture, model = ARCHITECTURES[name], network(name)
        (checkpoint,) = (folder / "checkpoints" / name).glob("*3*")
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state.get("state_dict", state.get("model", state)))
        model = model.double().eval()
        exact = ends_of(hessian(name, architecture, model, samples(name)))
        run = hessdist.open_run(folder / "results" / f"{name}.h5")
        found = np.concatenate([run.eigenvalues_smallest[-1], run.eigenvalues_largest[-1]])
        np.testing.assert_allclose(
            found, exact, rtol=1e-5, atol=1e-6 * np.abs(exact).max(), err_msg=name
        )


def test_the_command_line_takes_networks_with_batch_norm_graphs_and_language_models(
    tmp_path: Path,
) -> None:
    taken_through(tmp_path, ["resnet", "gpt", "graph"])


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, len(OURS), 7))
def test_the_command_line_takes_every_architecture(tmp_path: Path, start: int) -> None:
    taken_through(tmp_path, list(OURS[start : start + 7]))
