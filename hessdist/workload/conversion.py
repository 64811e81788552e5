"""Which tensors of a checkpoint can become which of a model's without losing anything."""

from __future__ import annotations

import torch
from torch import Tensor


def reason_against(value: Tensor, own: Tensor) -> str | None:
    """Say why a tensor of a checkpoint cannot become one of a model.

    Args:
        value: The checkpoint's.
        own: The model's, of the same shape.

    Returns:
        The reason; None where it can. Whether it is finite is not looked at.
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
    """Say why a tensor is not finite in a model's dtype.

    Args:
        value: The checkpoint's.
        own: The model's.

    Returns:
        The reason; None where it is finite.
    """
    if not (own.is_floating_point() or own.is_complex()):
        return None
    if bool(torch.isfinite(value.to(own.dtype)).all()):
        return None
    wide = value.to(torch.complex128 if value.is_complex() else torch.float64)
    if bool(torch.isfinite(wide).all()):
        return f"holds values beyond {_name(own.dtype)}"
    return "holds NaN or infinity"


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and values, whatever their dtypes.

    Args:
        one: A tensor.
        other: Another.

    Returns:
        Whether.
    """
    if one.shape != other.shape or one.layout != other.layout or one.is_quantized:
        return False
    if one.dtype == other.dtype:
        # Bits rather than values: a NaN is the same as itself.
        return torch.equal(_bits(one), _bits(other))
    is_complex = one.is_complex() or other.is_complex()
    wide = torch.complex128 if is_complex else torch.float64
    return torch.equal(one.detach().cpu().to(wide), other.detach().cpu().to(wide))


def _bits(tensor: Tensor) -> Tensor:
    return as_bytes(tensor) if tensor.layout == torch.strided and not tensor.is_meta else tensor


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor on the CPU, in its own order, whatever its dtype and shape.

    Args:
        tensor: The tensor.

    Returns:
        Bytes, one-dimensional.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.flatten().view(torch.uint8)


def _is_exact(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether all values are the same in a dtype of integers or truth values."""
    if value.is_complex():
        return False
    if value.is_floating_point():
        value = value.to(torch.float64)
        if not bool(torch.isfinite(value).all()):
            return False
    return bool((value.to(dtype).to(value.dtype) == value).all())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
