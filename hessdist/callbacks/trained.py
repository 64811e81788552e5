"""What a trainer holds, in the form that hessdist reads: the plain model, the optimiser's state."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hessdist.errors import WorkloadError
from hessdist.parallel.crew import Crew
from hessdist.workload.checkpoints import HasStateDict, state_digest
from hessdist.workload.preparation import borrowed, converted, unwrapped

_SHARDING = {"FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine"}


class HasState(HasStateDict, Protocol):
    """An optimiser of torch.optim, or a wrapper of one."""

    param_groups: list[dict[str, Any]]


def plain_model(model: nn.Module) -> nn.Module:
    """Find the module behind a trainer's wrappers. The trainer's objects stay as they are.

    Args:
        model: The model, perhaps in DistributedDataParallel or torch.compile, perhaps with a
            `forward` that Accelerate has replaced by one with autocast, or with a reference to
            Lightning's trainer.

    Returns:
        A module with the same parameters, without these.

    Raises:
        WorkloadError: The parameters are spread over processes by FSDP or DeepSpeed.
    """
    inner = unwrapped(model)
    for module in inner.modules():
        sharded = _SHARDING & {kind.__name__ for kind in type(module).__mro__}
        if sharded:
            _refuse(f"the model is in {min(sharded)}")
    for name, parameter in inner.named_parameters():
        if type(parameter.data) is not Tensor:
            _refuse(f"the parameter {name} is a {type(parameter.data).__name__}")
        if hasattr(parameter, "ds_id"):
            _refuse(f"the parameter {name} is spread by DeepSpeed's ZeRO-3")
    attributes = vars(inner)
    if {"_original_forward", "_trainer", "_fabric"} & attributes.keys():
        inner = copy.copy(inner)  # has the same tensors
        _remove_autocast(inner)
        for name in {"_trainer", "_fabric"} & attributes.keys():
            vars(inner)[name] = None
    return inner


def _refuse(what: str) -> None:
    raise WorkloadError(
        f"{what}: no process of the trainer has whole parameters",
        "let the trainer save whole checkpoints, and run `hessdist watch` on them",
    )


def _remove_autocast(module: nn.Module) -> None:
    """Give a copy of a module its own `forward` back, if Accelerate has replaced it."""
    own = vars(module)
    original = own.pop("_original_forward", None)
    if original is None:
        return
    own.pop("forward", None)
    function = getattr(original, "__func__", None)
    if function is None:
        own["forward"] = original
    elif function is not type(module).forward:
        own["forward"] = MethodType(function, module)


@contextmanager
def full_precision(model: nn.Module) -> Iterator[nn.Module]:
    """Provide a copy in float32 of a model with parameters in half precision.

    Args:
        model: The model, which stays as it is.

    Yields:
        The copy; the model itself if no parameter is float16 or bfloat16.
    """
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if not dtypes & {torch.float16, torch.bfloat16}:
        yield model
        return
    device = next(model.parameters()).device
    with borrowed(model) as copied:
        yield converted(copied, device, torch.float32)


class NamedOptimizer:
    """An optimiser whose state has the names of its parameters, as far as the model has them.

    Without names, the order and the shapes have to tell which parameter is whose, which they do
    not always do where there are several groups.

    Args:
        optimizer: The optimiser.
        model: The model, without wrappers.
    """

    def __init__(self, optimizer: HasState, model: nn.Module) -> None:
        self._optimizer = optimizer
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict; its tensors are those of the optimiser."""
        state = dict(self._optimizer.state_dict())
        groups = self._optimizer.param_groups
        names = [[self._names.get(id(p)) for p in group["params"]] for group in groups]
        if len(names) != len(state.get("param_groups", ())) or any(None in own for own in names):
            return state  # moves something else as well, which the reader refuses or not
        named: list[Mapping[str, Any]] = [
            {**group, "param_names": own}
            for group, own in zip(state["param_groups"], names, strict=True)
        ]
        return {**state, "param_groups": named}


def require_replicas(crew: Crew, model: nn.Module) -> None:
    """Refuse processes whose parameters differ. Collective.

    Args:
        crew: The processes.
        model: The model.

    Raises:
        WorkloadError: They differ, or no process has whole parameters; on every process.
    """
    inner = plain_model(model)
    if crew.size == 1:
        return
    digests = crew.collected(state_digest(dict(inner.named_parameters())))
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise WorkloadError(
            f"the parameters of rank {different[0]} differ from those of rank 0",
            "use DistributedDataParallel, or average the gradients of all ranks at every step",
        ).on_all_ranks()
