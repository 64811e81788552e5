"""Dense curvature matrices of architectures, by PyTorch alone: hessdist has no part in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import default_collate
from zoo.architectures import Architecture

# Those of which PyTorch's second derivative is missing or wrong: hardsigmoid, its own weight_norm,
# bags of embeddings, margins.
BY_DIFFERENCES = {"mobilenet", "tv_mobilenet", "reparametrised", "bags", "perceptron"}


def in_double(nesting: Any) -> Any:
    """A batch whose floating tensors are in double precision."""
    if isinstance(nesting, Tensor):
        return nesting.double() if nesting.is_floating_point() else nesting
    if isinstance(nesting, dict):
        return {name: in_double(value) for name, value in nesting.items()}
    return [in_double(value) for value in nesting]


def everything(architecture: Architecture, dataset: Any) -> Any:
    """All samples as one batch, in double precision."""
    items = [dataset[index] for index in range(len(dataset))]
    return in_double((architecture.collate or default_collate)(items))


def in_double_too(criterion: Any) -> Any:
    """A criterion whose class weights are in double precision; the given one stays as it is."""
    return deepcopy(criterion).double() if isinstance(criterion, nn.Module) else criterion


def mean_loss(architecture: Architecture, model: nn.Module, batch: Any) -> Tensor:
    """The loss as its users write it for all samples at once."""
    if architecture.mean is not None:
        return architecture.mean(model, batch)
    return in_double_too(architecture.loss)(model(batch[0]), batch[1])


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in order."""
    return [p for p in model.parameters() if p.requires_grad]


def hessian(name: str, architecture: Architecture, model: nn.Module, dataset: Any) -> Tensor:
    """The Hessian of the mean loss, (d, d), at the model's parameters in double precision."""
    batch, parameters = everything(architecture, dataset), trained(model)

    def value() -> Tensor:
        return mean_loss(architecture, model, batch)

    if name in BY_DIFFERENCES:
        return by_differences(value, parameters, rows_of_padding(model))
    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.autograd.grad(value(), parameters, create_graph=True, allow_unused=True)
        gradient = flat(slopes, parameters)
        return symmetric(jacobian(gradient, parameters))


def rows_of_padding(model: nn.Module) -> dict[int, Tensor]:
    """Entries of embeddings, by the parameter's id, that PyTorch takes for constants."""
    found = {}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            constant = torch.zeros_like(module.weight, dtype=torch.bool)
            constant[module.padding_idx] = True
            found[id(module.weight)] = constant.view(-1)
    return found


def by_differences(
    value: Callable[[], Tensor], parameters: Sequence[nn.Parameter], constant: dict[int, Tensor]
) -> Tensor:
    """Central differences of gradients, of fourth order."""
    step, rows = 2e-4, []

    def gradient() -> Tensor:
        slopes = torch.autograd.grad(value(), parameters, allow_unused=True)
        return flat(slopes, parameters)

    for parameter in parameters:
        entries = parameter.data.view(-1)
        for index in range(parameter.numel()):
            before, found = float(entries[index]), {}
            moves = id(parameter) not in constant or not constant[id(parameter)][index]
            for times in (1, -1, 2, -2):
                entries[index] = before + times * step * moves
                found[times] = gradient()
            entries[index] = before
            row = 8 * (found[1] - found[-1]) - (found[2] - found[-2])
            rows.append(row / (12 * step))
    return symmetric(torch.stack(rows))


def gauss_newton(architecture: Architecture, model: nn.Module, dataset: Any) -> Tensor:
    """Jᵀ (∇²_z L) J of the mean loss over all outputs z, (d, d)."""
    batch, parameters = everything(architecture, dataset), trained(model)
    loss = architecture.loss
    with sdpa_kernel(SDPBackend.MATH):
        outputs = model(batch[0]) if architecture.mean is None else loss.outputs(model, batch)
        several = isinstance(outputs, tuple)
        tensors = list(outputs) if several else [outputs]
        z = torch.cat([tensor.reshape(-1) for tensor in tensors])
        sizes = [tensor.numel() for tensor in tensors]
        rows = jacobian(z, parameters)

        def of(flattened: Tensor) -> Tensor:
            parts = [
                part.view(tensor.shape)
                for part, tensor in zip(flattened.split(sizes), tensors, strict=True)
            ]
            given = tuple(parts) if several else parts[0]
            if architecture.mean is None:
                return in_double_too(loss)(given, batch[1])
            total, weight = loss.of_outputs(given, batch)
            return total / weight

        point = z.detach().requires_grad_()
        slope = torch.autograd.grad(of(point), point, create_graph=True)[0]
        inner = symmetric(jacobian(slope, [point]))
    return rows.T @ inner @ rows


def jacobian(outputs: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """(outputs, inputs), all rows at once where PyTorch can."""
    count = len(outputs)
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that are slow there
            eye = torch.eye(count, dtype=outputs.dtype)
            found = torch.autograd.grad(outputs, inputs, eye, is_grads_batched=True, **options)
    except (RuntimeError, NotImplementedError):
        rows = [torch.autograd.grad(outputs[row], inputs, **options) for row in range(count)]
        return torch.stack([flat(row, inputs) for row in rows])
    pieces = [
        torch.zeros(count, one.numel(), dtype=one.dtype)
        if piece is None
        else piece.reshape(count, -1)
        for piece, one in zip(found, inputs, strict=True)
    ]
    return torch.cat(pieces, 1)


def flat(pieces: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One vector; None stands for zeros."""
    return torch.cat([
        torch.zeros(one.numel(), dtype=one.dtype) if piece is None else piece.to_dense().reshape(-1)
        for piece, one in zip(pieces, like, strict=True)
    ])


def symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part, detached, of a matrix that is symmetric but for rounding."""
    matrix = matrix.detach()
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-6, atol=1e-6 * float(matrix.abs().max()))
    return (matrix + matrix.T) / 2
