"""Functions of nestings: named tuples, dataclasses, mappings, tuples and lists."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Batch = Any
"""A batch of samples: a pair (inputs, targets), or any nesting of tensors."""


def map_leaves(nesting: Any, change: Callable[[Any], Any]) -> Any:
    """Apply a function to every leaf of a nesting.

    Args:
        nesting: Named tuples, dataclasses, mappings, tuples or lists of anything.
        change: The function.

    Returns:
        A new nesting of the same kinds.
    """
    parts = parts_of(nesting)
    if parts is None:
        return change(nesting)
    return rebuilt(nesting, [map_leaves(part, change) for part in parts])


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Apply a function to every tensor of a nesting, also in a batch of a graph library.

    Args:
        batch: Named tuples, dataclasses, mappings, tuples or lists of tensors and anything else.
        change: The function.

    Returns:
        A new nesting of the same kinds.
    """

    def of_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if _has_apply(leaf):
            return copy.copy(leaf).apply(change)
        return leaf

    return map_leaves(batch, of_leaf)


def floating_tensors(nesting: Any) -> list[Tensor]:
    """Return the floating tensors of a nesting, in order."""
    return [tensor for tensor in _tensors_of(nesting) if tensor.is_floating_point()]


def _tensors_of(nesting: Any) -> list[Tensor]:
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(nesting, collect)
    return tensors


def with_tensors(nesting: Any, tensors: Sequence[Tensor]) -> Any:
    """Replace the floating tensors of a nesting, in the order of `floating_tensors`."""
    remaining = iter(tensors)

    def replace(tensor: Tensor) -> Tensor:
        return next(remaining) if tensor.is_floating_point() else tensor

    return map_tensors(nesting, replace)


def batch_length(batch: Batch) -> int:
    """Return the number of samples in a batch: the length of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    first = next((tensor for tensor in _tensors_of(batch) if tensor.ndim), batch)
    return len(first)


def part(batch: Batch, rows: slice) -> Batch:
    """Return some samples of a batch whose tensors all have its length as first dimension."""
    return map_tensors(batch, lambda tensor: tensor[rows] if tensor.ndim else tensor)


def leading(sample: Any) -> Any:
    """Make a batch of one sample."""
    return map_tensors(sample, lambda tensor: tensor.unsqueeze(0))


def count_bytes(batch: Batch) -> int:
    """Return the number of bytes of all tensors in a nesting."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors_of(batch))


def place(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Move a batch to a device and a dtype.

    Args:
        batch: Any nesting.
        device: The device for its tensors.
        dtype: The dtype for floating tensors. Complex tensors get the complex dtype of the same
            precision, and the others keep their dtype.

    Returns:
        A nesting of the same kinds.
    """

    def placed(tensor: Tensor) -> Tensor:
        wanted = tensor.dtype
        if tensor.is_floating_point():
            wanted = dtype
        elif tensor.is_complex():
            wanted = dtype.to_complex()
        return tensor.to(device, wanted, non_blocking=True)

    return map_tensors(batch, placed)


def parts_of(nesting: Any) -> list[Any] | None:
    """Return the parts of a nesting; None for a leaf."""
    if isinstance(nesting, Mapping):
        return [nesting[key] for key in nesting]
    if isinstance(nesting, PackedSequence):  # its lengths always stay on the CPU
        return [nesting.data, nesting.sorted_indices, nesting.unsorted_indices]
    if isinstance(nesting, (tuple, list)):
        return list(nesting)
    if is_dataclass(nesting):
        return [getattr(nesting, name) for name in field_names(nesting)]
    return None


def rebuilt(nesting: Any, parts: list[Any]) -> Any:
    """Make a nesting of the same kind with other parts."""
    if isinstance(nesting, Mapping):
        return _mapping_like(nesting, dict(zip(nesting, parts, strict=True)))
    if isinstance(nesting, PackedSequence):
        data, order, back = parts
        return PackedSequence(data, nesting.batch_sizes, order, back)
    if isinstance(nesting, tuple):
        return _tuple_like(nesting, parts)
    if isinstance(nesting, list):
        return _list_like(nesting, parts)
    changed = copy.copy(nesting)
    for name, part in zip(field_names(nesting), parts, strict=True):
        object.__setattr__(changed, name, part)  # frozen ones as well
    return changed


def _mapping_like(mapping: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(mapping) is dict:
        return values
    try:
        if not isinstance(mapping, MutableMapping):
            return type(mapping)(values)  # type: ignore[call-arg]
        changed = copy.copy(mapping)  # with its class and its other attributes
        for key, value in values.items():
            changed[key] = value
    except Exception:  # a constructor or a setter of the user can raise anything
        return values
    return changed


def _tuple_like(like: tuple[Any, ...], parts: list[Any]) -> tuple[Any, ...]:
    kind = type(like)
    if kind is tuple:
        return tuple(parts)
    if is_named_tuple(like):
        return kind._make(parts)  # type: ignore[attr-defined,no-any-return]
    try:
        return kind(parts)
    except Exception:  # such as torch.Size, which accepts only integers
        return tuple(parts)


def _list_like(like: list[Any], parts: list[Any]) -> list[Any]:
    if type(like) is list:
        return parts
    try:
        changed = copy.copy(like)
        changed[:] = parts
    except Exception:
        return parts
    return changed


def is_named_tuple(value: Any) -> bool:
    """Return whether a value is a named tuple."""
    return isinstance(value, tuple) and hasattr(value, "_fields") and hasattr(value, "_make")


def is_dataclass(value: Any) -> bool:
    """Return whether a value is an instance of a dataclass, and no model."""
    return dataclasses.is_dataclass(value) and not isinstance(value, (type, nn.Module))


def field_names(value: Any) -> list[str]:
    """Return the names of the fields that an instance of a dataclass has."""
    return [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]


def _has_apply(value: Any) -> bool:
    """Return whether a value has `apply` for its tensors, like a batch of PyTorch Geometric."""
    if isinstance(value, (type, nn.Module)):
        return False
    return callable(getattr(value, "apply", None)) and callable(getattr(value, "to", None))
