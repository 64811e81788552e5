"""Matrix kernels of less precision than float32, for products whose errors are corrected later.

Only operations inside the context are changed: a product through a kept graph, but not the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hessdist.errors import DependencyError

Precision = Literal["float32", "tf32", "bfloat16"]
"""The arithmetic of matrix products and convolutions."""


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which matrix products and convolutions have a precision. Not collective.

    With "tf32" PyTorch's own switches choose the kernels, and are set back afterwards. With
    "bfloat16" the operands are rounded to bfloat16 before the operation and its result is float32
    again, because the switches have no effect on most CPUs.

    Args:
        precision: The precision. "float32" changes nothing.
        device: The device of the operands.

    Returns:
        The context.

    Raises:
        DependencyError: The device or PyTorch has no such kernels.
    """
    if precision == "float32":
        return nullcontext()
    if precision == "bfloat16":
        _require_bfloat16(device)
        return _RoundingOperands()  # type: ignore[no-untyped-call]
    return _switched(_tf32_switches(device), "tf32")


class _RoundingOperands(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs matrix products and convolutions in bfloat16, and returns their results in float32."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Round the operands of a matrix operation, and pass on every other call."""
        options = kwargs or {}
        if func.overloadpacket not in _MATRIX_OPERATIONS or options:
            return func(*args, **options)
        if any(isinstance(one, Tensor) and one.dtype != torch.float32 for one in args):
            return func(*args)
        found = func(*[one.bfloat16() if isinstance(one, Tensor) else one for one in args])
        if isinstance(found, Tensor):
            return found.float()
        return tuple(one.float() if isinstance(one, Tensor) else one for one in found)


_MATRIX_OPERATIONS = frozenset({
    torch.ops.aten.mm,
    torch.ops.aten.bmm,
    torch.ops.aten.convolution,
    torch.ops.aten.convolution_backward,
})
"""Those that products consist of; the sums of addmm and baddbmm would be rounded, too."""


def _require_bfloat16(device: torch.device) -> None:
    """Refuse a device on which bfloat16 is emulated."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        able = known is not None and bool(known())
    if not able:
        raise DependencyError(
            f"compute.precision = 'bfloat16': the device {device} has no fast bfloat16",
            "use compute.precision = 'float32'",
        )


def _tf32_switches(device: torch.device) -> list[Any]:
    """Return PyTorch's switches of matrix products and convolutions on a device."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise DependencyError(
            f"compute.precision = 'tf32': the device {device} has no TF32",
            "use an NVIDIA GPU from Ampere on, or compute.precision = 'float32'",
        )
    backends = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None))
    if not all(hasattr(switch, "fp32_precision") for switch in backends):
        raise DependencyError(
            f"compute.precision = 'tf32': PyTorch {torch.__version__} has no switches for it",
            "use PyTorch 2.9 or newer, or compute.precision = 'float32'",
        )
    return list(backends)


@contextmanager
def _switched(switches: Sequence[Any], value: str) -> Iterator[None]:
    """Set switches of PyTorch, and set them back.

    Yields:
        Nothing.
    """
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = value
        yield
    finally:
        for switch, old in zip(switches, before, strict=True):
            switch.fp32_precision = old
