"""From the user's module to the one that is differentiated: unwrapped, checked, converted."""

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

    A compiled model has no second derivative, and the parallel ones are for processes and devices
    that hessdist spreads samples over itself.

    Args:
        model: Any module.

    Returns:
        The module inside; the module itself where there is no wrapper.
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


def check_model(model: nn.Module) -> None:
    """Refuse a model of which something would be lost, or whose loss is no sum over samples.

    Args:
        model: The model, before it is converted.

    Raises:
        WorkloadError: A parameter or a module cannot be differentiated as it is; it is named.
    """
    for name, parameter in model.named_parameters():
        _check_tensor(name, parameter)
    for name, module in model.named_modules():
        _check_module(name or type(module).__name__, module)


def _check_tensor(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise WorkloadError(
            f"the parameter {name} has no shape yet: its layer is lazy",
            "call the model once on a batch, or name the sizes of its layers",
        )
    kind, remedy = _unsuitable(parameter)
    if kind:
        raise WorkloadError(f"the parameter {name} is {kind}", remedy)


def _unsuitable(parameter: nn.Parameter) -> tuple[str, str]:
    """Return what a parameter is that cannot be differentiated, and the remedy."""
    if parameter.is_meta:
        return "on the meta device, and has no values", "build the model on the CPU"
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
            "complex, and eigenpairs are of real parameters",
            "keep torch.view_as_real of it as the parameter, and call torch.view_as_complex in "
            "forward",
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
            f"the module {name} scales its gradient by the frequencies of a batch, which makes it "
            "the gradient of no loss",
            "set scale_grad_by_freq to False",
        )
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise WorkloadError(
            f"the module {name} normalises by statistics of the batch in evaluation too, so the "
            "loss of a sample depends on the other samples of its batch",
            "use track_running_stats=True",
        )


def converted(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a model to a device, its floating tensors to a dtype and complex ones to its complex.

    Args:
        model: The model; it is changed in place.
        device: Where it is wanted.
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
    """Lend a copy of the user's model, or the model itself where it cannot be copied.

    Modules may hold what copy.deepcopy refuses. Activations of the last pass are copied without
    their graph. Where process groups or open files make a copy impossible, the model itself is
    lent, and put back as it was.

    Args:
        model: The user's model.

    Yields:
        A model that may be moved and put into evaluation mode.
    """
    try:
        copied = copy.deepcopy(model, _without_graphs(model))
    except Exception:  # whatever a module holds refuses in its own way
        copied = None
    if copied is not None:
        yield copied
        return
    modes = [(module, module.training) for module in model.modules()]
    data = [(tensor, tensor.data) for tensor in chain(model.parameters(), model.buffers())]
    try:
        for tensor, before in data:
            tensor.data = before.clone()
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for tensor, before in data:
            tensor.data = before


def _without_graphs(model: nn.Module) -> dict[int, Any]:
    """Return what copy.deepcopy shall take for tensors that are the result of a computation."""
    memo: dict[int, Any] = {}

    def look(value: Any, depth: int) -> None:
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
        elif depth and isinstance(value, dict):
            for item in list(value.values()):
                look(item, depth - 1)
        elif depth and isinstance(value, (list, tuple)):
            for item in value:
                look(item, depth - 1)

    for module in model.modules():
        look(vars(module), 3)
    return memo


@contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Have a model compute in another dtype for a while, on copies of its tensors.

    Args:
        model: The model; its own tensors are back, untouched, at the end.
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
