"""Checkpoints: read without running code, put into a model, written whole."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessdist.errors import CheckpointError, OutputError
from hessdist.workload.steps import signature

_NESTED = ("state_dict", "model_state_dict", "model")
_SHOWN = 3
_READINGS = 5
# How PyTorch's reader names what it does not let a checkpoint make.
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function|global:?) ['\"]?([A-Za-z_][\w.]*\.[\w.]*\w)")


def read_whole(path: Path) -> dict[str, Tensor]:
    """`read_state`, again if the file was written to meanwhile.

    Args:
        path: The file.

    Returns:
        Tensors by name, all of one content of the file.

    Raises:
        CheckpointError: It cannot be read, or does not stay as it is.
    """
    for _ in range(_READINGS):
        before = signature(path)
        try:
            state = read_state(path)
        except CheckpointError:
            if signature(path) == before:
                raise
            continue
        if signature(path) == before:
            return state
    raise CheckpointError(
        f"the checkpoint {path} was written to while it was read, {_READINGS} times",
        "write it under another name and rename it",
    )


def checkpoint_name(step: int) -> str:
    """The file name of the checkpoint that training writes at a step: step-00000050.pt."""
    return f"step-{step:08d}.pt"


def write_checkpoint(directory: Path, step: int, model: nn.Module) -> Path:
    """Write a plain state dict so that a kill leaves it whole or absent.

    Args:
        directory: Where to; made if missing.
        step: The training step.
        model: The model.

    Returns:
        The path.

    Raises:
        OutputError: It cannot be written.
    """
    path = directory / checkpoint_name(step)
    partial = path.with_suffix(".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with Path(partial).open("wb") as file:
            torch.save({k: v.detach().cpu() for k, v in model.state_dict().items()}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError(
            f"the checkpoint {path} cannot be written ({error})",
            "free some space, or change checkpoints.directory",
        ) from error
    return path


def state_digest(state: Mapping[str, Tensor]) -> str:
    """A hash of tensors with their names, in their order; not of a file's other bytes.

    Args:
        state: Tensors by name.

    Returns:
        The hash.
    """
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint; code in it is refused, not run.

    Args:
        path: A state dict by `torch.save`, plain or under "state_dict", "model_state_dict" or
            "model", or a safetensors file. A prefix "module." (DataParallel) is taken off.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: The file is missing, truncated, carries code, or holds no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"the checkpoint {path} does not exist", "correct its path")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(k, str) for k in loaded):
        raise CheckpointError(
            f"the checkpoint {path} holds no state dict",
            f"save model.state_dict(), plain or under one of {', '.join(_NESTED)}",
        )
    state = {name: tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's age, which is no matter here
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in many ways
        named = _FORBIDDEN.search(str(error))
        if named is None and not _is_foreign_pickle(path):
            raise _damaged(path, error) from error
        what = named[1] if named else "a pickle that torch.save did not write"
        raise CheckpointError(
            f"the checkpoint {path} carries more than tensors ({what}), which could run "
            "code and is refused",
            "save the bare model.state_dict()",
        ) from error


def _is_foreign_pickle(path: Path) -> bool:
    """Whether a file is a pickle of a protocol that torch.save does not use."""
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 1))
        return len(head) == 2 and head[0] == 0x80 and 3 <= head[1] <= 5 and file.read(1) == b"."


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is truncated or damaged, or no checkpoint ({type(error).__name__})",
        "write it again, or move it out of the folder",
    )


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put the tensors of a checkpoint into a model.

    Args:
        model: The model; its tensors are overwritten in place, in their own dtype.
        state: Tensors by name.
        path: Where they come from, for messages.

    Raises:
        CheckpointError: Names or shapes differ from the model's, or a value is not finite.
    """
    expected = model.state_dict()
    wrong = [
        f"{name} is {tuple(state[name].shape)} there and {tuple(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    lists = [
        _listed("shapes differ", wrong),
        _listed("missing", missing),
        _listed("not in the model", unknown),
    ]
    if wrong or missing or unknown:
        raise CheckpointError(
            f"the checkpoint {path} is of another model: {'; '.join(filter(None, lists))}",
            "correct model.factory and model.arguments, or checkpoints.directory",
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"the checkpoint {path} is not finite: {name} holds NaN or infinity",
                "move it out of the folder; training diverged before it",
            )
    model.load_state_dict(dict(state))


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what}: {', '.join(names[:_SHOWN])}{more}"
