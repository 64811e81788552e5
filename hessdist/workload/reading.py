"""Files of tensors, and folders of them: read without running code that they carry."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hessdist.errors import CheckpointError
from hessdist.workload.archives import broken_record
from hessdist.workload.distributed_checkpoint import read_distributed
from hessdist.workload.folders import Folder, Layout, look_into, shards_of

_DEPTH = 16  # of nestings that are looked into
_MANY = 3  # keys that a message names
# How PyTorch's reader names what it does not let a checkpoint make.
_FORBIDDEN = re.compile(r"(?:GLOBAL|class|function|global:?) ['\"]?([A-Za-z_][\w.]*\.[\w.]*\w)")


class _Inert:
    """Stands for settings and records beside the tensors, which nothing looks at.

    Nothing of the classes that a file names is imported or called: they are made as this one.
    """

    def __new__(cls, *args: object, **options: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


def _plain_dict(*factory: object) -> dict[Any, Any]:
    """Stands for collections.defaultdict."""
    return {}


# What training scripts put beside a state: options, scores, paths, dates.
_HARMLESS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "builtins.dict",
    "builtins.list",
    "builtins.int",
    "builtins.float",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.timezone",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
)
_OF_SETTINGS = ("omegaconf.", "mmengine.", "yacs.", "ml_collections.", "typing.")


def read_content(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint as it is; code in it is refused, not run.

    Args:
        path: A file of `torch.save` or a safetensors file, or a folder of Hugging Face's libraries
            or of torch.distributed.checkpoint.

    Returns:
        What it holds: tensors by name, perhaps under keys, with other things beside them.

    Raises:
        CheckpointError: It is missing, truncated, carries code, or holds no tensors by name.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise CheckpointError(
            f"the checkpoint {path} does not exist", "correct its path"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error.strerror})", "correct its path"
        ) from error
    if stat.S_ISDIR(mode):
        loaded: Any = _read_folder(path)
    elif stat.S_ISREG(mode):
        loaded = _read_file(path)
    else:
        raise CheckpointError(
            f"the checkpoint {path} is no regular file", "move it out of the folder"
        )
    if not _has_tensors(loaded, _DEPTH):
        raise CheckpointError(
            f"the checkpoint {path} holds no state dict",
            "save model.state_dict(), plain or under a key such as state_dict or model; this is "
            f"{_what_it_is(loaded)}",
        )
    return loaded  # type: ignore[no-any-return]


def _read_folder(path: Path) -> Mapping[str, Any]:
    folder = look_into(path)
    if folder is None:
        raise CheckpointError(
            f"the checkpoint {path} is a folder without a model: neither model.safetensors nor "
            "pytorch_model.bin, whole or in shards with an index, nor adapter_model.safetensors, "
            "nor .metadata of torch.distributed.checkpoint",
            "move it out of the folder",
        )
    if folder.layout is Layout.DISTRIBUTED:
        return read_distributed(folder.path)
    return _read_shards(folder)


def _read_shards(folder: Folder) -> Mapping[str, Any]:
    shards = shards_of(folder)
    if len(shards) == 1 and folder.index is None:
        return read_content(next(iter(shards)))
    whole: dict[str, Any] = {}
    for file, names in shards.items():
        state = read_content(file)
        missing = [name for name in names or () if name not in state]
        if missing:
            raise CheckpointError(
                f"the checkpoint {folder.path}: its index has {_listed(missing)} in {file.name}, "
                "which lacks it",
                "write the checkpoint again",
            )
        again = [name for name in state if name in whole]
        if again:
            raise CheckpointError(
                f"the checkpoint {folder.path} has {_listed(again)} in two shards",
                "write the checkpoint again",
            )
        whole |= state
    return whole


def _read_file(path: Path) -> Any:
    return _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # a damaged header fails in many ways
        raise _damaged(path, error) from error


def _read_torch(path: Path) -> Any:
    broken = broken_record(path)
    if broken is not None:
        raise CheckpointError(
            f"the checkpoint {path} is truncated or damaged: the checksum of its record "
            f"{broken!a} does not match",
            "write it again, or move it out of the folder",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's age, which is no matter here
            with torch.serialization.safe_globals(_stand_ins(path)):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive fails in many ways
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"the checkpoint {path} is a TorchScript archive, which holds code",
                "save the bare model.state_dict()",
            ) from error
        named = _FORBIDDEN.search(str(error))
        if named is None and not _is_foreign_pickle(path):
            raise _damaged(path, error) from error
        what = named[1] if named else "a pickle that torch.save did not write"
        raise CheckpointError(
            f"the checkpoint {path} carries more than tensors ({what}), which could run "
            "code and is refused",
            "save the bare model.state_dict()",
        ) from error


def _stand_ins(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Classes of settings and scores, each with what is made in its place."""
    names = list(_HARMLESS)
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no archive, or a damaged one, which reading itself will tell
        asked = []
    names += [name for name in asked if name.startswith(_OF_SETTINGS)]
    return [(_plain_dict, "collections.defaultdict"), *((_Inert, name) for name in names)]


def _is_foreign_pickle(path: Path) -> bool:
    """Return whether a file is a pickle of a protocol that torch.save does not use."""
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 1))
        return len(head) == 2 and head[0] == 0x80 and 3 <= head[1] <= 5 and file.read(1) == b"."


def _has_tensors(content: Any, depth: int) -> bool:
    """Return whether there is a tensor under a name somewhere in a nesting of mappings."""
    if not isinstance(content, Mapping) or not depth:
        return False
    return any(
        isinstance(name, str) and (isinstance(value, Tensor) or _has_tensors(value, depth - 1))
        for name, value in content.items()
    )


def _what_it_is(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [repr(key) for key in content]
        return f"a mapping with {_listed(keys)}" if keys else "an empty mapping"
    return "a sequence without names" if isinstance(content, list | tuple) else "no mapping"


def _listed(names: list[str]) -> str:
    shown = [name if name.isprintable() else ascii(name) for name in names[:_MANY]]
    return ", ".join(shown) + (f" and {len(names) - _MANY} more" if len(names) > _MANY else "")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is truncated or damaged, or no checkpoint ({type(error).__name__})",
        "write it again, or move it out of the folder",
    )
