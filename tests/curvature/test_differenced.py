"""Products by central differences: close to the dense matrix, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import Run
from networks import Samples, dense, mlp_problem
from test_products import local_loss
from test_recomputation import problem
from torch import nn

import hessdist
from hessdist.config.loader import load_job
from hessdist.curvature.differenced import CentralProduct
from hessdist.errors import NumericalError, WorkloadError


def test_products_are_nearly_those_of_the_dense_matrix() -> None:
    given = mlp_problem("tanh", "cross_entropy")
    expected = dense(given, "hessian")
    local = local_loss(given)
    theta = local.parameters.flat()
    product = CentralProduct(local)
    for scale in (1e-6, 1.0, 1e6):  # the step does not depend on the norm of v
        found = torch.stack([product(scale * v) / scale for v in torch.eye(53).double()])
        assert torch.allclose(found, expected, atol=1e-7 * float(expected.abs().max()), rtol=0)
    assert torch.equal(local.parameters.flat(), theta)
    assert not product(torch.zeros(53, dtype=torch.float64)).any()


def eigenpairs(given: Any, **more: Any) -> hessdist.api.Spectrum:
    options = {"largest": 3, "smallest": 2, "product": "finite_difference", **more}
    return hessdist.extreme_eigenpairs(given.model, given.loss, given.dataset, **options)


def test_eigenvalues_are_those_of_the_dense_matrix_and_the_error_is_said() -> None:
    given = mlp_problem("tanh", "cross_entropy")
    exact = np.linalg.eigvalsh(dense(given, "hessian").numpy() / 20)[::-1]
    found = eigenpairs(given, tolerance=1e-6)
    assert np.abs(found.eigenvalues_largest - exact[:3]).max() <= 1e-8 * exact[0]
    assert np.abs(found.eigenvalues_smallest - exact[::-1][:2]).max() <= 1e-8 * exact[0]
    assert 0 < found.product_error < 1e-8
    assert eigenpairs(given, product="exact").product_error == 0


def test_whole_spectra_take_products_by_differences() -> None:
    given = mlp_problem("tanh", "cross_entropy")
    expected = np.linalg.eigvalsh(dense(given, "hessian").numpy() / 20)
    data = given.model, given.loss, given.dataset
    found = hessdist.exact_spectrum(*data, product="finite_difference")
    assert np.abs(found.values - expected).max() <= 1e-7 * expected[-1]
    assert not np.array_equal(found.values, hessdist.exact_spectrum(*data).values)
    density = hessdist.spectral_density(*data, probes=1, steps=20, product="finite_difference")
    exact = hessdist.spectral_density(*data, probes=1, steps=20)
    assert density.trace().value == pytest.approx(exact.trace().value, rel=1e-5)


def test_inaccurate_products_are_refused() -> None:
    given = mlp_problem("tanh", "cross_entropy", dtype=torch.float32)
    with pytest.raises(NumericalError, match=r"above 1e-07; use compute\.dtype = 'float64'"):
        eigenpairs(given, tolerance=1e-7)
    with pytest.raises(WorkloadError, match="for the Hessian, not for 'gauss_newton'"):
        eigenpairs(given, operator="gauss_newton")


def test_kinks_that_a_few_samples_do_not_show_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)
    )
    given = type("Given", (), {})()
    given.model, given.loss = model.double(), nn.CrossEntropyLoss()
    given.dataset = Samples(torch.randn(2000, 4).double(), torch.randint(0, 3, (2000,)))
    with pytest.raises(NumericalError, match="finite differences"):
        eigenpairs(given)


@pytest.mark.mpi(ranks=[2], timeout=60, unit="s")
def test_with_spread_parameters(mpi_ranks: int, comm: Any) -> None:
    model, data = problem("odd")

    def solved(**more: Any) -> Any:
        options = {"largest": 2, "smallest": 0, "tolerance": 1e-4, "batch_size": 2, **more}
        loss = nn.CrossEntropyLoss()
        return hessdist.extreme_eigenpairs(model, loss, data, comm=comm, **options)

    right = solved().eigenvalues_largest
    again = solved(shards=2, recompute="block").eigenvalues_largest
    assert np.allclose(again, right, rtol=1e-9, atol=1e-12)
    both = solved(shards=2, recompute="block", product="finite_difference")
    assert np.allclose(both.eigenvalues_largest, right, rtol=1e-6, atol=1e-9)
    assert 0 < both.product_error < 1e-6


def test_the_command_line_says_the_error_and_knows_other_products(run: Run, job: Path) -> None:
    assert run("train", str(job)).returncode == 0
    done = run("spectrum", str(job), "--set", "compute.product=finite_difference")
    assert done.returncode == 0, done.stderr
    assert "step 40: products by finite differences, with a relative error of" in done.stdout
    shown = run("show", "results/digits.h5").stdout
    assert "products by finite differences, relative error up to" in shown
    with h5py.File(job.parent / "results/digits.h5") as file:
        assert 0 < file["checkpoints/step-00000040"].attrs["product_error"] < 1e-6
    exact = run("spectrum", str(job))
    assert exact.returncode == 2
    assert "compute.product" in exact.stderr


def test_exact_jobs_keep_their_fingerprint(job: Path) -> None:
    exact, again, other = (
        load_job(job, [f"compute.{setting}"])[0]
        for setting in ("product=exact", "recompute=block", "product=finite_difference")
    )
    assert "compute.product" not in exact.determining()
    assert exact.fingerprint() == again.fingerprint() != other.fingerprint()
