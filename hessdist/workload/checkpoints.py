"""Checkpoints: read without running code, put into a model, written whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hessdist.errors import CheckpointError, OutputError
from hessdist.workload.conversion import as_bytes
from hessdist.workload.loading import load_content
from hessdist.workload.reading import read_content
from hessdist.workload.state_dicts import Choice, state_under
from hessdist.workload.steps import signature, step_of

_READINGS = 5


def read_whole(path: Path) -> Mapping[str, Any]:
    """`read_state`, again if the checkpoint was written to meanwhile.

    Args:
        path: The file or folder.

    Returns:
        What it holds, all of one content.

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


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint as it is; code in it is refused, not run.

    Args:
        path: A file of `torch.save` or a safetensors file, or a folder of Hugging Face's libraries
            or of torch.distributed.checkpoint.

    Returns:
        What it holds, on the CPU: tensors by name, perhaps under keys and with other things beside
        them. `load_into` finds the state in it that fits a model.

    Raises:
        CheckpointError: It is missing, truncated, carries code, or holds no tensors by name.
    """
    return read_content(path)


def load_into(
    model: nn.Module,
    state: Mapping[str, Any],
    path: Path,
    *,
    key: str | None = None,
    prefix: str | None = None,
) -> None:
    """Put what a checkpoint holds into a model.

    Args:
        model: The model, also a compiled or a parallel one; its tensors are overwritten in place,
            in their own dtype.
        state: What `read_state` returns: tensors by name, perhaps under keys, with prefixes of
            wrappers, or with averages beside them.
        path: Where it comes from, for messages.
        key: Under which key the state is, such as "ema" or "trainer.model"; default: what fits.
        prefix: What is taken off the names; default: what makes them fit, as far as that is usual.

    Raises:
        CheckpointError: Names or shapes differ from the model's, two states fit, a value is not
            finite, or a tensor could not be taken exactly.
    """
    load_content(model, state, f"the checkpoint {path}", Choice(key, prefix))


def own_state(
    path: Path, *, key: str | None = None, prefix: str | None = None
) -> Mapping[str, Tensor]:
    """Read back the state of a checkpoint that `write_checkpoint` wrote.

    Args:
        path: The file.
        key: As it was written.
        prefix: As it was written.

    Returns:
        The tensors by the model's names; nothing where the file is of another form.

    Raises:
        CheckpointError: It cannot be read.
    """
    return state_under(read_whole(path), key, prefix)


def checkpoint_name(step: int) -> str:
    """The file name of the checkpoint that training writes at a step: step-00000050.pt."""
    return f"step-{step:08d}.pt"


def require_named(pattern: str | None) -> None:
    """Refuse a pattern that does not find the checkpoints that training writes.

    Args:
        pattern: The pattern for names of checkpoints; None: the usual names.

    Raises:
        CheckpointError: It does not find the step in their names.
    """
    name = checkpoint_name(1)
    if step_of(Path(name), pattern) != 1:
        raise CheckpointError(
            f"checkpoints.pattern '{pattern}' does not find the step in {name}, as checkpoints are "
            "named here",
            "leave checkpoints.pattern out, or write 'step-(?P<step>[0-9]+)'",
        )


def write_checkpoint(
    directory: Path,
    step: int,
    model: nn.Module,
    *,
    key: str | None = None,
    prefix: str | None = None,
) -> Path:
    """Write a state dict so that a kill leaves it whole or absent.

    Args:
        directory: Where to; made if missing.
        step: The training step.
        model: The model.
        key: The key that the state is written under, "a.b" for two; default: none.
        prefix: What is put before every name.

    Returns:
        The path.

    Raises:
        OutputError: It cannot be written.
    """
    path = directory / checkpoint_name(step)
    partial = path.with_suffix(".partial")
    before = f"{prefix.removesuffix('.')}." if prefix else ""
    content: dict[str, Any] = {
        f"{before}{name}": value.detach().cpu() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
    for part in reversed(key.split(".") if key else []):
        content = {part: content}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with Path(partial).open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:  # what a module keeps beside its tensors may not be picklable
        with suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
        raise OutputError(
            f"the checkpoint {path} cannot be written ({type(error).__name__}: {error})",
            "free some space, or change checkpoints.directory",
        ) from error
    return path


def state_digest(state: Mapping[str, Any]) -> str:
    """A hash of tensors with their names, in their order; not of a file's other bytes.

    Args:
        state: Tensors by name.

    Returns:
        The hash.
    """
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        # What a module keeps beside its tensors counts by how it is written.
        content = (
            as_bytes(value).numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        )
        digest.update(content)
    return digest.hexdigest()
