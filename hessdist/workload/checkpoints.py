"""Checkpoints: reading without running code, loading into a model, writing whole files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hessdist.errors import CheckpointError, HessdistError, OutputError
from hessdist.workload.conversion import as_bytes
from hessdist.workload.factories import one_line
from hessdist.workload.listing import shown
from hessdist.workload.loading import load_content
from hessdist.workload.reading import read_content
from hessdist.workload.state_dicts import Choice, state_under
from hessdist.workload.steps import signature, step_of


def read_whole(path: Path, mapped: bool = False, attempts: int = 5) -> Mapping[str, Any]:
    """Read a checkpoint by `read_state`, again if it was written to during reading.

    Args:
        path: The file or folder.
        mapped: Whether tensors stay on the disk until they are used, if the format allows it.
        attempts: The largest number of attempts.

    Returns:
        The content, all of one version of the checkpoint.

    Raises:
        CheckpointError: The checkpoint cannot be read, or changes at every attempt.
    """
    for _ in range(attempts):
        before = signature(path)
        try:
            state = read_state(path, mapped)
        except CheckpointError:
            if signature(path) == before:
                raise
            continue
        if signature(path) == before:
            return state
    raise CheckpointError(
        f"the checkpoint {path} was written to while it was read, {attempts} times",
        "write it under another name and rename it",
    )


def read_state(path: Path, mapped: bool = False) -> Mapping[str, Any]:
    """Read a checkpoint without changes; code in it is refused, not run.

    Args:
        path: A file of `torch.save` or a safetensors file, or a folder of Hugging Face's libraries,
            of torch.distributed.checkpoint or of DeepSpeed.
        mapped: As in `read_whole`.

    Returns:
        The content, on the CPU: tensors by name, perhaps under keys and together with other
        objects. `load_into` finds the state in it that fits a model.

    Raises:
        CheckpointError: The checkpoint is missing, truncated, has code, or has no named tensors.
    """
    with blaming(path):
        return read_content(path, mapped)


def load_into(
    model: nn.Module,
    state: Mapping[str, Any],
    path: Path,
    *,
    key: str | None = None,
    prefix: str | None = None,
) -> None:
    """Load the content of a checkpoint into a model.

    Args:
        model: The model, also a compiled or a parallel one; its tensors are overwritten in place,
            in their own dtype.
        state: The content from `read_state`: tensors by name, perhaps under keys, with prefixes of
            wrappers, or together with averages.
        path: The path of the checkpoint, for messages.
        key: The key of the state, such as "ema" or "trainer.model"; default: the one that fits.
        prefix: The prefix to remove from the names; default: a usual one that makes them fit.

    Raises:
        CheckpointError: Names or shapes differ from the model's, two states fit, a value is not
            finite, or a tensor cannot be loaded exactly.
    """
    with blaming(path):
        load_content(model, state, f"the checkpoint {path}", Choice(key, prefix))


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turn any error into one of this checkpoint, so that it alone is set aside.

    What a file may hold is without end: tensors of formats that PyTorch itself cannot convert,
    compare or print, and values that a module's own code does not expect.

    Args:
        path: The path of the checkpoint, for messages.

    Yields:
        Nothing.

    Raises:
        CheckpointError: The block raised an error that is not hessdist's own.
        HessdistError: An error of hessdist itself, without changes.
    """
    try:
        yield
    except HessdistError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error.strerror or one_line(error)})",
            "correct its path and permissions",
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be loaded ({shown(one_line(error))})",
            "save plain tensors of floating-point numbers, as model.state_dict() has them",
        ) from error


def own_state(
    path: Path, *, key: str | None = None, prefix: str | None = None
) -> Mapping[str, Tensor]:
    """Read back the state of a checkpoint that `write_checkpoint` wrote.

    Args:
        path: The file.
        key: The key that the state was written under.
        prefix: The prefix that the names were written with.

    Returns:
        The tensors by the model's names; empty if the file has another form.

    Raises:
        CheckpointError: The file cannot be read.
    """
    return state_under(read_whole(path), key, prefix)


def checkpoint_name(step: int) -> str:
    """Return the file name of the checkpoint that training writes at a step: step-00000050.pt."""
    return f"step-{step:08d}.pt"


def require_named(pattern: str | None) -> None:
    """Refuse a pattern that does not find the checkpoints that training writes.

    Args:
        pattern: The pattern for names of checkpoints; None: the usual names.

    Raises:
        CheckpointError: The pattern does not find the step in these names.
    """
    name = checkpoint_name(1)
    if step_of(Path(name), pattern) != 1:
        raise CheckpointError(
            f"checkpoints.pattern '{pattern}' does not find the step in the name {name}",
            "remove checkpoints.pattern, or write 'step-(?P<step>[0-9]+)'",
        )


def optimizer_path(path: Path) -> Path:
    """Return the file beside a checkpoint that has the optimiser's state, if hessdist wrote it."""
    return path.parent / "optimizer" / path.name


def content_digest(content: Mapping[str, Any]) -> str:
    """Hash all tensors of a checkpoint, with their names and keys.

    Args:
        content: The tensors by name, perhaps under keys.

    Returns:
        The hash.
    """

    def flat(level: Mapping[str, Any], before: str) -> Iterator[tuple[str, Tensor]]:
        for name, value in level.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{before}{name}.")
            elif isinstance(value, Tensor):
                yield f"{before}{name}", value

    return state_digest(dict(flat(content, "")))


class HasStateDict(Protocol):
    """An optimiser, or what stands for one."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state, in the form of torch.optim's."""


def write_checkpoint(
    directory: Path,
    step: int,
    model: nn.Module,
    *,
    optimizer: HasStateDict | None = None,
    key: str | None = None,
    prefix: str | None = None,
) -> Path:
    """Write a state dict so that a kill leaves it whole or absent.

    The state of the optimiser goes to a file of its own, in the folder "optimizer" beside it, so
    that the file of the model has only the model. It has a digest of the model that it belongs to.

    Args:
        directory: The folder of the checkpoints, which is created if it is missing.
        step: The training step.
        model: The model.
        optimizer: Its optimiser; None: nothing is written of it.
        key: The key that the state is written under, "a.b" for nested keys; default: none.
        prefix: The prefix of every name.

    Returns:
        The path.

    Raises:
        OutputError: The file cannot be written.
    """
    path = directory / checkpoint_name(step)
    before = f"{prefix.removesuffix('.')}." if prefix else ""
    content: dict[str, Any] = {
        f"{before}{name}": value.detach().cpu() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
    }
    for part in reversed(key.split(".") if key else []):
        content = {part: content}
    if optimizer is not None:  # first, as a sweep may take the checkpoint as soon as it is there
        own = {"optimizer": optimizer.state_dict(), "model_digest": content_digest(content)}
        _save(own, optimizer_path(path))
    _save(content, path)
    return path


def _save(content: Mapping[str, Any], path: Path) -> None:
    """Write a file of `torch.save`, and rename it when it is whole."""
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Path(partial).open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except Exception as error:  # extra state of a module may not be picklable
        with suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
        raise OutputError(
            f"the checkpoint {path} cannot be written ({type(error).__name__}: {error})",
            "free some space, or change checkpoints.directory",
        ) from error


def state_digest(state: Mapping[str, Any], dtype: torch.dtype | None = None) -> str:
    """Hash tensors with their names, in their order, independently of the file's format.

    Args:
        state: The tensors by name.
        dtype: The dtype that floating tensors are converted to, one after the other; None: their
            own.

    Returns:
        The hash.
    """
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        if dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
            value = value.to(dtype)
        # Extra state of a module counts by its printed form.
        content = (
            as_bytes(value).numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        )
        digest.update(content)
    return digest.hexdigest()
