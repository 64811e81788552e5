"""The names that a model has for its tensors, and what it makes up for when a state lacks some."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

# Parts that DataParallel, torch.compile, FSDP, checkpointing and Fabric put into names.
WRAPPERS = frozenset((
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
))


def canonical(name: str, wrappers: Iterable[str] = WRAPPERS) -> str:
    """Take the parts that wrappers put into a name out of it.

    Args:
        name: The name of a tensor.
        wrappers: Such parts.

    Returns:
        The name without them; its last part always stays.
    """
    *parts, last = name.split(".")
    return ".".join([*(part for part in parts if part not in set(wrappers)), last])


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that is inside of wrappers.

    Args:
        model: A compiled module, a DataParallel or DistributedDataParallel one, or any other.

    Returns:
        The module whose tensors it has.
    """
    # What compiles is slow to import; where nothing has, there is no compiled module.
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    while True:
        if compiler is not None and isinstance(model, compiler.OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


class ModelNames:
    """The tensors of a model's state by name, and by name without what wrappers put in.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, Any] = dict(model.state_dict())
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.wrappers: frozenset[str] = WRAPPERS
        self.by_short = {canonical(name): name for name in self.tensors}
        if len(self.by_short) < len(self.tensors):  # such parts are names of its own
            self.wrappers = frozenset()
            self.by_short = {name: name for name in self.tensors}
        self._modules = {
            canonical(f"{path}.x", self.wrappers).removesuffix(".x"): path
            for path, _ in model.named_modules(remove_duplicate=False)
            if path
        }
        self._tied = _tied(self.tensors)
        self._unsaved = _unsaved_buffers(model, self.tensors)
        self._unexpected = list(_patterns(model, "_keys_to_ignore_on_load_unexpected"))
        self._missing = list(_patterns(model, "_keys_to_ignore_on_load_missing"))

    def name_of(self, short: str) -> str:
        """The model's own name for one without wrappers, whether or not it has such a tensor.

        Args:
            short: The name without wrappers.

        Returns:
            The name.
        """
        if short in self.by_short:
            return self.by_short[short]
        path, rest = short, ""
        while path:
            path, _, part = path.rpartition(".")
            rest = f".{part}{rest}"
            if path in self._modules:
                return f"{self._modules[path]}{rest}"
        return short

    def differs(self, name: str, value: Any) -> bool:
        """Return whether a value is of another shape than the model's tensor, or no tensor.

        Args:
            name: A name of the model.
            value: What a state has for it.

        Returns:
            Whether.
        """
        own = self.tensors[name]
        if not isinstance(own, Tensor) or is_lazy(own):
            return False
        if not isinstance(value, Tensor):
            return True
        # Before version 0.4 PyTorch had no tensors without dimensions.
        return value.shape != own.shape and not (own.dim() == 0 and tuple(value.shape) == (1,))

    def tied_to(self, name: str) -> tuple[str, ...]:
        """Other names of the same tensor.

        Args:
            name: A name of the model.

        Returns:
            Its others.
        """
        return tuple(other for other in self._tied.get(name, ()) if other != name)

    def known(self, name: str, state: Mapping[str, Any]) -> Any | None:
        """The value of a tensor that a state lacks, where it follows from the rest.

        Args:
            name: A name of the model that the state lacks.
            state: The state.

        Returns:
            The value under another name of the same tensor; or the model's own, of a buffer that
            transformers says need not be saved; None where it is unknown.
        """
        for other in self.tied_to(name):
            if other in state:
                return state[other]
        is_parameter = name in self.parameters
        if not is_parameter and _matches(name, self._missing):
            return self.tensors[name].clone()
        return None

    def may_drop(self, name: str, value: Any) -> bool:
        """Return whether a tensor that the model lacks can be left out.

        Args:
            name: Its name.
            value: The tensor.

        Returns:
            True where transformers says so, or where the model makes the same one by itself.
        """
        if _matches(name, self._unexpected):
            return True
        own = self._unsaved.get(name)
        if own is None or not isinstance(value, Tensor) or own.shape != value.shape:
            return False
        return torch.equal(own.detach().to(value.dtype), value.to(own.device))

    def versions(
        self, metadata: Mapping[str, Any] | None, taken: str, prefix: str, added: str
    ) -> OrderedDict[str, Any] | None:
        """PyTorch's versions of modules, by the model's own paths.

        Args:
            metadata: Versions by path as a state has them.
            taken: What is taken off names as they are.
            prefix: What is taken off names without wrappers then.
            added: What is put on instead.

        Returns:
            The versions; None where there are none.
        """
        if metadata is None:
            return None
        versions: OrderedDict[str, Any] = OrderedDict()
        for path, version in metadata.items():
            whole = f"{path}.x" if path else "x"
            short = canonical(whole.removeprefix(taken), self.wrappers)
            if whole.startswith(taken) and short.startswith(prefix):
                name = self.name_of(f"{added}{short.removeprefix(prefix)}")
                versions[name.removesuffix("x").removesuffix(".")] = version
        return versions

    def takes(self, state: Mapping[str, Any]) -> bool:
        """Return whether the model takes a state strictly; it stays as it is.

        Modules may rename what they find, as the parametrizations of weight_norm do with the names
        of the older one, so that nothing but loading itself can tell.

        Args:
            state: The state.

        Returns:
            Whether.
        """
        before = {
            name: tensor.detach().clone()
            for name, tensor in self.tensors.items()
            if isinstance(tensor, Tensor) and not is_lazy(tensor)
        }
        try:
            self.model.load_state_dict(state, strict=True)
        except Exception:  # whatever a module's own code raises
            return False
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    self.tensors[name].copy_(tensor)
        return True


def _tied(tensors: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names by the memory that they are of."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or tensor.layout != torch.strided:
            continue
        if tensor.is_meta or not tensor.numel() or tensor.is_quantized:
            continue
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        groups.setdefault(where, []).append(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def _unsaved_buffers(model: nn.Module, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    buffers = model.named_buffers(remove_duplicate=False)
    return {name: buffer for name, buffer in buffers if name not in saved}


def _patterns(model: nn.Module, attribute: str) -> Iterator[tuple[str, re.Pattern[str]]]:
    """Patterns of transformers for names in a module, with the module's path."""
    for path, module in model.named_modules():
        for pattern in getattr(module, attribute, None) or ():
            yield (f"{path}." if path else ""), re.compile(pattern)


def _matches(name: str, patterns: Iterable[tuple[str, re.Pattern[str]]]) -> bool:
    return any(
        name.startswith(path) and pattern.search(name.removeprefix(path))
        for path, pattern in patterns
    )
