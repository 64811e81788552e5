"""Loading a state into a model: every tensor is checked first, and every parameter is set."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hessdist.errors import CheckpointError
from hessdist.workload.conversion import equal, reason_against, reason_not_finite
from hessdist.workload.listing import listed, shown
from hessdist.workload.model_names import ModelNames
from hessdist.workload.preparation import unwrapped
from hessdist.workload.state_dicts import Choice, adapter_of, fit

_CORRECT_MODEL = "correct model.factory and model.arguments, or checkpoints.directory"


def load_content(model: nn.Module, content: Mapping[str, Any], where: str, choice: Choice) -> None:
    """Load the content of a checkpoint into a model, in place and in the model's dtypes.

    Args:
        model: The model, also a compiled or a parallel one.
        content: The tensors by name, perhaps under keys.
        where: The name of the checkpoint in messages.
        choice: The place of the state, as far as the job names it.

    Raises:
        CheckpointError: It is of another model, a value is not finite, or a tensor cannot be
            loaded exactly.
    """
    model = unwrapped(model)
    adapted = _adapted(model)
    adapter = adapter_of(content) if adapted is not None else None
    try:
        state = fit(model, content, where, choice)
    except CheckpointError:
        if adapted is not None and adapter is not None:
            _load_adapter(model, adapted, adapter, where)
            return
        converted = _as_transformers_reads(model, content)
        if converted is None:
            raise
        state = fit(model, converted, where, Choice())
    _check(ModelNames(model), state, where)
    _load(model, state, where)


def _check(names: ModelNames, state: Mapping[str, Any], where: str) -> None:
    """Refuse tensors that would change in the model, or are not finite."""
    for name, value in state.items():
        own = names.tensors.get(name)
        if not isinstance(value, Tensor):
            continue
        if not isinstance(own, Tensor) or is_lazy(own):
            own = value if value.is_floating_point() else torch.empty(0)
        reason = reason_against(value, own)
        if reason is not None:
            raise CheckpointError(
                f"{where} does not fit the model exactly: {shown(name)} {reason}",
                "save plain tensors of floating-point numbers, as model.state_dict() has them",
            )
        reason = reason_not_finite(value, own)
        # A constant of the model, such as a mask of minus infinity, may be infinite.
        is_constant = name in names.tensors and name not in names.parameters and equal(value, own)
        if reason is not None and not is_constant:
            raise CheckpointError(
                f"{where} is not finite: {shown(name)} {reason}",
                "move it out of the folder: training diverged",
            )
        for other in names.tied_to(name) if name in names.tensors else ():
            if other in state and not equal(state[other], value):
                raise CheckpointError(
                    f"{where} has two different tensors, {shown(name)} and {shown(other)}, for "
                    "one tensor of the model",
                    "correct the checkpoint, or model.factory so that they are not tied",
                )


def _load(model: nn.Module, state: Mapping[str, Any], where: str) -> None:
    versions = _versions(model)
    try:
        # Tensors are assigned to a model without values: there is nothing to copy them to. A
        # module's own method may not know the option.
        without_values = any(p.is_meta for p in model.parameters())
        model.load_state_dict(state, **({"assign": True} if without_values else {}))
    except Exception as error:  # a module's own code may raise anything
        raise _unloadable(where, error) from error
    # A module may have its own way to load a state, and skip tensors that it does not expect.
    _require_set(model, versions, set(state), where)


def _versions(model: nn.Module) -> dict[str, int]:
    """Return PyTorch's write count of each parameter."""
    every = _parameters(model).items()
    return {name: tensor._version for name, tensor in every if not is_lazy(tensor)}


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    every = model.named_parameters()
    return {name: p for name, p in every if is_lazy(p) or not p.is_inference()}


def _require_set(
    model: nn.Module, versions: Mapping[str, int], loaded: set[str], where: str
) -> None:
    unset = [
        name
        for name, tensor in _parameters(model).items()
        if is_lazy(tensor)
        or (
            tensor.numel()
            and tensor.requires_grad
            and versions.get(name, -1) == tensor._version
            and name not in loaded
        )
    ]
    if unset:
        raise CheckpointError(
            f"{where} is of another model: it leaves {listed(unset)} as they were", _CORRECT_MODEL
        )


def _unloadable(where: str, error: Exception) -> CheckpointError:
    lines = str(error).split("\n")
    return CheckpointError(
        f"the model refuses {where} ({type(error).__name__}: {shown(lines[-1].strip())})",
        _CORRECT_MODEL,
    )


# -- libraries with their own readers --------------------------------------------------------


def _adapted(model: nn.Module) -> Any | None:
    """Return the part of a model that has an adapter of peft, if any."""
    peft = sys.modules.get("peft")
    if peft is None:
        return None
    return next((m for m in model.modules() if isinstance(m, peft.PeftModel)), None)


def _load_adapter(model: nn.Module, adapted: Any, adapter: Mapping[str, Any], where: str) -> None:
    """Load the weights of an adapter by peft; the factory makes the rest of the network."""
    import peft  # type: ignore[import-not-found, import-untyped, unused-ignore]

    wanted = peft.get_peft_model_state_dict(adapted)
    missing = [name for name in wanted if name not in adapter]
    unknown = [name for name in adapter if name not in wanted]
    if missing or unknown:
        differences = [("missing", missing), ("not in the model", unknown)]
        raise CheckpointError(
            f"{where} is the adapter of another model: "
            + "; ".join(f"{what}: {listed(names)}" for what, names in differences if names),
            "use the same network and the same peft config in model.factory",
        )
    for name, value in adapter.items():
        own = wanted[name]
        if value.shape != own.shape:
            raise CheckpointError(
                f"{where} is the adapter of another model: {shown(name)} is {tuple(value.shape)} "
                f"there and {tuple(own.shape)} in the model",
                "use the same peft config in model.factory",
            )
        reason = reason_against(value, own) or reason_not_finite(value, own)
        if reason is not None:
            raise CheckpointError(
                f"{where} does not fit the model: {shown(name)} {reason}", "train it again"
            )
    versions = _versions(model)
    try:
        peft.set_peft_model_state_dict(adapted, dict(adapter), adapted.active_adapter)
    except Exception as error:  # peft can raise anything
        raise _unloadable(where, error) from error
    _require_set(model, versions, set(), where)


def _as_transformers_reads(model: nn.Module, content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a state by transformers, which may change the names of tensors.

    Returns:
        The state by the model's names; None if it is no such model, or if tensors are left over.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    if not all(isinstance(value, Tensor) for value in content.values()):
        return None
    log = transformers.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        read = [_from_pretrained(model, content, seed) for seed in (0, 1)]
    except Exception:  # transformers can raise anything; the user gets the earlier error
        return None
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
    first, second = read
    if first is None or second is None:
        return None
    # Tensors that are not in the files would be random.
    is_whole = all(equal(value, second[name]) for name, value in first.items())
    return first if is_whole else None


def _from_pretrained(model: Any, content: Mapping[str, Any], seed: int) -> dict[str, Any] | None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        read, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=dict(content),
            output_loading_info=True,
            dtype=next(model.parameters()).dtype,
        )
    faults = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return None if any(info.get(fault) for fault in faults) else dict(read.state_dict())
