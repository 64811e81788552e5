"""Building a model without memory for its parameters."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hessdist.errors import WorkloadError


class _Draws(TorchDispatchMode):
    """Follows random numbers of PyTorch's common generator, and what is computed of them.

    Parameters on the meta device draw nothing, so that what is drawn after them is not what a
    model that is built as a whole has.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._drawn: dict[int, Any] = {}  # weak references to storages, by address
        self._has_numbers = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        used = list(tree_leaves((args, given)))
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        has_own = any(isinstance(value, torch.Generator) for value in used)
        if (is_random and not has_own) or any(self._is_drawn(value) for value in used):
            for value in tree_leaves(result):
                if isinstance(value, Tensor) and not value.is_meta:
                    storage = value.untyped_storage()
                    self._drawn[storage.data_ptr()] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._has_numbers |= isinstance(value, float)
        return result

    def _is_drawn(self, value: object) -> bool:
        if not isinstance(value, Tensor) or value.is_meta:
            return False
        found = self._drawn.get(value.untyped_storage().data_ptr())
        return found is not None and not found.expired()

    def forget(self, tensor: Tensor) -> None:
        """Pass over a tensor that checkpoints have."""
        self._drawn.pop(tensor.untyped_storage().data_ptr(), None)

    def require_none_left(self) -> None:
        """Refuse random numbers that are still in use.

        Raises:
            WorkloadError: There are some.
        """
        if self._has_numbers or not all(found.expired() for found in self._drawn.values()):
            raise WorkloadError(
                "model.factory draws a constant at random, which would not be that of training",
                "draw it with a torch.Generator of its own, or register it as a buffer",
            )


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Move each parameter to the meta device when a module registers it.

    So the parameters of one module at a time have memory. Buffers keep their values, because they
    are often constants that no checkpoint has.

    Yields:
        Nothing.

    Raises:
        WorkloadError: Something other than a module keeps a parameter, which would go on with the
            values that it was built with; or a constant is drawn at random.
    """
    register, register_buffer = nn.Module.register_parameter, nn.Module.register_buffer
    draws = _Draws()
    replaced: list[tuple[str, ReferenceType[nn.Parameter]]] = []

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            replaced.append((name, ref(param)))
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    def register_known(
        self: nn.Module, name: str, tensor: Tensor | None, persistent: bool = True
    ) -> None:
        if tensor is not None and persistent:
            draws.forget(tensor)
        register_buffer(self, name, tensor, persistent)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    nn.Module.register_buffer = register_known  # type: ignore[method-assign]
    try:
        with draws:
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        nn.Module.register_buffer = register_buffer  # type: ignore[method-assign]
    gc.collect()
    for name, original in replaced:
        if original() is not None:
            raise WorkloadError(
                f"model.factory keeps the parameter {name} outside of its module as well",
                "read it from the module in forward",
            )
    draws.require_none_left()
