"""Contexts in which the graph of a model or a loss can be differentiated twice.

Networks have operations that PyTorch differentiates only once: fused attention, compiled functions,
cuDNN's recurrent layers. While derivatives are taken, operations that compute the same replace
them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from hessdist.curvature.activations import fast_activations
from hessdist.curvature.composites import COMPOSITES
from hessdist.curvature.convolution import fast_convolutions


class _Composites(TorchFunctionMode):
    """Replaces operations without a correct second derivative by others that have one.

    Args:
        keeps_float64: Whether casts of float64 tensors with a graph to float32 are left out.
    """

    def __init__(self, keeps_float64: bool) -> None:
        super().__init__()
        self.keeps_float64 = keeps_float64

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace a call of a function in `COMPOSITES`, and pass on every other call."""
        options = kwargs or {}
        if self.keeps_float64 and args and _has_float64_graph(args[0]):
            func, args, options = _without_cast(func, args, options)
        composite = COMPOSITES.get(func)
        if composite is not None:
            return composite(*args, **options)
        recurrent = getattr(func, "__name__", "") in ("lstm", "gru", "rnn_tanh", "rnn_relu")
        if recurrent and torch.cuda.is_available():
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **options)
        return func(*args, **options)


def _has_float64_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64 and value.requires_grad


def _without_cast(
    func: Any, args: Sequence[Any], options: Mapping[str, Any]
) -> tuple[Any, Sequence[Any], Mapping[str, Any]]:
    """Let a call give float64 where it would round its float64 input to float32."""
    if func is Tensor.float:
        return Tensor.to, (args[0], torch.float64), options
    if func in (Tensor.to, Tensor.type):
        args = tuple(torch.float64 if one is torch.float32 else one for one in args)
    if options.get("dtype") is torch.float32:
        options = {**options, "dtype": torch.float64}
    return func, args, options


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
def _same_in_checkpoints(contexts: Callable[[], ExitStack]) -> Iterator[None]:
    """Let activation checkpoints replace operations when they are evaluated again, too.

    That happens in a backward pass, outside of the context of the first evaluation.

    Args:
        contexts: Enters the contexts of an evaluation.

    Yields:
        Nothing.
    """
    module = sys.modules.get("torch.utils.checkpoint")
    evaluate = getattr(module, "_checkpoint_without_reentrant_generator", None)
    if module is None or evaluate is None:
        yield
        return

    def replacing(function: Any, *given: Any, **options: Any) -> Any:
        def replaced(*args: Any, **named: Any) -> Any:
            with contexts():
                return function(*args, **named)

        return evaluate(replaced, *given, **options)

    module._checkpoint_without_reentrant_generator = replacing  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module._checkpoint_without_reentrant_generator = evaluate  # type: ignore[attr-defined]


def _operations(dtype: torch.dtype, fast: bool) -> ExitStack:
    """Enter the contexts that replace operations of a model."""
    stack = ExitStack()
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.enter_context(_Composites(dtype == torch.float64))
    if fast:
        stack.enter_context(fast_convolutions())
        stack.enter_context(fast_activations())
    return stack


@contextmanager
def exact_derivatives(dtype: torch.dtype = torch.float32, fast: bool = False) -> Iterator[None]:
    """Evaluate models and losses with exact gradients that are differentiable.

    Attention uses PyTorch's composite backend, compiled functions run without their compilation,
    and functions in `COMPOSITES` are replaced. Models often compute norms and probabilities in
    float32, because they are written for training in 16 bits; if their parameters are float64,
    these casts are left out. Values change only by rounding.

    Args:
        dtype: The dtype of the parameters.
        fast: Whether convolutions and activations have fast second derivatives, as for products.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_refusing_reentrant_checkpoints())
        stack.enter_context(_same_in_checkpoints(lambda: _operations(dtype, fast)))
        stack.enter_context(_operations(dtype, fast))
        yield


@contextmanager
def twice_differentiable(dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Add convolutions and activations with fast second derivatives to `exact_derivatives`.

    Args:
        dtype: The dtype of the parameters.

    Yields:
        Nothing.
    """
    with exact_derivatives(dtype, fast=True):
        yield


def present_context() -> Callable[[], AbstractContextManager[None]]:
    """Return a function that makes the present one of the contexts above again.

    The context that it makes does nothing within one of them.

    Returns:
        The function.
    """
    modes = _function_modes()
    composites = next((mode for mode in modes if isinstance(mode, _Composites)), None)
    if composites is None:
        return nullcontext
    dtype = torch.float64 if composites.keeps_float64 else torch.float32
    twice = any(isinstance(mode, fast_convolutions) for mode in modes)

    def again() -> AbstractContextManager[None]:
        if any(isinstance(mode, _Composites) for mode in _function_modes()):
            return nullcontext()
        return twice_differentiable(dtype) if twice else exact_derivatives(dtype)

    return again


def _function_modes() -> list[TorchFunctionMode]:
    modes: list[TorchFunctionMode] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return modes
