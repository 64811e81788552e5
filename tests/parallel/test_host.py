"""The library leaves its host as it was: threads, flags, device, environment, random states."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from torch.utils.data import TensorDataset

import hessdist
from hessdist.errors import InputError


def state_of_the_host() -> dict[str, Any]:
    """Everything global that a numerical library is tempted to set."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "threads": torch.get_num_threads(),
        "pools": {one["filepath"]: one["num_threads"] for one in threadpool_info()},
        "cudnn": (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, cudnn.enabled),
        "matmul": (matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "sdp": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomaly": torch.is_anomaly_enabled(),
        "random": (
            torch.get_rng_state().numpy().tobytes(),
            np.random.get_state()[1].tobytes(),  # noqa: NPY002
            random.getstate(),
        ),
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "errors": np.geterr(),
        # Importing a library, as torch.func does with SymPy, may add a filter of its own.
        "warnings": [one for one in warnings.filters if "sympy" not in one[2].__module__],
        "logging": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "signals": {
            number: signal.getsignal(number)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        },
        "processes": multiprocessing.get_start_method(allow_none=True),
    }


@contextmanager
def unusual_host() -> Iterator[None]:
    """Settings that are not the defaults, so that putting back defaults is found out."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.allow_tf32, torch.get_num_threads()
    with threadpool_limits(3):
        cudnn.deterministic, cudnn.allow_tf32 = False, True
        torch.backends.mha.set_fastpath_enabled(True)
        torch.set_num_threads(3)
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.allow_tf32 = before[:2]
            torch.set_num_threads(before[2])


class Drawing(TensorDataset):
    """A data set that draws from the global random states, and gives the same samples."""

    def __getitem__(self, index: int) -> Any:
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        return super().__getitem__(index)


def problem(kind: str) -> tuple[nn.Module, Any, Any]:
    generator = torch.Generator().manual_seed(5)
    if kind == "attention":
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        sequences = torch.randn(6, 3, 4, generator=generator)
        return layer, nn.MSELoss(), TensorDataset(sequences, torch.tanh(sequences))
    x = torch.randn(12, 4, generator=generator)
    y = torch.randint(3, (12,), generator=generator)
    if kind == "nan":
        x[3] = float("nan")
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    dataset = Drawing if kind == "drawing" else TensorDataset
    return model, nn.CrossEntropyLoss(), dataset(x, y)


CALLS = {
    "extreme_eigenpairs": {"largest": 2, "smallest": 1},
    "exact_spectrum": {},
    "spectral_density": {"probes": 2, "steps": 4},
}


@pytest.mark.parametrize(
    ("call", "kind", "omp"),
    [
        *(
            ("extreme_eigenpairs", kind, None)
            for kind in ("attention", "nan", "bad argument", "read ahead", "drawing")
        ),
        *((call, "batch norm", None) for call in CALLS),
        ("extreme_eigenpairs", "batch norm", "1"),
    ],
)
def test_nothing_is_left_changed(
    call: str, kind: str, omp: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", omp) if omp else monkeypatch.delenv(
        "OMP_NUM_THREADS", raising=False
    )
    given: dict[str, Any] = dict(CALLS[call])
    model, loss, dataset = problem(kind)
    if kind == "bad argument":
        given["batch_size"] = 0
    if kind == "read ahead":
        given |= {"workers": 1, "data_gib": 0.0, "batch_size": 8}
    getattr(hessdist, call)(*problem("batch norm"), **CALLS[call])  # MPI and PETSc start once
    with unusual_host():
        before = state_of_the_host()
        training = model.training
        if kind in {"nan", "bad argument"}:
            with pytest.raises((InputError, hessdist.errors.NumericalError)):
                getattr(hessdist, call)(model, loss, dataset, **given)
        else:
            getattr(hessdist, call)(model, loss, dataset, **given)
        after = state_of_the_host()
        for name, value in before.items():
            assert after[name] == value, name
        assert model.training == training


def test_the_first_call_of_a_process_changes_nothing_that_can_be_put_back() -> None:
    """PETSc and MPI are initialised then; signals, threads and the environment stay."""
    import subprocess
    import sys

    code = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from parallel.test_host import CALLS, problem, state_of_the_host
import hessdist
import hessdist.api, mpi4py.MPI, petsc4py, slepc4py, h5py, scipy.optimize, sklearn.utils
import torch.fx.experimental.symbolic_shapes  # autograd imports it, and warnings are changed
given = problem("batch norm")
before = state_of_the_host()
hessdist.extreme_eigenpairs(*given, **CALLS["extreme_eigenpairs"])
after = state_of_the_host()
after["pools"] = {name: after["pools"][name] for name in before["pools"]}  # less new libraries
for state in before, after:
    state["warnings"] = set(state["warnings"])  # PETSc's import changes their order
changed = [name for name in before if after[name] != before[name]]
assert not changed, changed
"""
    folder = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
