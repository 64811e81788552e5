"""Products with matrix kernels of less precision: what changes, for how long, and refusals."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
import torch
from conftest import Run
from networks import conv_problem, mlp_problem
from test_products import local_loss
from torch import nn

import hessdist
from hessdist.config.loader import load_job
from hessdist.curvature import precision
from hessdist.curvature.precision import arithmetic
from hessdist.curvature.products import LocalProduct
from hessdist.errors import DependencyError, WorkloadError
from hessdist.objective import Compute

CPU = torch.device("cpu")


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow bfloat16 on CPUs that only emulate it."""
    monkeypatch.setattr(precision, "_require_bfloat16", lambda device: None)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("cache", [0.0, 1e9])
def test_a_product_in_bfloat16_and_back(cache: float) -> None:
    for problem in (mlp_problem("tanh", "cross_entropy"), conv_problem()):
        problem.model.float()
        inputs, targets = problem.dataset.tensors
        data = torch.utils.data.TensorDataset(inputs.float(), targets)
        single = type(problem)(problem.model, problem.loss, data)
        local = local_loss(single)
        product = LocalProduct(local, "hessian", cache)
        reduced = product.reduced("bfloat16")
        v = torch.randn(product.size, generator=torch.Generator().manual_seed(0))
        full = product(v)
        error = float((reduced(v) - full).norm() / full.norm())
        assert 1e-4 < error < 3e-2
        assert torch.equal(reduced(v), reduced(v))
        assert torch.equal(product(v), full)
        assert torch.equal(reduced.of_block(torch.stack([v, v]))[1], reduced(v).double())


def test_switches_of_pytorch_are_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    switches = [SimpleNamespace(fp32_precision="ieee"), SimpleNamespace(fp32_precision="none")]
    monkeypatch.setattr(precision, "_tf32_switches", lambda device: switches)

    def values() -> list[str]:
        return [switch.fp32_precision for switch in switches]

    with arithmetic("tf32", CPU):
        assert values() == ["tf32", "tf32"]
    with pytest.raises(ZeroDivisionError), arithmetic("tf32", CPU):
        _ = 1 / 0
    assert values() == ["ieee", "none"]


def test_devices_without_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DependencyError, match="the device cpu has no TF32"):
        arithmetic("tf32", CPU)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(DependencyError, match="the device cpu has no fast bfloat16"):
        arithmetic("bfloat16", CPU)


@pytest.mark.parametrize(
    "other",
    [{"dtype": "float64"}, {"product": "finite_difference"}, {"shards": 2}, {"recompute": "block"}],
)
def test_settings_that_exclude_it(other: dict[str, object]) -> None:
    (name,) = other
    with pytest.raises(WorkloadError, match=f"precision = 'tf32' does not go with {name} = "):
        Compute(precision="tf32", **other)  # type: ignore[arg-type]


def test_a_precision_without_effect_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hessdist.curvature.products.arithmetic", lambda *of: nullcontext())
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.randint(0, 3, (20,)))
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with pytest.raises(DependencyError, match="has no effect on this device"):
        hessdist.extreme_eigenpairs(
            model, nn.CrossEntropyLoss(), data, largest=2, smallest=1, precision="bfloat16"
        )


def test_the_command_line_stores_it_or_refuses_it(run: Run, job: Path) -> None:
    assert run("train", str(job)).returncode == 0
    settings = "--set", "compute.dtype=float32", "--set", "compute.precision=bfloat16"
    done = run("spectrum", str(job), *settings)
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if not known():
        assert done.returncode == 2
        assert "no fast bfloat16" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert "of reduced precision)" in done.stdout
    with h5py.File(job.parent / "results/digits.h5") as file:
        group = file["checkpoints/step-00000040"]
        assert group.attrs["precision"] == "bfloat16"
        assert 1e-4 < group.attrs["precision_error"] < 3e-2
        assert 0 < group.attrs["reduced_products"] < group["products"][()]
        assert group["residuals_largest"][:].max() <= 1e-3


def test_jobs_in_float32_keep_their_fingerprint(job: Path) -> None:
    without, other = (
        load_job(job, [f"compute.precision={name}"])[0] for name in ("float32", "bfloat16")
    )
    assert "compute.precision" not in without.determining()
    assert without.fingerprint() != other.fingerprint()
