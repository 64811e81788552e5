"""Modules whose parameters are pieces, and which see whole tensors while they are evaluated.

Every module with parameters gets a class of its own, in which each parameter is a property that
gathers the tensor in the graph. Within one call of `forward` a module gathers its tensors once.
Linear layers are evaluated by `spread.linear` instead and never see their weight.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from hessdist.curvature.determinism import bits_of
from hessdist.errors import WorkloadError
from hessdist.parallel.lockstep import Lockstep
from hessdist.parallel.ranks import shard_bounds
from hessdist.spread.linear import LinearLayer, linear
from hessdist.spread.unit import Unit, gathered
from hessdist.workload.factories import one_line

_PLACE = "_hessdist_pieces"  # the attribute of a module that has its `_Pieces`


@dataclass(frozen=True)
class _Origin:
    """The unit that a whole tensor was gathered from."""

    storage: Any  # a StorageWeakRef
    unit: Unit
    pieces: tuple[Tensor, ...]
    index: int  # of the tensor in the unit

    @property
    def is_gone(self) -> bool:
        """Whether the whole tensor has been freed, so that its memory may hold another one."""
        return bool(self.storage.expired())


@dataclass(frozen=True)
class _Handle:
    """A tensor that a graph would save, to be gathered again when it is used."""

    origin: _Origin
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        """Gather the tensor. Collective over the copy."""
        with torch.no_grad():
            whole = self.origin.unit.gather(self.origin.pieces)[self.origin.index]
            return whole.as_strided(self.size, self.stride, self.offset)


@dataclass
class _Pieces:
    """The parameters of one module: their units, and the whole tensors during a call."""

    spread: SpreadModel
    module: nn.Module
    names: tuple[str, ...]
    unit: Unit  # of all of them
    single: dict[str, Unit]
    linear: LinearLayer | None
    calls: list[dict[bool, tuple[Tensor, ...]]] = field(default_factory=list)

    def parameters(self) -> list[Tensor]:
        """Return the pieces of all parameters of the module."""
        return [_own(self.module, name) for name in self.names]

    def whole(self, name: str) -> Tensor:
        """Return a parameter as a whole. Collective over the copy."""
        if not self.calls:  # another module asks for it
            piece = _own(self.module, name)
            (tensor,) = self.spread.gather(self.single[name], [piece])
            return tensor
        # Within no_grad() a module may look at a tensor that it differentiates afterwards.
        made, graph = self.calls[-1], torch.is_grad_enabled()
        if graph not in made:
            made[graph] = self.spread.gather(self.unit, self.parameters())
        return made[graph][self.names.index(name)]

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Share the whole tensors within a call of the module.

        Yields:
            Nothing.
        """
        self.calls.append({})
        try:
            yield
        finally:
            self.calls.pop()


class SpreadModel:
    """A model whose parameters are cut into pieces over the ranks of a copy.

    Making it changes the model: `model.named_parameters()` are then this rank's pieces, flat. They
    have no values before they are filled.

    Args:
        model: The model, on the CPU or with parameters on the meta device.
        lockstep: The ranks that hold the pieces of one copy.

    Raises:
        WorkloadError: A module is scripted and cannot be changed.
    """

    keeps = 4096  # the entries up to which graphs save a whole tensor instead of a handle

    def __init__(self, model: nn.Module, lockstep: Lockstep) -> None:
        self.model, self.lockstep = model, lockstep
        self.whole = _whole_tensors(model)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.whole.items()}
        self.skeleton = _skeleton(model)
        self._origins: dict[int, _Origin] = {}
        self._guarded: list[tuple[str, Tensor, int]] | None = None
        self._units = 0
        made: dict[int, nn.Parameter] = {}
        names = {id(tensor): name for name, tensor in self.whole.items()}
        for prefix, module in list(model.named_modules()):
            own = {name: p for name, p in module._parameters.items() if p is not None}
            if own:
                self._enter(prefix or type(module).__name__, module, own, made)
        self._names = {id(piece): names[key] for key, piece in made.items()}

    def _enter(
        self,
        where: str,
        module: nn.Module,
        own: Mapping[str, nn.Parameter],
        made: dict[int, nn.Parameter],
    ) -> None:
        """Replace the parameters of a module by pieces, and its class."""
        if isinstance(module, torch.jit.ScriptModule):
            raise WorkloadError(
                f"the module {where} is scripted, and its parameters cannot be spread",
                "use the plain module, or compute.shards = 1",
            )
        units = {name: self._unit(tuple(p.shape)) for name, p in own.items()}
        unit = self._unit(*(tuple(p.shape) for p in own.values()))
        for name, parameter in own.items():
            if id(parameter) not in made:
                begin, end = shard_bounds(parameter.numel(), self.lockstep.size, self.lockstep.rank)
                piece = torch.zeros(end - begin, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(piece, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        pieces = _Pieces(self, module, tuple(own), unit, units, _as_linear(module, units, unit))
        module.__dict__[_PLACE] = pieces
        module.__class__ = _spread_class(type(module), tuple(own))

    def _unit(self, *shapes: tuple[int, ...]) -> Unit:
        self._units += 1
        return Unit(self.lockstep, self._units, shapes)

    def gather(self, unit: Unit, pieces: list[Tensor]) -> tuple[Tensor, ...]:
        """Gather in the graph, and remember where the tensors come from. Collective."""
        tensors = gathered(unit, pieces)
        stale = [key for key, origin in self._origins.items() if origin.is_gone]
        for key in stale:
            del self._origins[key]
        for index, tensor in enumerate(tensors):
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            origin = _Origin(reference, unit, tuple(pieces), index)
            self._origins[storage.data_ptr()] = origin
            if self._guarded is not None:
                # A block that is computed again has copies of its pieces.
                name = self._names.get(id(pieces[index]), "of a recomputed block")
                self._guarded.append((name, tensor, bits_of(tensor)))
        return tensors

    # -- what graphs save ----------------------------------------------------------------------

    def pack(self, tensor: Tensor) -> Tensor | _Handle:
        """Replace a whole tensor that a graph saves by a handle; other tensors stay."""
        storage = tensor.untyped_storage()
        origin = self._origins.get(storage.data_ptr())
        if origin is None or origin.is_gone or storage.nbytes() == 0:
            return tensor.detach()
        if storage.nbytes() // tensor.element_size() <= self.keeps:
            return tensor.detach()
        size, stride = tuple(tensor.shape), tensor.stride()
        return _Handle(origin, size, stride, int(tensor.storage_offset()))

    @staticmethod
    def unpack(saved: Tensor | _Handle) -> Tensor:
        """Return a saved tensor. Collective over the copy if it is a handle."""
        return saved.tensor() if isinstance(saved, _Handle) else saved

    # -- checks --------------------------------------------------------------------------------

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Refuse a model that changes its parameters when it is evaluated.

        Yields:
            Nothing.

        Raises:
            WorkloadError: A whole tensor was changed within the block.
        """
        self._guarded = []
        try:
            yield
            for name, tensor, bits in self._guarded:
                if bits_of(tensor) != bits:
                    raise WorkloadError(
                        f"the model changes its parameter {name} when it is evaluated",
                        "leave parameters as they are in forward",
                    )
        finally:
            self._guarded = None


def _own(module: nn.Module, name: str) -> Tensor:
    piece = module._parameters[name]
    assert piece is not None
    return piece


def _whole_tensors(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return the parameters by name, detached; those on the meta device have no values."""
    return OrderedDict((name, p) for name, p in model.named_parameters())


def _skeleton(model: nn.Module) -> nn.Module:
    """Copy a model with its parameters on the meta device, to find names and shapes with."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        meta = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(meta, requires_grad=parameter.requires_grad)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # objects in a module can raise anything
        raise WorkloadError(
            f"the model cannot be copied ({one_line(error)}), and its parameters cannot be spread",
            "remove open files and the like from the model, or use compute.shards = 1",
        ) from error


def _as_linear(module: nn.Module, units: Mapping[str, Unit], unit: Unit) -> LinearLayer | None:
    """Return the units of a layer that is evaluated as x Wᵀ + b; None for other modules."""
    if set(units) not in ({"weight"}, {"weight", "bias"}) or "forward" in module.__dict__:
        return None
    if next(iter(units)) != "weight":
        return None
    if type(module).forward is nn.Linear.forward:
        return LinearLayer(units["weight"], unit if "bias" in units else units["weight"])
    is_conv1d = type(module).__module__ == "transformers.pytorch_utils"
    if is_conv1d and type(module).__name__ == "Conv1D":
        full = unit if "bias" in units else units["weight"]
        return LinearLayer(units["weight"], full, is_transposed=True)
    return None


def _spread_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Make a subclass in which parameters are gathered when they are read."""

    def getter(name: str) -> property:
        def read(self: nn.Module) -> Tensor:
            whole: Tensor = self.__dict__[_PLACE].whole(name)
            return whole

        return property(read)

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        raise WorkloadError(
            f"the model replaces its parameter {name} when it is evaluated",
            "leave parameters as they are in forward",
        )

    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        pieces: _Pieces = self.__dict__[_PLACE]
        if pieces.linear is not None:
            return linear(pieces.linear, *args, *pieces.parameters(), **options)
        with pieces.calling():
            return base.forward(self, *args, **options)

    body: dict[str, Any] = {name: getter(name) for name in names}
    body |= {"forward": forward, "__module__": base.__module__}
    body["register_parameter"] = register_parameter  # which __setattr__ calls
    if issubclass(base, nn.RNNBase):  # it keeps a list of its parameters
        body["_flat_weights"] = property(_flat_weights, lambda self, value: None)
    return type(base.__name__, (base,), body)


def _flat_weights(module: Any) -> list[Tensor]:
    return [getattr(module, name) for name in module._flat_weights_names]
