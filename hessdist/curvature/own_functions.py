"""Which functions in the graph of a loss are the user's own, and where they are used."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss
from hessdist.workload.nestings import Batch, floating_tensors


def functions_of_ones_own(local: LocalLoss, batch: Batch) -> list[str]:
    """Name the autograd functions in the graph of a loss that are not PyTorch's.

    Args:
        local: The loss.
        batch: The batch.

    Returns:
        Names, each with the module in which it is used, or "the loss".
    """
    found: dict[int, Any] = {}  # nodes by address: one that is freed would lend it to another
    names: dict[str, None] = {}

    def look(given: object, result: object, where: str) -> None:
        before = _graph(given)
        for address, node in _graph(result).items():
            if address in before or address in found:
                continue
            name = _own_name(node)
            if name:
                found[address] = node
                names[f"{name} in {where}"] = None

    hooks = [
        module.register_forward_hook(
            lambda module, given, result, name=name: look(
                given, result, f"module {name}" if name else "the model"
            )
        )
        for name, module in local.model.named_modules()
    ]
    try:
        look((), local.of_batch(batch), "the loss")
    finally:
        for hook in hooks:
            hook.remove()
    return list(names)


def _graph(value: object) -> dict[int, Any]:
    """The nodes of the graph of some tensors, by address."""
    tensors = [value] if isinstance(value, Tensor) else floating_tensors(value)
    todo: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen: dict[int, Any] = {}
    while todo:
        node = todo.pop()
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            todo += [after for after, _ in node.next_functions]
    return seen


def _own_name(node: object) -> str:
    """The name of a user's autograd.Function; empty for PyTorch's and for ours."""
    function = getattr(type(node), "_forward_cls", None)
    if function is not None:
        ours = function.__module__.split(".")[0] == "hessdist"
        return "" if ours else f"{function.__qualname__} ({function.__module__})"
    name = str(getattr(node, "name", lambda: "")())
    return name if "CppNode" in name else ""
