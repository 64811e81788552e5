"""The names of a model's tensors, and the tensors that a state may lack."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hessdist.workload.conversion import reason_against, shape_of

# Parts that DataParallel, torch.compile, FSDP, checkpointing and Fabric add to names.
WRAPPERS = frozenset((
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
))


def canonical(name: str, wrappers: Iterable[str] = WRAPPERS) -> str:
    """Remove the parts that wrappers add to a name.

    Args:
        name: The name of a tensor.
        wrappers: The parts to remove.

    Returns:
        The name without these parts; its last part is always kept.
    """
    *parts, last = name.split(".")
    return ".".join([*(part for part in parts if part not in set(wrappers)), last])


class ModelNames:
    """The tensors of a model's state by name, and by name without the parts of wrappers.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: dict[str, Any] = dict(model.state_dict())
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.wrappers: frozenset[str] = WRAPPERS
        self.by_short = {canonical(name): name for name in self.tensors}
        if len(self.by_short) < len(self.tensors):  # the model itself uses such parts
            self.wrappers = frozenset()
            self.by_short = {name: name for name in self.tensors}
        self._modules = {
            canonical(f"{path}.x", self.wrappers).removesuffix(".x"): path
            for path, _ in model.named_modules(remove_duplicate=False)
            if path
        }
        self._tied = _tied(self.tensors, self.parameters)
        self._unsaved = _unsaved_buffers(model, self.tensors)
        self._unexpected = list(_patterns(model, "_keys_to_ignore_on_load_unexpected"))
        self._missing = list(_patterns(model, "_keys_to_ignore_on_load_missing"))

    def name_of(self, short: str) -> str:
        """Return the model's own name for a name without wrappers, even of no existing tensor.

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
        """Return whether a value has another shape than the model's tensor, or is no tensor.

        Args:
            name: A name of the model.
            value: The value that a state has for it.

        Returns:
            True if it differs.
        """
        own = self.tensors[name]
        if not isinstance(own, Tensor) or is_lazy(own):
            return False
        if not isinstance(value, Tensor):
            return True
        shape = shape_of(value)
        # Before version 0.4 PyTorch had no tensors without dimensions.
        return shape != own.shape and not (own.dim() == 0 and shape == (1,))

    def tied_to(self, name: str) -> tuple[str, ...]:
        """Return the other names of the same tensor.

        Args:
            name: A name of the model.

        Returns:
            The other names.
        """
        return tuple(other for other in self._tied.get(name, ()) if other != name)

    def known(self, name: str, state: Mapping[str, Any]) -> Any | None:
        """Return the value of a tensor that a state lacks, if it follows from the rest.

        Args:
            name: A name of the model that the state lacks.
            state: The state.

        Returns:
            The value under another name of the same tensor, or the model's own value if
            transformers does not save this buffer; None if the value is unknown.
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
            name: The name of the tensor.
            value: The tensor.

        Returns:
            True if transformers ignores it, or if the model itself makes the same tensor.
        """
        if _matches(name, self._unexpected):
            return True
        own = self._unsaved.get(name)
        if own is None or not isinstance(value, Tensor) or shape_of(value) != own.shape:
            return False
        if reason_against(value, value) is not None:
            return False
        return torch.equal(own.detach().to(value.dtype), value.to(own.device))

    def versions(
        self, metadata: Mapping[str, Any] | None, taken: str, prefix: str, added: str
    ) -> OrderedDict[str, Any] | None:
        """Return PyTorch's versions of modules, by the model's own paths.

        Args:
            metadata: The versions by the paths of a state.
            taken: The prefix to remove from original names.
            prefix: The prefix to remove after that from names without wrappers.
            added: The prefix to add instead.

        Returns:
            The versions; None if there are none.
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
        """Return whether the model loads a state strictly; the model does not change.

        Modules may rename tensors, like the parametrizations of weight_norm with older names, so
        only loading itself decides.

        Args:
            state: The state.

        Returns:
            True if it does.
        """
        before = {
            name: tensor.detach().clone()
            for name, tensor in self.tensors.items()
            if isinstance(tensor, Tensor) and not is_lazy(tensor)
        }
        try:
            with warnings.catch_warnings():  # a model on the meta device takes no values
                warnings.simplefilter("ignore")
                self.model.load_state_dict(state, strict=True)
        except Exception:  # a module's own code can raise anything
            return False
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    self.tensors[name].copy_(tensor)
        return True


def _tied(tensors: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Group names that have the same memory; on the meta device, those of one parameter."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or tensor.layout != torch.strided:
            continue
        if not tensor.numel() or tensor.is_quantized:
            continue
        if tensor.is_meta:
            if name in parameters:
                groups.setdefault((id(parameters[name]),), []).append(name)
            continue
        where = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        groups.setdefault(where, []).append(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def _unsaved_buffers(model: nn.Module, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    buffers = model.named_buffers(remove_duplicate=False)
    return {name: buffer for name, buffer in buffers if name not in saved}


def _patterns(model: nn.Module, attribute: str) -> Iterator[tuple[str, re.Pattern[str]]]:
    """Iterate over patterns of transformers for names in a module, with the module's path."""
    for path, module in model.named_modules():
        for pattern in getattr(module, attribute, None) or ():
            yield (f"{path}." if path else ""), re.compile(pattern)


def _matches(name: str, patterns: Iterable[tuple[str, re.Pattern[str]]]) -> bool:
    return any(
        name.startswith(path) and pattern.search(name.removeprefix(path))
        for path, pattern in patterns
    )
