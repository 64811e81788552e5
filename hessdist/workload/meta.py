"""Building a model without memory for its parameters."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import ReferenceType, ref

from torch import nn

from hessdist.errors import WorkloadError


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Move each parameter to the meta device when a module registers it.

    So the parameters of one module at a time have memory. Buffers keep their values, because they
    are often constants that no checkpoint has.

    Yields:
        Nothing.

    Raises:
        WorkloadError: Something other than a module keeps a parameter, which would go on with the
            values that it was built with.
    """
    register = nn.Module.register_parameter
    replaced: list[tuple[str, ReferenceType[nn.Parameter]]] = []

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            replaced.append((name, ref(param)))
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
    gc.collect()
    for name, original in replaced:
        if original() is not None:
            raise WorkloadError(
                f"model.factory keeps the parameter {name} outside of its module as well",
                "read it from the module in forward",
            )
