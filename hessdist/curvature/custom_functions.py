"""Finding the user's own autograd functions in the graph of a loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hessdist.curvature.local_loss import LocalLoss
from hessdist.workload.nestings import Batch, floating_tensors


def custom_functions(local: LocalLoss, batch: Batch) -> list[str]:
    """Name the autograd functions in the graph of a loss that are not PyTorch's.

    Args:
        local: The loss.
        batch: The batch.

    Returns:
        The names, each with the module in which it is used, or "the loss".
    """
    nodes: dict[int, Any] = {}  # by address; kept, as a freed node's address would be used again
    names: dict[str, None] = {}

    def collect(inputs: object, result: object, where: str) -> None:
        before = _graph(inputs)
        for address, node in _graph(result).items():
            if address in before or address in nodes:
                continue
            name = _custom_name(node)
            if name:
                nodes[address] = node
                names[f"{name} in {where}"] = None

    hooks = [
        module.register_forward_hook(
            lambda module, inputs, result, name=name: collect(
                inputs, result, f"module {name}" if name else "the model"
            )
        )
        for name, module in local.model.named_modules()
    ]
    try:
        collect((), local.of_batch(batch), "the loss")
    finally:
        for hook in hooks:
            hook.remove()
    return list(names)


def _graph(value: object) -> dict[int, Any]:
    """Return the nodes of the graph of some tensors, by address."""
    tensors = [value] if isinstance(value, Tensor) else floating_tensors(value)
    todo: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen: dict[int, Any] = {}
    while todo:
        node = todo.pop()
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            todo += [after for after, _ in node.next_functions]
    return seen


def _custom_name(node: object) -> str:
    """Return the name of a user's autograd.Function; empty for those of PyTorch and hessdist."""
    function = getattr(type(node), "_forward_cls", None)
    if function is not None:
        builtin = function.__module__.split(".")[0] == "hessdist"
        return "" if builtin else f"{function.__qualname__} ({function.__module__})"
    name = str(getattr(node, "name", lambda: "")())
    return name if "CppNode" in name else ""
