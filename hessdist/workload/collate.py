"""Making a batch of samples, by stacking or by a function of the user.

A nesting keeps its kind. A list of numbers inside a sample is one leaf, like an array; a list at
the top of a sample is the same as a tuple, such as a pair of inputs and targets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from hessdist.errors import DataError
from hessdist.workload.factories import call_factory, find_factory, name_of, one_line
from hessdist.workload.nestings import (
    Batch,
    field_names,
    is_dataclass,
    is_named_tuple,
    map_leaves,
    parts_of,
    rebuilt,
)

Collate = Callable[[list[Any]], Batch]
"""A function of the user that makes a batch of a list of samples."""

PAD = (
    "or give a function that makes a batch of a list of samples (data.collate = 'module:callable', "
    "collate= in Python)"
)
"""The last part of the remedy for samples that cannot be stacked."""

_NUMBER_TYPES = (bool, int, float, complex, np.generic)


def find_collate(name: str | None) -> Collate | None:
    """Find the function that a job names as `data.collate`.

    Args:
        name: "package.module:callable", or None. A class is called without arguments to make it.

    Returns:
        The function, which makes a batch of a list of samples; None: samples are stacked.

    Raises:
        WorkloadError: The function is not found.
        DataError: An object of the class is not callable.
    """
    if name is None:
        return None
    factory = find_factory(name, {}, "data.collate")
    if not inspect.isclass(factory):
        return factory
    collate = call_factory(factory, {}, "data.collate")
    if not callable(collate):
        raise DataError(
            f"data.collate: '{name}' made {type(collate).__name__}, which is not callable",
            "name a function of a list of samples that returns a batch",
        )
    return collate  # type: ignore[no-any-return]


def make_batch(samples: list[Any], numbers: Sequence[int], collate: Collate | None = None) -> Batch:
    """Make a batch of samples, by a function of the user or by stacking.

    Args:
        samples: The samples, at least one.
        numbers: The numbers of the samples in the data set, for messages.
        collate: The user's function; None: every leaf is stacked along a new first dimension.

    Returns:
        The batch; its tensors have no graph.

    Raises:
        DataError: The samples make no batch; the message names the first that does not fit.
    """
    if collate is not None:
        return _collated(samples, numbers, collate)
    try:
        return _stack(samples, "", _Numbers(numbers))
    except DataError:
        raise
    except Exception as error:  # mappings and classes of the user can raise anything
        raise DataError(
            f"{range_of(numbers)} of the data set cannot be made a batch ({one_line(error)})",
            f"return tensors, or tuples or dictionaries of tensors of one shape, {PAD}",
        ) from error


def _collated(samples: list[Any], numbers: Sequence[int], collate: Collate) -> Batch:
    """Make a batch by the user's function."""
    try:
        batch = collate(list(samples))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"data.collate ({_name_of(collate)}) failed on {range_of(numbers)} of the data set "
            f"({one_line(error)})",
            "correct the function: it takes a list of samples and returns a batch",
        ) from error
    return _checked(batch, collate)


def range_of(numbers: Sequence[int]) -> str:
    """Describe samples by their numbers in the data set."""
    if len(numbers) == 1:
        return f"sample {numbers[0]}"
    return f"samples {numbers[0]} ... {numbers[-1]}"


class _Numbers:
    """The numbers of the samples of a batch, and errors that name them."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers

    def refuse(self, position: int, what: str, where: str, remedy: str) -> DataError:
        """Make the error of the sample at a position, with its fault and the leaf."""
        number = self._numbers[position]
        whole = f"{range_of(self._numbers)} of the data set"
        sample = whole if len(self._numbers) == 1 else f"{whole}: sample {number}"
        return DataError(f"{sample} {what}{f' (at {where})' if where else ''}", remedy)

    def differ(
        self, position: int, of_it: str, of_first: str, where: str, remedy: str
    ) -> DataError:
        """Make the error of a sample that differs from the first of its batch."""
        what = f"is {of_it}, and sample {self._numbers[0]} is {of_first}"
        return self.refuse(position, what, where, remedy)


def _stack(values: list[Any], where: str, numbers: _Numbers) -> Any:
    """Stack the parts of the samples at one place of their nesting."""
    first = values[0]
    if any(value is None for value in values):
        return _stack_nothing(values, where, numbers)
    if all(_is_array(value) for value in values):
        return _stack_arrays(values, where, numbers)
    if all(isinstance(value, (str, bytes)) for value in values):
        return values
    if where and all(_is_list_of(value, _NUMBER_TYPES) for value in values):
        return _stack_lists(values, where, numbers)
    if where and all(_is_list_of(value, (str,)) for value in values):
        return values
    if isinstance(first, PackedSequence) or parts_of(first) is None:
        raise numbers.refuse(0, f"is {_described(first)}", where, _remedy_for(first))
    _require_alike(values, where, numbers)
    columns = zip(*(parts_of(value) or () for value in values), strict=True)
    labels = _labels(first)
    stacked = [
        _stack(list(column), f"{where}{label}", numbers)
        for column, label in zip(columns, labels, strict=True)
    ]
    return rebuilt(first, stacked)


def _stack_nothing(values: list[Any], where: str, numbers: _Numbers) -> None:
    """Keep a leaf that is None in every sample, and refuse samples that are None."""
    position = next(i for i, value in enumerate(values) if value is None)
    if not where or any(value is not None for value in values):
        raise numbers.refuse(
            position, "is None", where, "return a tensor, or a tuple or dictionary of tensors"
        )


def _stack_lists(values: list[Any], where: str, numbers: _Numbers) -> Tensor:
    """Make one tensor of lists of numbers, which must have one length."""
    lengths = [len(value) for value in values]
    for position, length in enumerate(lengths):
        if length != lengths[0]:
            raise numbers.differ(
                position,
                f"a list of {length}",
                f"a list of {lengths[0]}",
                where,
                f"make all samples of one shape by padding, {PAD}",
            )
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise numbers.refuse(
            0, "has lists of different lengths, or they differ between samples", where,
            f"make all samples of one shape by padding, {PAD}",
        ) from error  # fmt: skip
    return _as_tensor(array, where, numbers)


def _stack_arrays(values: list[Any], where: str, numbers: _Numbers) -> Tensor:
    """Stack tensors, NumPy arrays and numbers, which must have one shape."""
    if (stacked := _stacked_at_once(values)) is not None:
        return stacked
    for position, value in enumerate(values):
        if isinstance(value, Tensor):
            _require_dense(value, position, where, numbers)
        elif _has_masked_values(value):
            raise numbers.refuse(
                position, "is a masked array with values missing", where, "fill them"
            )
    shapes = [np.shape(value) if not isinstance(value, Tensor) else value.shape for value in values]
    first = tuple(shapes[0])
    for position, shape in enumerate(shapes):
        if tuple(shape) != first:
            raise numbers.differ(
                position,
                f"of shape {tuple(shape)}",
                f"of {first}",
                where,
                f"make all samples of one shape by padding or cropping, {PAD}; of a list "
                "of batches that are ready, give the single samples",
            )
    if any(isinstance(value, Tensor) for value in values):
        return _stack_tensors(values, where, numbers)
    if any(isinstance(value, np.ndarray) for value in values):
        return _as_tensor(np.stack(values), where, numbers)
    return _as_tensor(np.asarray(values), where, numbers)


def _stacked_at_once(values: list[Any]) -> Tensor | None:
    """Stack tensors without a check of each; None if one has to be checked."""
    if not all(type(value) is Tensor for value in values):
        return None
    try:
        stacked = torch.stack(values).detach()
    except Exception:  # the check of each tensor finds the cause
        return None
    plain = stacked.layout is torch.strided and not stacked.is_nested
    return stacked if plain and _fault_of(stacked) is None else None


def _stack_tensors(values: list[Any], where: str, numbers: _Numbers) -> Tensor:
    tensors = [
        value.detach() if isinstance(value, Tensor)
        else _as_tensor(np.asarray(value), where, numbers)
        for value in values
    ]  # fmt: skip
    try:
        stacked = torch.stack(tensors)
    except Exception as error:
        raise numbers.refuse(
            0, f"and the others cannot be stacked ({one_line(error)})", where,
            f"make all samples tensors of one shape, dtype and device, {PAD}",
        ) from error  # fmt: skip
    return stacked if type(stacked) is Tensor else stacked.as_subclass(Tensor)


def _has_masked_values(value: Any) -> bool:
    """Return whether a masked array has masked values, whose mask would be lost."""
    return isinstance(value, np.ma.MaskedArray) and bool(np.any(value.mask))


def _as_tensor(array: NDArray[Any], where: str, numbers: _Numbers) -> Tensor:
    """Make a tensor of a NumPy array, in its precision."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(np.require(array, requirements=["C", "W", "E"]))
    except TypeError as error:
        raise numbers.refuse(
            0,
            f"has values of NumPy's dtype {array.dtype}, which PyTorch does not have",
            where,
            f"make them numbers, {PAD}",
        ) from error


def _require_dense(tensor: Tensor, position: int, where: str, numbers: _Numbers) -> None:
    if (fault := _fault_of(tensor)) is not None:
        raise numbers.refuse(position, fault[0], where, fault[1])
    if tensor.is_nested:
        raise numbers.refuse(position, "is a nested tensor", where, f"pad it, {PAD}")
    if tensor.layout is not torch.strided:
        name = str(tensor.layout).removeprefix("torch.")
        raise numbers.refuse(
            position,
            f"is a tensor of layout {name}",
            where,
            f"make it dense (tensor.to_dense()), {PAD}",
        )


def _fault_of(tensor: Tensor) -> tuple[str, str] | None:
    """Return why a tensor cannot be used as data, and the remedy; None if it can."""
    if tensor.device.type == "meta":
        return "is a tensor on the meta device, which has no values", "create it on the CPU"
    if tensor.is_quantized:
        return "is a quantised tensor", "convert it to floats (tensor.dequantize())"
    return None


def _require_alike(values: list[Any], where: str, numbers: _Numbers) -> None:
    """Refuse samples whose nestings have other kinds or keys than that of the first sample."""
    first = values[0]
    remedy = f"make all samples alike, {PAD}"
    for position, value in enumerate(values):
        parts = parts_of(value)
        if parts is None or _kind(value) != _kind(first):
            raise numbers.differ(position, _described(value), _described(first), where, remedy)
        if _labels(value) != _labels(first) and set(_labels(value)) != set(_labels(first)):
            raise numbers.differ(
                position,
                f"of {len(parts)} with {_listed(value)}",
                f"of {len(_labels(first))} with {_listed(first)}",
                where,
                remedy,
            )
    # Mappings may have their keys in another order.
    for position, value in enumerate(values):
        if isinstance(value, Mapping) and list(value) != list(first):
            values[position] = {key: value[key] for key in first}


def _kind(value: Any) -> object:
    """Return the kind of a nesting, which all samples must share."""
    if isinstance(value, Mapping):
        return Mapping
    if is_named_tuple(value) or is_dataclass(value):
        return type(value)
    return tuple if isinstance(value, tuple) else list


def _labels(nesting: Any) -> list[str]:
    """Return the names of the parts of a nesting in messages."""
    if isinstance(nesting, Mapping):
        return [f"[{key!r}]" for key in nesting]
    if is_named_tuple(nesting):
        return [f".{name}" for name in nesting._fields]
    if is_dataclass(nesting):
        return [f".{name}" for name in field_names(nesting)]
    return [f"[{index}]" for index in range(len(nesting))]


def _listed(nesting: Any) -> str:
    labels = _labels(nesting)
    return ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "") or "nothing"


def _is_array(value: Any) -> bool:
    if isinstance(value, str):  # also NumPy's strings, which are np.generic
        return False
    return isinstance(value, (Tensor, np.ndarray, *_NUMBER_TYPES))


def _is_list_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether a value is a list of numbers (or words), or of such lists."""
    if type(value) is not list:
        return False
    return all(
        (isinstance(item, kinds) and (str in kinds or not isinstance(item, str)))
        or _is_list_of(item, kinds)
        for item in value
    )


def _described(value: Any) -> str:
    """Describe a sample, or a part of one."""
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind = type(value)
    if kind.__module__.startswith("PIL."):
        return "a PIL image"
    if isinstance(value, (Mapping, tuple, list)):
        return f"a {kind.__name__} of {len(value)}"
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"an object of type {module}{kind.__qualname__}, which has no tensors to stack"


def _remedy_for(value: Any) -> str:
    if type(value).__module__.startswith("PIL."):
        return (
            "give the data set a transform that makes a tensor of an image "
            "(torchvision.transforms.ToTensor()), " + PAD
        )
    return f"return tensors, arrays or numbers, {PAD}"


def _name_of(collate: Collate) -> str:
    """Return the name of the user's function in the form of a job file."""
    module = getattr(collate, "__module__", None)
    return f"{module}:{name_of(collate)}" if module else name_of(collate)


def _checked(batch: Batch, collate: Collate) -> Batch:
    """Check a batch from the user's function; convert arrays to tensors, and drop graphs."""
    name = _name_of(collate)
    usable = 0

    def check_leaf(leaf: Any) -> Any:
        nonlocal usable
        if isinstance(leaf, np.ndarray):
            leaf = _as_tensor(leaf, "", _Numbers([0]))
        if isinstance(leaf, Tensor):
            usable += 1
            if (fault := _fault_of(leaf)) is not None:
                raise DataError(f"data.collate ({name}): a leaf of its batch {fault[0]}", fault[1])
            return leaf.detach()
        usable += not isinstance(leaf, (str, bytes, type(None), *_NUMBER_TYPES))
        return leaf

    checked = map_leaves(batch, check_leaf)
    if not usable:
        raise DataError(
            f"data.collate ({name}) returned {_described(batch).partition(',')[0]} without a "
            "tensor",
            "return a batch: tensors, or tuples, dictionaries or dataclasses of them",
        )
    return checked
