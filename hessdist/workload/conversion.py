"""Checks that a tensor of a checkpoint can be loaded into one of a model without a loss."""

from __future__ import annotations

import torch
from torch import Tensor


def shape_of(tensor: Tensor) -> torch.Size | None:
    """Return the shape of a tensor; None for a nested tensor, which has none."""
    return None if tensor.is_nested else tensor.shape


def reason_against(value: Tensor, own: Tensor) -> str | None:
    """Return the reason why a tensor of a checkpoint cannot be loaded into one of a model.

    Every format of 8 bits has exact values in float32 (`torch.float8_e4m3fn` and its kin), so that
    such tensors can be loaded; packed formats cannot.

    Args:
        value: The tensor of the checkpoint.
        own: The tensor of the model, with the same shape.

    Returns:
        The reason; None if it can be loaded. NaN and infinity are not checked.
    """
    if value.is_quantized:
        return "is quantised"
    if value.layout != torch.strided or value.is_nested:
        return "is nested" if value.is_nested else "is sparse"
    if value.is_meta:
        return "has no values (device meta)"
    if value.is_complex() and not own.is_complex():
        return "is complex there and real in the model"
    if not _is_convertible(value):
        return f"is of {_name(value.dtype)}, which PyTorch cannot convert"
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
    """Return whether two tensors have the same shape and values, for any dtypes.

    Tensors without plain values (sparse, quantised, nested, meta) are equal to none.
    """
    if not (_is_plain(first) and _is_plain(second)) or first.shape != second.shape:
        return False
    if first.dtype == second.dtype:
        # Bits rather than values, so that a NaN equals itself.
        return torch.equal(as_bytes(first), as_bytes(second))
    is_complex = first.is_complex() or second.is_complex()
    wide = torch.complex128 if is_complex else torch.float64
    return torch.equal(first.detach().cpu().to(wide), second.detach().cpu().to(wide))


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor on the CPU, one-dimensional, for any dtype and shape."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8)


def _is_plain(tensor: Tensor) -> bool:
    is_odd = tensor.is_quantized or tensor.is_nested or tensor.is_meta
    return tensor.layout == torch.strided and not is_odd


def _is_convertible(value: Tensor) -> bool:
    wide = torch.complex128 if value.is_complex() else torch.float64
    try:
        value.flatten()[:1].to(wide)
    except (RuntimeError, TypeError):  # such as two numbers in a byte
        return False
    return True


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
