"""How models and losses are evaluated where a graph is differentiated twice.

Users' networks hold operations that PyTorch differentiates once: fused attention, compiled
functions, cuDNN's recurrent layers. For as long as derivatives are taken, others stand for them
that compute the same.
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
from hessdist.curvature.convolution import own_convolutions

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


class _Composites(TorchFunctionMode):
    """Replaces what has no right second derivative by operations that have one."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace a call of a function in `COMPOSITES`; pass every other on."""
        options = kwargs or {}
        composite = COMPOSITES.get(func)
        if composite is not None:
            return composite(*args, **options)
        if torch.cuda.is_available() and getattr(func, "__name__", "") in _RECURRENT:
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **options)
        return func(*args, **options)


@contextmanager
def _refusing_reentrant_checkpoints() -> Iterator[None]:
    """Raise where a graph is dropped by reentrant activation checkpointing.

    Where no input requires a gradient, as in a first layer, PyTorch goes on without one in silence.

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
    """Evaluate models and losses so that their gradient is that of the loss, and differentiable.

    Attention is computed by PyTorch's composite backend, compiled functions run as they were
    before they were compiled, and what is in `COMPOSITES` is replaced. Values do not change, but
    for rounding.

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
    """`exact_derivatives`, with convolutions whose second derivative is fast.

    Yields:
        Nothing.
    """
    with exact_derivatives(), own_convolutions():
        yield
