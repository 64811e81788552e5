"""Checks that a tensor of a checkpoint can be loaded into one of a model without a loss."""

from __future__ import annotations

import torch
from torch import Tensor


def reason_against(value: Tensor, own: Tensor) -> str | None:
    """Return the reason why a tensor of a checkpoint cannot be loaded into one of a model.

    Args:
        value: The tensor of the checkpoint.
        own: The tensor of the model, with the same shape.

    Returns:
        The reason; None if it can be loaded. NaN and infinity are not checked.
    """
    if value.is_quantized:
        return "is quantised"
    if value.layout != torch.strided:
        return "is sparse"
    if value.is_meta:
        return "has no values (device meta)"
    if value.is_complex() and not own.is_complex():
        return "is complex there and real in the model"
    is_number = value.is_floating_point() or value.is_complex()
    if (own.is_floating_point() or own.is_complex()) and not is_number:
        return f"holds {_name(value.dtype)} there and {_name(own.dtype)} in the model"
    if not own.is_floating_point() and not own.is_complex() and not _is_exact(value, own.dtype):
        return f"holds {_name(value.dtype)} that are not exact as the model's {_name(own.dtype)}"
    return None


def reason_not_finite(value: Tensor, own: Tensor) -> str | None:
    """Return the reason why a tensor is not finite in a model's dtype.

    Args:
        value: The tensor of the checkpoint.
        own: The tensor of the model.

    Returns:
        The reason; None if it is finite.
    """
    if not (own.is_floating_point() or own.is_complex()):
        return None
    if bool(torch.isfinite(value.to(own.dtype)).all()):
        return None
    wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
    if bool(torch.isfinite(wide).all()):
        return f"holds values beyond {_name(own.dtype)}"
    return "holds NaN or infinity"


def equal(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors have the same shape and values, for any dtypes."""
    if first.shape != second.shape or first.layout != second.layout or first.is_quantized:
        return False
    if first.dtype == second.dtype:
        # Bits rather than values, so that a NaN equals itself.
        return torch.equal(_bits(first), _bits(second))
    is_complex = first.is_complex() or second.is_complex()
    wide = torch.complex128 if is_complex else torch.float64
    return torch.equal(first.detach().cpu().to(wide), second.detach().cpu().to(wide))


def _bits(tensor: Tensor) -> Tensor:
    return as_bytes(tensor) if tensor.layout == torch.strided and not tensor.is_meta else tensor


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor on the CPU, one-dimensional, for any dtype and shape."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8)


def _is_exact(value: Tensor, dtype: torch.dtype) -> bool:
    """Return whether all values are the same in a dtype of integers or booleans."""
    if value.is_complex():
        return False
    if value.is_floating_point():
        value = value.to(torch.float64)
        if not bool(torch.isfinite(value).all()):
            return False
    return bool((value.to(dtype).to(value.dtype) == value).all())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
