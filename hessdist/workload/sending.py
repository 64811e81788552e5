"""Processes that read ahead: what can be sent to one, how one starts, and when one ends."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch  # its import enables ForkingPickler to share tensors
from torch import Tensor

from hessdist.workload.factories import one_line


def why_not_sent(value: Any) -> str | None:
    """Return the reason why an object cannot be sent to a process that reads samples ahead.

    The object is pickled for a trial without the values of its arrays.

    Args:
        value: The object.

    Returns:
        The reason in one line; None if it can be sent.
    """
    sink = _Sink()
    try:
        _Trial(sink).dump(value)
    except _NotSentError as error:
        return str(error)
    except Exception as error:  # pickling runs the user's code, which can raise anything
        return one_line(error)
    return None


@contextmanager
def without_main_module() -> Iterator[None]:
    """Prevent processes that start in this context from running the user's script again.

    Yields:
        Nothing.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent() -> None:
    """End this process when the process that started it is gone, in whatever way that ended.

    A process of the fork server is no child of the one that asked for it, so it is not told of the
    end of that process. It would wait for work for ever, and keep the fork server alive.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()  # a pipe, which the kernel closes if the process is killed
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="hessdist parent watch").start()


class _NotSentError(Exception):
    """An object cannot be sent to a new process, or only at a high cost."""


class _Sink:
    def write(self, data: Any) -> int:
        return memoryview(data).nbytes


class _Trial(ForkingPickler):
    """A pickler that leaves out the values of arrays."""

    def __init__(self, sink: Any) -> None:
        super().__init__(sink)
        self._storages: set[int] = set()
        # A shared tensor is an open file in each process.
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._check_tensor(value)
            return int, ()
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            if _is_mapped(value):
                raise _NotSentError("it holds a file mapped into memory, which would be copied")
            return int, ()
        if isinstance(value, (type, FunctionType)):
            _require_importable(value)
        return NotImplemented

    def _check_tensor(self, tensor: Tensor) -> None:
        if tensor.requires_grad and not tensor.is_leaf:
            raise _NotSentError("it holds a tensor with a graph")
        if tensor.device.type not in ("cpu", "meta"):
            raise _NotSentError(f"it holds a tensor on {tensor.device}")
        if tensor.layout is torch.strided and tensor.device.type == "cpu":
            self._storages.add(tensor.untyped_storage().data_ptr())
        if len(self._storages) > self._most:
            raise _NotSentError(f"it holds more than {self._most} tensors, an open file each")


def _is_mapped(array: Any) -> bool:
    """Return whether an array is a view of a file that is mapped into memory."""
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False


def _require_importable(value: type | FunctionType) -> None:
    """Refuse a class or a function of a module that a new process cannot import."""
    name = getattr(value, "__module__", None)
    if not isinstance(name, str):
        return
    if name in ("__main__", "__mp_main__"):
        raise _NotSentError(f"{value.__qualname__} is defined in a script or notebook itself")
    top = name.partition(".")[0]
    if top in sys.builtin_module_names:
        return
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        if find is not None and find(top, None) is not None:
            return
    raise _NotSentError(f"{value.__qualname__} is of the module {top}, which cannot be found")
