"""Contexts in which the graph of a model or a loss can be differentiated twice.

Networks have operations that PyTorch differentiates only once: fused attention, compiled functions,
cuDNN's recurrent layers. While derivatives are taken, operations that compute the same replace
them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from hessdist.curvature.composites import COMPOSITES
from hessdist.curvature.convolution import fast_convolutions


class _Composites(TorchFunctionMode):
    """Replaces operations without a correct second derivative by others that have one."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace a call of a function in `COMPOSITES`, and pass on every other call."""
        options = kwargs or {}
        composite = COMPOSITES.get(func)
        if composite is not None:
            return composite(*args, **options)
        recurrent = getattr(func, "__name__", "") in ("lstm", "gru", "rnn_tanh", "rnn_relu")
        if recurrent and torch.cuda.is_available():
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **options)
        return func(*args, **options)


@contextmanager
def _refusing_reentrant_checkpoints() -> Iterator[None]:
    """Raise an error where reentrant activation checkpointing would drop a graph.

    If no input requires a gradient, as in a first layer, PyTorch drops the graph silently.

    Yields:
        Nothing.
    """
    module = sys.modules.get("torch.utils.checkpoint")
    function = getattr(module, "CheckpointFunction", None)
    if function is None or "apply" in vars(function):
        yield
        return
    apply = function.apply

    def refuse(*given: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("activation checkpointing with use_reentrant=True")
        return apply(*given)

    function.apply = refuse
    try:
        yield
    finally:
        del function.apply


@contextmanager
def exact_derivatives() -> Iterator[None]:
    """Evaluate models and losses with exact gradients that are differentiable.

    Attention uses PyTorch's composite backend, compiled functions run without their compilation,
    and functions in `COMPOSITES` are replaced. Values change only by rounding.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_refusing_reentrant_checkpoints())
        stack.enter_context(_Composites())
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Add convolutions with a fast second derivative to `exact_derivatives`.

    Yields:
        Nothing.
    """
    with exact_derivatives(), fast_convolutions():
        yield
