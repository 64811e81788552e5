"""Reading files and folders of tensors without running code in them."""

from __future__ import annotations

import os
import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hessdist.errors import CheckpointError
from hessdist.workload.archives import fault_of
from hessdist.workload.distributed_checkpoint import read_distributed
from hessdist.workload.folders import Folder, Layout, look_into, shards_of
from hessdist.workload.listing import listed


class _Inert:
    """A placeholder for settings and records in a checkpoint, which are not used.

    The classes that a file names are neither imported nor called: this class replaces them.
    """

    def __new__(cls, *args: object, **options: object) -> _Inert:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Discard the state."""


def _plain_dict(*factory: object) -> dict[Any, Any]:
    """Replace collections.defaultdict."""
    return {}


# Types that training scripts save together with a state: options, scores, paths, dates.
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


def read_content(path: Path, mapped: bool = False) -> Mapping[str, Any]:
    """Read a checkpoint without changes; code in it is refused, not run.

    Args:
        path: A file of `torch.save` or a safetensors file, or a folder of Hugging Face's libraries,
            of torch.distributed.checkpoint or of DeepSpeed.
        mapped: Whether tensors stay on the disk until they are used, if the format allows it.

    Returns:
        The content: tensors by name, perhaps under keys and together with other objects.

    Raises:
        CheckpointError: The checkpoint is missing, truncated, has code, or has no named tensors.
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
        loaded: Any = _read_folder(path, mapped)
    elif stat.S_ISREG(mode):
        loaded = read_file(path, mapped)
    else:
        raise CheckpointError(
            f"the checkpoint {path} is no regular file", "move it out of the folder"
        )
    if not _has_tensors(loaded, depth=16):
        raise CheckpointError(
            f"the checkpoint {path} holds no state dict",
            "save model.state_dict(), plain or under a key such as state_dict or model; this is "
            f"{_described(loaded)}",
        )
    return loaded  # type: ignore[no-any-return]


def _read_folder(path: Path, mapped: bool) -> Mapping[str, Any]:
    folder = look_into(path)
    if folder is None:
        raise CheckpointError(
            f"the checkpoint {path} is a folder without a model: no model.safetensors, "
            "pytorch_model.bin, adapter_model.safetensors, mp_rank_00_model_states.pt or .metadata",
            "move it out of the folder",
        )
    if folder.layout is Layout.PARTITIONED:
        raise CheckpointError(
            f"the checkpoint {path} is DeepSpeed's and has the model in parts, by rank or by layer",
            "put them together with the script zero_to_fp32.py that DeepSpeed wrote beside them",
        )
    if folder.layout is Layout.DISTRIBUTED:
        return read_distributed(folder.path, mapped)
    return _read_shards(folder, mapped)


def _read_shards(folder: Folder, mapped: bool) -> Mapping[str, Any]:
    shards = shards_of(folder)
    if len(shards) == 1 and folder.index is None:
        return read_content(next(iter(shards)), mapped)
    whole: dict[str, Any] = {}
    for file, names in shards.items():
        state = read_content(file, mapped)
        missing = [name for name in names or () if name not in state]
        if missing:
            raise CheckpointError(
                f"the checkpoint {folder.path}: its index has {listed(missing)} in {file.name}, "
                "which lacks it",
                "write the checkpoint again",
            )
        repeated = [name for name in state if name in whole]
        if repeated:
            raise CheckpointError(
                f"the checkpoint {folder.path} has {listed(repeated)} in two shards",
                "write the checkpoint again",
            )
        whole |= state
    return whole


def read_file(path: Path, mapped: bool = False) -> Any:
    """Read a file of `torch.save` or of safetensors, whatever is in it; code is refused, not run.

    Args:
        path: The file.
        mapped: As in `read_content`.

    Returns:
        The content.

    Raises:
        CheckpointError: The file is damaged, or has code.
    """
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)  # which maps them in any case
    return _read_torch(path, mapped and zipfile.is_zipfile(path))


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # a damaged header fails in many ways
        raise _damaged(path, error) from error


def _read_torch(path: Path, mapped: bool) -> Any:
    # How PyTorch's reader names a class that it does not allow in a checkpoint.
    forbidden = r"(?:GLOBAL|class|function|global:?) ['\"]?([A-Za-z_][\w.]*\.[\w.]*\w)"
    fault = fault_of(path)
    if fault is not None:
        raise CheckpointError(
            f"the checkpoint {path} is truncated or damaged: {fault}",
            "write it again, or move it out of the folder",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles
            with torch.serialization.safe_globals(_placeholders(path)):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged archive fails in many ways
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"the checkpoint {path} is a TorchScript archive, which holds code",
                "save the bare model.state_dict()",
            ) from error
        named = re.search(forbidden, str(error))
        if named is None and not _is_foreign_pickle(path):
            raise _damaged(path, error) from error
        content = named[1] if named else "a pickle that torch.save did not write"
        raise CheckpointError(
            f"the checkpoint {path} carries more than tensors ({content}), which could run "
            "code and is refused",
            "save the bare model.state_dict()",
        ) from error


def _placeholders(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the names of harmless classes in a file, each with its placeholder."""
    settings = ("omegaconf.", "mmengine.", "yacs.", "ml_collections.", "typing.")
    names = list(_HARMLESS)
    try:
        requested = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no archive, or a damaged one, which reading itself reports
        requested = []
    names += [name for name in requested if name.startswith(settings)]
    return [(_plain_dict, "collections.defaultdict"), *((_Inert, name) for name in names)]


def _is_foreign_pickle(path: Path) -> bool:
    """Return whether a file is a pickle of a protocol that torch.save does not use."""
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 1))
        return len(head) == 2 and head[0] == 0x80 and 3 <= head[1] <= 5 and file.read(1) == b"."


def _has_tensors(content: Any, depth: int) -> bool:
    """Return whether a nesting of mappings has a tensor under a name."""
    if not isinstance(content, Mapping) or not depth:
        return False
    return any(
        isinstance(name, str) and (isinstance(value, Tensor) or _has_tensors(value, depth - 1))
        for name, value in content.items()
    )


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = [repr(key) for key in content]
        return f"a mapping with {listed(keys)}" if keys else "an empty mapping"
    return "a sequence without names" if isinstance(content, list | tuple) else "no mapping"


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} is truncated or damaged, or no checkpoint ({type(error).__name__})",
        "write it again, or move it out of the folder",
    )
