"""Settings of the whole process that products need, and how they are restored."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from hessdist.parallel.ranks import Ranks, choose_device

if TYPE_CHECKING:
    import torch


@contextmanager
def prepared_process(ranks: Ranks, device: str = "auto") -> Iterator[None]:
    """Set the threads, the device and the flags of PyTorch that products need. Collective.

    A rank gets its share of the cores of its node, unless OMP_NUM_THREADS is set. Afterwards
    everything is as before, also the global random states and the environment, which data sets and
    libraries change. What cannot be restored is not set here (`memory.keep_freed_memory`).

    Args:
        ranks: The ranks, which share the cores of their nodes.
        device: "auto", "cpu" or "cuda".

    Yields:
        Nothing.

    Raises:
        InputError: A GPU is asked for and PyTorch finds none; on every rank.
    """
    import torch

    node_index, _, share = ranks.node()
    with ranks.agreeing():
        chosen = choose_device(device, node_index)
    on_gpu = chosen.type == "cuda"
    with ExitStack() as stack:
        stack.enter_context(_same_environment())
        stack.enter_context(_same_start_method())
        stack.enter_context(torch.random.fork_rng([chosen] if on_gpu else []))
        stack.enter_context(_same_random_states())
        stack.enter_context(exact_kernels())
        if on_gpu:  # for pinned memory and MPI as well
            stack.enter_context(torch.cuda.device(chosen))
        if "OMP_NUM_THREADS" not in os.environ:
            stack.enter_context(threads(share))
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give PyTorch and every BLAS this many threads, and afterwards as many as before.

    Args:
        count: The number of threads.

    Yields:
        Nothing.
    """
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Give every BLAS this many threads, unless OMP_NUM_THREADS is set; then as many as before.

    Args:
        count: The number of threads.

    Yields:
        Nothing.
    """
    from threadpoolctl import threadpool_limits

    with nullcontext() if "OMP_NUM_THREADS" in os.environ else threadpool_limits(count, "blas"):
        yield


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Train with one thread: rounding depends on their number, and training amplifies it.

    Args:
        device: The device of the model; on a GPU the number of threads does not matter.

    Yields:
        Nothing.
    """
    with threads(1) if device.type == "cpu" else nullcontext():
        yield


@contextmanager
def exact_kernels() -> Iterator[None]:
    """Use kernels that repeat a product to the bit, and that do not round float32 to TF32.

    Yields:
        Nothing.
    """
    import torch

    cudnn, matmul, mha = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mha
    before = cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    fast_attention = mha.get_fastpath_enabled()
    try:
        cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False
        # Its fused layers drop padding, and cannot be differentiated twice.
        mha.set_fastpath_enabled(False)
        yield
    finally:
        cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
        mha.set_fastpath_enabled(fast_attention)


@contextmanager
def _same_environment() -> Iterator[None]:
    """Restore the variables that the start of PETSc and the import of threadpoolctl set."""
    names = ("OPENBLAS_THREAD_TIMEOUT", "KMP_DUPLICATE_LIB_OK")
    new = [name for name in names if name not in os.environ]
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _same_start_method() -> Iterator[None]:
    """Restore how processes start, which PyTorch's loader settles when it reads ahead."""
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        if multiprocessing.get_start_method(allow_none=True) != before:
            multiprocessing.set_start_method(before, force=True)


@contextmanager
def _same_random_states() -> Iterator[None]:
    """Restore the global random states of Python and NumPy."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's data sets
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
