"""Preparing the user's module for derivatives: unwrapping, checks and conversion."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from hessdist.errors import WorkloadError


def unwrapped(model: nn.Module) -> nn.Module:
    """Find the module behind torch.compile, DataParallel and DistributedDataParallel.

    A compiled model has no second derivative, and hessdist itself distributes samples over
    processes and devices.

    Args:
        model: Any module.

    Returns:
        The wrapped module, or the module itself if it has no wrapper.
    """
    while True:
        inner = None
        if type(model).__name__ == "OptimizedModule":
            inner = getattr(model, "_orig_mod", None)
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_model(model: nn.Module, on_meta: bool = False) -> None:
    """Refuse a model with unsuitable parameters or buffers, or whose loss is no sum over samples.

    Args:
        model: The model, before it is converted.
        on_meta: Whether parameters may be on the meta device.

    Raises:
        WorkloadError: A parameter or a module cannot be differentiated; the message names it.
    """
    require_values(model, on_meta)
    for name, parameter in model.named_parameters():
        _check_tensor(name, parameter)
    attention = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    if "flash" in attention or attention == "flex_attention":  # transformers' names of kernels
        raise WorkloadError(
            f"the model computes attention by '{attention}', which has no second derivative",
            "build it with attn_implementation='eager'; checkpoints are the same",
        )
    for name, module in model.named_modules():
        _check_module(name or type(module).__name__, module)


def require_values(model: nn.Module, on_meta: bool = False) -> None:
    """Refuse a model with parameters or buffers on the meta device, which have no values.

    Args:
        model: The model.
        on_meta: Whether parameters, but not buffers, may be there.

    Raises:
        WorkloadError: A tensor is on the meta device; the message names it.
    """
    kinds = [("buffer", model.named_buffers())]
    if not on_meta:
        kinds.insert(0, ("parameter", model.named_parameters()))
    for kind, tensors in kinds:
        for name, tensor in tensors:
            if tensor.is_meta:
                raise WorkloadError(
                    f"the {kind} {name} is on the meta device, and has no values",
                    "build the model on the CPU",
                )


def _check_tensor(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise WorkloadError(
            f"the parameter {name} has no shape yet: its layer is lazy",
            "call the model once on a batch, or give the sizes of its layers",
        )
    kind, remedy = _unsuitable(parameter)
    if kind:
        raise WorkloadError(f"the parameter {name} is {kind}", remedy)


def _unsuitable(parameter: nn.Parameter) -> tuple[str, str]:
    """Return why a parameter cannot be differentiated, and the remedy; empty if it can."""
    if type(parameter.data) is not Tensor:
        kind = type(parameter.data).__name__
        return f"a {kind}, not a plain tensor", "load its values into a plain model"
    if parameter.is_quantized:
        return "quantised", "analyse the model before it is quantised"
    if parameter.layout != torch.strided:
        return "sparse", "call to_dense() on it"
    if parameter.is_complex():
        if not parameter.requires_grad:
            return "", ""
        return (
            "complex, but eigenpairs need real parameters",
            "use torch.view_as_real of it as the parameter, and torch.view_as_complex in forward",
        )
    if not parameter.is_floating_point():
        return (
            f"of integers ({str(parameter.dtype).removeprefix('torch.')})",
            "analyse the model before it is quantised, or register the tensor as a buffer",
        )
    return "", ""


def _check_module(name: str, module: nn.Module) -> None:
    if ".quantized" in type(module).__module__:
        raise WorkloadError(
            f"the module {name} is quantised ({type(module).__name__})",
            "analyse the model before it is quantised",
        )
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
        raise WorkloadError(
            f"the module {name} changes its own parameters when it is evaluated (max_norm)",
            "renormalise its weight once, and set max_norm to None",
        )
    if getattr(module, "scale_grad_by_freq", False):
        raise WorkloadError(
            f"the module {name} scales its gradient by the frequencies of a batch, so that it is "
            "the gradient of no loss",
            "set scale_grad_by_freq to False",
        )
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise WorkloadError(
            f"the module {name} has no running statistics, so the loss of a sample depends on the "
            "other samples of its batch",
            "use track_running_stats=True",
        )


def converted(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a model to a device, and its floating and complex tensors to a precision.

    Args:
        model: The model, which is changed in place.
        device: The device for the model.
        dtype: float32 or float64.

    Returns:
        The model.
    """

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return tensor.to(device, dtype)
        return tensor.to(device, dtype.to_complex()) if tensor.is_complex() else tensor.to(device)

    model._apply(convert)  # type: ignore[no-untyped-call]
    return model


@contextmanager
def borrowed(model: nn.Module) -> Iterator[nn.Module]:
    """Provide a copy of the user's model, or the model itself if it cannot be copied.

    copy.deepcopy refuses some objects in modules. Activations of the last pass are copied without
    their graph. If process groups or open files make a copy impossible, the model itself is used,
    and restored at the end.

    Args:
        model: The user's model.

    Yields:
        A model that may be moved and set to evaluation mode.
    """
    try:
        copied = copy.deepcopy(model, _without_graphs(model))
    except Exception:  # objects in a module can raise anything
        copied = None
    if copied is not None:
        yield copied
        return
    modes = [(module, module.training, type(module)) for module in model.modules()]
    data = [(tensor, tensor.data) for tensor in chain(model.parameters(), model.buffers())]
    try:
        for tensor, before in data:
            tensor.data = before.clone()
        yield model
    finally:
        for module, training, kind in modes:
            module.training = training
            module.__class__ = kind
        for tensor, before in data:
            tensor.data = before


def _without_graphs(model: nn.Module) -> dict[int, Any]:
    """Make a memo for copy.deepcopy that replaces tensors with a graph by detached copies."""
    memo: dict[int, Any] = {}

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        elif depth and isinstance(value, dict):
            for item in list(value.values()):
                visit(item, depth - 1)
        elif depth and isinstance(value, (list, tuple)):
            for item in value:
                visit(item, depth - 1)

    for module in model.modules():
        visit(vars(module), 3)
    return memo


@contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let a model compute in another dtype within a context, on copies of its tensors.

    Args:
        model: The model; its own tensors are restored, unchanged, at the end.
        dtype: float32 or float64.

    Yields:
        Nothing.
    """
    tensors = list(chain(model.parameters(), model.buffers()))
    before = [tensor.data for tensor in tensors]
    try:
        for tensor, data in zip(tensors, before, strict=True):
            if data.is_floating_point():
                tensor.data = data.to(dtype, copy=True)
            elif data.is_complex():
                tensor.data = data.to(dtype.to_complex(), copy=True)
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
