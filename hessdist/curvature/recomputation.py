"""Blocks of a network whose activations are computed again when derivatives need them.

Activation checkpointing of PyTorch forgets the activations of a block in the forward pass, and
computes them again in the backward pass. The graph of that backward pass, which a curvature product
keeps or at least goes through, then saves all of them. Therefore a block y = f(x, θ) is here one
function that saves x and θ, and its derivative (x, θ, γ) ↦ fᵀ'γ is another such function, which
saves x, θ and γ. As each derivative is computed again from what is saved, there are derivatives of
any order, and a graph has only the inputs of blocks and the cotangents of their outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from hessdist.curvature.differentiation import present_context
from hessdist.curvature.patterns import fits
from hessdist.errors import WorkloadError
from hessdist.workload.nestings import floating_tensors, with_tensors

_PLAIN = "_hessdist_plain"  # the attribute of a changed class that has the class before

Function = Callable[..., tuple[Tensor | None, ...]]


# -- which blocks ----------------------------------------------------------------------------------


def blocks_of(model: nn.Module, chosen: str | Sequence[str]) -> list[str]:
    """Return the names of blocks, none of which lies within another one.

    Args:
        model: The model.
        chosen: "none"; "block" for repeated blocks, which are modules of the same class in one
            nn.ModuleList or nn.Sequential; or patterns of names of modules.

    Returns:
        The names.

    Raises:
        WorkloadError: There are none, or a pattern fits none, or a module cannot be changed.
    """
    if chosen == "none":
        return []
    names = repeated_blocks(model) if isinstance(chosen, str) else _named(model, chosen)
    if not names:
        raise WorkloadError(
            "compute.recompute = 'block', but the model has no repeated blocks",
            "give a list of names of modules, or leave it out",
        )
    outermost = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    for name in outermost:
        module = model.get_submodule(name)
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise WorkloadError(
                f"compute.recompute: the module {name} is a list, and is not evaluated itself",
                f"use '{name}.*'",
            )
        if isinstance(module, torch.jit.ScriptModule) or "forward" in vars(module):
            raise WorkloadError(
                f"compute.recompute: the module {name} has a forward that cannot be replaced",
                "name other modules",
            )
    return outermost


def repeated_blocks(model: nn.Module) -> list[str]:
    """Return the names of all repeated blocks, also of those within others.

    A layer of PyTorch is no block: it saves hardly more than its input.
    """
    found = []
    for prefix, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        counts = Counter(_class_of(child) for child in module)
        found += [
            f"{prefix}.{name}" if prefix else name
            for name, child in module.named_children()
            if counts[_class_of(child)] > 1 and not _is_layer(child)
        ]
    return found


def _class_of(module: nn.Module) -> type[nn.Module]:
    plain: type[nn.Module] = getattr(type(module), _PLAIN, type(module))
    return plain if "_hessdist_pieces" not in vars(module) else plain.__mro__[1]


def _is_layer(module: nn.Module) -> bool:
    of_torch = _class_of(module).__module__.startswith("torch.nn")
    return of_torch and not any(True for _ in module.children())


def _named(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        fitting = [name for name in names if fits(name, pattern)]
        if not fitting:
            raise WorkloadError(
                f"compute.recompute: no module '{pattern}'",
                "give names of modules, or patterns such as 'transformer.h.*'",
            )
        found += fitting
    return found


# -- the modules -----------------------------------------------------------------------------------


def recompute(model: nn.Module, names: Sequence[str]) -> None:
    """Let some modules, and no others, be computed again. They get other classes."""
    for name, module in model.named_modules():
        plain = getattr(type(module), _PLAIN, None)
        if plain is None and name in names:
            module.__class__ = _changed(type(module))
        elif plain is not None and name not in names:
            module.__class__ = plain


@contextmanager
def recomputing(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let some modules, and no others, be computed again within a block.

    Yields:
        Nothing.
    """
    before = [name for name, m in model.named_modules() if hasattr(type(m), _PLAIN)]
    recompute(model, names)
    try:
        yield
    finally:
        recompute(model, before)


def _changed(base: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return base.forward(self, *args, **options)
        return _recomputed(self, base, args, options)

    body = {"forward": forward, "__module__": base.__module__, _PLAIN: base}
    return type(base.__name__, (base,), body)


def _recomputed(
    module: nn.Module, base: type[nn.Module], args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """Evaluate a block as one function in the graph."""
    inputs = floating_tensors((args, options))
    parameters = list(dict.fromkeys(p for p in module.parameters() if p.requires_grad))
    placeholders = [torch.empty(0) for _ in inputs]
    given = with_tensors((args, options), placeholders)
    block = _Block(module, base, given, len(inputs), parameters)
    outputs = _Recomputed.apply(block, present_context(), *inputs, *parameters)  # type: ignore[no-untyped-call]
    return with_tensors(block.made.pop(), outputs)


@dataclass
class _Block:
    """A module as a function of the tensors that it is given, and of its parameters."""

    module: nn.Module
    base: type[nn.Module]
    given: Any  # arguments, with placeholders for their floating tensors
    inputs: int
    parameters: list[nn.Parameter]
    made: list[Any] = field(default_factory=list)  # what the first call returned, until it is used
    is_first: bool = True

    def __call__(self, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        args, options = with_tensors(self.given, tensors[: self.inputs])
        with self._holding(tensors[self.inputs :]):
            outputs = self.base.forward(self.module, *args, **options)
        if self.is_first:
            self.made.append(outputs)
            self.is_first = False
        return tuple(floating_tensors(outputs))

    @contextmanager
    def _holding(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Give the module other tensors in place of its parameters."""
        others = {id(p): tensor for p, tensor in zip(self.parameters, tensors, strict=True)}
        modules = list(self.module.modules())
        before = [dict(module._parameters) for module in modules]
        try:
            for module, own in zip(modules, before, strict=True):
                changed: Any = {n: others.get(id(p), p) for n, p in own.items()}
                module._parameters.update(changed)
                _update_recurrent(module)
            yield
        finally:
            for module, own in zip(modules, before, strict=True):
                module._parameters.update(own)
                _update_recurrent(module)


def _update_recurrent(module: nn.Module) -> None:
    """Update the list that a recurrent layer keeps of its parameters."""
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]


# -- the functions ---------------------------------------------------------------------------------


class _Recomputed(torch.autograd.Function):
    """A function that saves what it is given, and whose derivative is such a function, too."""

    @staticmethod
    def forward(ctx: Any, function: Function, context: Any, *tensors: Tensor) -> Any:
        ctx.function, ctx.context = function, context
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        needed = [i for i, is_needed in enumerate(ctx.needs_input_grad[2:]) if is_needed]
        present = [i for i, slope in enumerate(slopes) if slope is not None]
        derivative = _Derivative(
            ctx.function, ctx.context, len(tensors), tuple(needed), tuple(present)
        )
        arriving = [slopes[i] for i in present]
        pieces = _Recomputed.apply(derivative, ctx.context, *tensors, *arriving)  # type: ignore[no-untyped-call]
        found: list[Tensor | None] = [None] * len(tensors)
        for place, piece in zip(needed, pieces, strict=True):
            found[place] = piece
        return None, None, *found


@dataclass(frozen=True)
class _Derivative:
    """The map of points and cotangents γ of a function's values to the cotangents of the points."""

    function: Function
    context: Callable[[], AbstractContextManager[None]]
    count: int  # of points
    needed: tuple[int, ...]  # points whose cotangents are wanted
    present: tuple[int, ...]  # values with a cotangent

    def __call__(self, *given: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # whether the result is differentiated
        points, slopes = list(given[: self.count]), given[self.count :]
        # Other hooks are for tensors that stay, and what is saved here is freed at the end.
        with torch.enable_grad(), self.context(), saved_tensors_hooks(Tensor.detach, _same):
            if not again:
                points = [point.detach() for point in points]
            for i in self.needed:
                if not points[i].requires_grad:
                    points[i] = points[i].detach().requires_grad_()
            values = self.function(*points)
            pairs = [
                (value, slope)
                for place, slope in zip(self.present, slopes, strict=True)
                if (value := values[place]) is not None and value.requires_grad
            ]
            if not pairs:
                return (None,) * len(self.needed)
            outputs, cotangents = zip(*pairs, strict=True)
            inputs = [points[i] for i in self.needed]
            return torch.autograd.grad(
                outputs, inputs, cotangents, create_graph=again, allow_unused=True
            )


def _same(tensor: Tensor) -> Tensor:
    return tensor
