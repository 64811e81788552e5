"""What numbers and speed need of the whole process, and how it is put back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from hessdist.parallel.ranks import Ranks, choose_device


@contextmanager
def prepared_process(ranks: Ranks, device: str = "auto") -> Iterator[None]:
    """Set the threads, the device and the flags of PyTorch that products need. Collective.

    The same product gives the same bits (deterministic cuDNN), float32 is float32 (no TF32), and
    attention takes the implementation that can be differentiated twice. A rank gets its share of
    the cores of its node, unless OMP_NUM_THREADS is set. All is as before afterwards.

    Args:
        ranks: The ranks, which share the cores of their nodes.
        device: "auto", "cpu" or "cuda".

    Yields:
        Nothing.

    Raises:
        InputError: A GPU is asked for and PyTorch sees none; on every rank.
    """
    import torch
    from threadpoolctl import threadpool_limits

    node_index, _, threads = ranks.node()
    with ranks.agreeing():
        chosen = choose_device(device, node_index)
    cudnn, matmul, mha = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mha
    before = cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    fast_attention, threads_before = mha.get_fastpath_enabled(), torch.get_num_threads()
    with ExitStack() as stack:
        if chosen.type == "cuda":  # for pinned memory and MPI as well
            stack.enter_context(torch.cuda.device(chosen))
        if "OMP_NUM_THREADS" not in os.environ:
            stack.enter_context(threadpool_limits(threads))
            torch.set_num_threads(threads)
        try:
            cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False
            # Its fused layers drop padding, and cannot be differentiated twice.
            mha.set_fastpath_enabled(False)
            yield
        finally:
            cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
            mha.set_fastpath_enabled(fast_attention)
            torch.set_num_threads(threads_before)
