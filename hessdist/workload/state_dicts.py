"""A state dict and its model: which of a checkpoint's tensors is which of the model's.

A checkpoint may hold its state under a key, or two, with names that a wrapper has made longer, and
with others beside it (averages, an optimiser). Each nesting with each prefix taken off is a
candidate. Those that the model takes strictly are told apart by usual names, plain ones before
averages; where that leaves two of different values, neither is taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from hessdist.errors import CheckpointError
from hessdist.workload.conversion import equal
from hessdist.workload.model_names import WRAPPERS, ModelNames, canonical

USUAL = (
    *("state_dict", "model_state_dict", "model_state", "model_weights", "model", "net", "network"),
    *("net_state_dict", "network_state_dict", "module", "weights", "params", "parameters", "state"),
    "current_model_state",  # of Lightning beside "state_dict" where that one is an average
)
# Words of names of averages over training.
_AVERAGES = {
    *("ema", "swa", "avg", "average", "averaged", "averages", "averaging", "shadow", "polyak"),
    *("modelema", "emamodel"),
}
# Words of names that stand beside a model in one flat state, and are none of it.
_BESIDE = _AVERAGES | {
    *("criterion", "loss", "losses", "metric", "metrics", "acc", "accuracy", "train", "val"),
    *("test", "initted", "step", "steps", "updates", "decay", "epoch", "iteration"),
}
_DEPTH = 8  # of nestings
_SHOWN = 3  # names that a message lists
_WIDTH = 160  # letters of a name that a message shows
_TRIALS = 8  # candidates that are tried for what the model renames by itself
_ANCHORS = 3  # names of the model by which prefixes are found


@dataclass(frozen=True)
class Choice:
    """What a job says about where the state is; None: what fits is looked for."""

    key: str | None = None
    prefix: str | None = None


@dataclass(frozen=True)
class _Nesting:
    """A mapping of names to tensors somewhere in a checkpoint."""

    key: tuple[str, ...]
    tensors: Mapping[str, Any]
    versions: Mapping[str, Any] | None  # PyTorch's _metadata


@dataclass(frozen=True)
class _Candidate:
    """A nesting with a prefix taken off, by the names of a model."""

    key: tuple[str, ...]
    prefix: str
    state: OrderedDict[str, Any]
    sources: frozenset[str]  # names in the checkpoint
    outside: tuple[str, ...]  # those of the nesting beside them
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    wrong: tuple[str, ...]  # whose shapes differ
    is_told: bool  # whether the job tells the prefix

    @property
    def fits(self) -> bool:
        """Return whether names and shapes are those of the model."""
        return not (self.missing or self.unknown or self.wrong)

    @property
    def distance(self) -> int:
        """Return how many names do not fit."""
        return len(self.missing) + len(self.unknown) + len(self.wrong)

    @cached_property
    def rank(self) -> int:
        """0 for usual names, 1 for others, 2 for averages."""
        parts = [*self.key, *filter(None, self.prefix.split("."))]
        if any(_words(part) & _AVERAGES for part in parts):
            return 2
        return int(not all(part in USUAL or part in WRAPPERS for part in parts))


def fit(
    model: nn.Module, content: Mapping[str, Any], where: str, choice: Choice
) -> OrderedDict[str, Any]:
    """Find the state of a model in what a checkpoint holds.

    Args:
        model: The model, without wrappers.
        content: Tensors by name, perhaps under keys.
        where: What the checkpoint is called in messages.
        choice: What the job says.

    Returns:
        The state by the model's names, as `load_state_dict` takes it strictly.

    Raises:
        CheckpointError: Nothing fits, or several that differ do.
    """
    names = ModelNames(model)
    nestings = [*_nestings(content), *_of_children(content, model)] or [_Nesting((), {}, None)]
    if choice.key is not None:
        nestings = _under(nestings, choice.key, where)
    candidates = [
        candidate for nesting in nestings for candidate in _candidates(nesting, names, choice)
    ]
    fitting = [one for one in candidates if one.fits and _is_whole(one, candidates)]
    best = min((one.rank for one in fitting), default=2)
    near = [one for one in candidates if not one.fits and not one.wrong and one.rank <= best]
    near = sorted((one for one in near if _overlaps(one, names)), key=lambda one: one.distance)
    fitting += [
        one for one in near[:_TRIALS] if _is_whole(one, candidates) and names.takes(one.state)
    ]
    if not fitting:
        raise CheckpointError(*_refusal(nestings, candidates, names, where))
    return _told_apart(fitting, where).state


def adapter_of(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The weights of an adapter of peft that a checkpoint holds.

    Args:
        content: Tensors by name, perhaps under keys.

    Returns:
        Tensors by name; None where there are none.
    """
    for nesting in _nestings(content):
        if any(name.startswith("base_model.model.") for name in nesting.tensors):
            return nesting.tensors
    return None


def state_under(
    content: Mapping[str, Any], key: str | None, prefix: str | None
) -> Mapping[str, Tensor]:
    """The tensors under a key whose names have a prefix, without it.

    Args:
        content: Tensors by name, perhaps under keys.
        key: The key; None or "": none.
        prefix: The prefix.

    Returns:
        Tensors by name; none where there is nothing under the key.
    """
    before = f"{prefix.removesuffix('.')}." if prefix else ""
    for one, mapping in _mappings(content):
        if ".".join(one) == (key or ""):
            return {
                name.removeprefix(before): value
                for name, value in mapping.items()
                if isinstance(value, Tensor) and name.startswith(before)
            }
    return {}


# -- nestings --------------------------------------------------------------------------------


def _nestings(content: Mapping[str, Any]) -> Iterator[_Nesting]:
    """All mappings that hold tensors by name, the outer ones first."""
    for key, mapping in _mappings(content):
        own = {name: value for name, value in mapping.items() if _belongs(name, value)}
        if any(isinstance(value, Tensor) for value in own.values()):
            yield _Nesting(key, own, getattr(mapping, "_metadata", None))


def _mappings(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """All mappings under keys that are text, each once, the outer ones first."""
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen = {id(content)}
    for _ in range(_DEPTH):
        yield from level
        deeper = []
        for key, mapping in level:
            for name, value in mapping.items():
                if isinstance(name, str) and isinstance(value, Mapping) and id(value) not in seen:
                    seen.add(id(value))
                    deeper.append(((*key, name), value))
        level = deeper


def _belongs(name: Any, value: Any) -> bool:
    if not isinstance(name, str):
        return False
    return isinstance(value, Tensor) or name.rpartition(".")[2] == "_extra_state"


def _of_children(content: Mapping[str, Any], model: nn.Module) -> Iterator[_Nesting]:
    """States of the model's children side by side: {"encoder": ..., "decoder": ...}."""
    children = {name for name, child in model.named_children() if child.state_dict()}
    for key, mapping in _mappings(content):
        states = {one.key[0]: one.tensors for one in _nestings(mapping) if len(one.key) == 1}
        if len(children) > 1 and children <= states.keys():
            tensors = {
                f"{child}.{name}": tensor
                for child in sorted(children)
                for name, tensor in states[child].items()
            }
            yield _Nesting(key, tensors, None)


def _under(nestings: Sequence[_Nesting], key: str, where: str) -> list[_Nesting]:
    """Nestings that a key of the job names, or those inside where it holds no tensors itself."""
    exact = [one for one in nestings if ".".join(one.key) == key]
    found = exact or [one for one in nestings if ".".join(one.key).startswith(f"{key}.")]
    if not found:
        raise CheckpointError(
            f"{where} has no tensors under checkpoints.key '{key}'; it holds {_found(nestings)}",
            "correct checkpoints.key, or leave it out",
        )
    return found


# -- candidates ------------------------------------------------------------------------------


def _candidates(nesting: _Nesting, names: ModelNames, choice: Choice) -> Iterator[_Candidate]:
    """A nesting with every prefix taken off that might make it fit."""
    seen: list[dict[str, str]] = []
    for group, taken in _groups(nesting, names, choice.prefix):
        short = {canonical(name.removeprefix(taken), names.wrappers): name for name in group}
        for prefix, added in _affixes(list(short), names, choice.prefix is None):
            mapping = {
                names.name_of(f"{added}{name.removeprefix(prefix)}"): source
                for name, source in short.items()
                if name.startswith(prefix)
            }
            if (mapping or not short) and mapping not in seen:
                seen.append(mapping)
                versions = names.versions(nesting.versions, taken, prefix, added)
                is_told = choice.prefix is not None
                yield _candidate(nesting, names, mapping, versions, taken + prefix, is_told)


def _groups(
    nesting: _Nesting, names: ModelNames, prefix: str | None
) -> Iterator[tuple[list[str], str]]:
    """Names of a nesting that may belong together, and what is taken off them at once."""
    given = list(nesting.tensors)
    if prefix:
        prefix = prefix if prefix.endswith(".") else f"{prefix}."
        yield [name for name in given if name.startswith(prefix)], prefix
        return
    heads = [name.split(".")[0] if "." in name else "" for name in given]
    wrappers = [head for head in dict.fromkeys(heads) if head in names.wrappers]
    pairs = list(zip(given, heads, strict=True))
    if len({canonical(name, names.wrappers) for name in given}) == len(given):
        yield given, ""
    else:  # both "module.weight" and "weight": two states side by side
        yield [name for name, head in pairs if head not in wrappers], ""
    # What has no such head is none of the state: the count of averages of AveragedModel.
    if prefix is None and set(heads) > set(wrappers):
        for wrapper in wrappers:
            yield [name for name, head in pairs if head == wrapper], f"{wrapper}."


def _affixes(short: Sequence[str], names: ModelNames, is_free: bool) -> Iterator[tuple[str, str]]:
    """Prefixes to take off the names of a nesting, and to put on instead."""
    own = list(names.by_short)
    for added in ("", *_common_prefixes(own)):
        ends = [name.removeprefix(added) for name in own]
        anchors = {ends[len(ends) * i // _ANCHORS] for i in range(_ANCHORS)} if ends else set()
        prefixes = {"": None}
        if is_free:
            prefixes |= {
                name.removesuffix(anchor): None
                for name in short
                for anchor in sorted(anchors)
                if name.endswith(f".{anchor}")
            }
        for prefix in prefixes:
            parts = prefix.split(".")[:-1]
            # Taking "decoder." off and putting "encoder." on would be another network.
            if not added or all(part in USUAL or _words(part) & _AVERAGES for part in parts):
                yield prefix, added


def _common_prefixes(names: Sequence[str]) -> Iterator[str]:
    """Prefixes that all names of the model have."""
    parts = [name.split(".")[:-1] for name in names]
    prefix = ""
    for level in range(min(map(len, parts), default=0)):
        heads = {one[level] for one in parts}
        if len(heads) > 1:
            return
        prefix += f"{heads.pop()}."
        yield prefix


def _candidate(
    nesting: _Nesting,
    names: ModelNames,
    mapping: Mapping[str, str],
    versions: OrderedDict[str, Any] | None,
    prefix: str,
    is_told: bool,
) -> _Candidate:
    """A candidate, with what the model makes up for by itself put right."""
    state = OrderedDict((name, nesting.tensors[source]) for name, source in mapping.items())
    for name in [name for name in state if name not in names.tensors]:
        if names.may_drop(name, state[name]):
            del state[name]
    for name in [name for name in names.tensors if name not in state]:
        value = names.known(name, state)
        if value is not None:
            state[name] = value
    if versions is not None:
        state._metadata = versions  # type: ignore[attr-defined]
    used = frozenset(mapping.values())
    there = [name for name in names.tensors if name in state]
    return _Candidate(
        key=nesting.key,
        prefix=prefix,
        state=state,
        sources=used,
        outside=tuple(name for name in nesting.tensors if name not in used),
        missing=tuple(name for name in names.tensors if name not in state),
        unknown=tuple(name for name in state if name not in names.tensors),
        wrong=tuple(name for name in there if names.differs(name, state[name])),
        is_told=is_told,
    )


# -- the choice ------------------------------------------------------------------------------


def _overlaps(candidate: _Candidate, names: ModelNames) -> bool:
    return any(name in names.tensors for name in candidate.state)


def _is_whole(candidate: _Candidate, candidates: Sequence[_Candidate]) -> bool:
    """Return whether what a prefix leaves out is no part of a model; what the job tells leaves out all."""
    return candidate.is_told or not _left(candidate, candidates)


def _left(candidate: _Candidate, candidates: Sequence[_Candidate]) -> list[str]:
    others = [one.sources for one in candidates if one.fits and one.key == candidate.key]
    taken = frozenset[str]().union(*others)
    return [
        name
        for name in candidate.outside
        if not _words(name.split(".")[0]) & _BESIDE and name not in taken
    ]


def _told_apart(fitting: Sequence[_Candidate], where: str) -> _Candidate:
    """The one of the most usual name, where others of the same rank are equal to it."""
    best = min(one.rank for one in fitting)
    first, *others = (one for one in fitting if one.rank == best)
    for other in others:
        if not _same(first.state, other.state):
            name, one, two = (
                ("prefix", first.prefix, other.prefix)
                if first.key == other.key
                else ("key", ".".join(first.key), ".".join(other.key))
            )
            raise CheckpointError(
                f"{where} holds two states that fit the model and differ: {_called(first)}, and "
                f"{_called(other)}",
                f"tell which with checkpoints.{name}: {_quoted(one)} or {_quoted(two)}",
            )
    return first


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        isinstance(value, Tensor) and isinstance(other[name], Tensor) and equal(value, other[name])
        for name, value in one.items()
        if value is not other[name]
    )


# -- messages --------------------------------------------------------------------------------


def _refusal(
    nestings: Sequence[_Nesting],
    candidates: Sequence[_Candidate],
    names: ModelNames,
    where: str,
) -> tuple[str, str]:
    """Return that nothing fits: what differs in what is nearest, what there is, and what to do."""
    for one in candidates:
        if one.fits:  # but leaves out what may be a part of a model
            return (
                f"{where} is of another model: {_called(one)} fits, and leaves out "
                f"{listed(_left(one, candidates))}",
                f"if that is meant, tell checkpoints.prefix = {_quoted(one.prefix)}; or correct "
                "model.factory and model.arguments",
            )
    if all(one.is_told and not one.state for one in candidates):
        return (
            f"{where} has no names that begin with checkpoints.prefix; it holds {_found(nestings)}",
            "correct checkpoints.prefix, or leave it out",
        )
    nearest = min(candidates, key=lambda one: (one.distance, one.rank))
    wrong = [
        f"{shown(name)} is {_shape(nearest.state[name])} there and {_shape(names.tensors[name])} "
        "in the model"
        for name in nearest.wrong
    ]
    parts = [
        ("shapes differ", wrong),
        ("missing", [shown(name) for name in nearest.missing]),
        ("not in the model", [shown(name) for name in nearest.unknown]),
    ]
    differences = "; ".join(f"{what}: {listed(those)}" for what, those in parts if those)
    is_plain = len(nestings) == 1 and not nearest.key and not nearest.prefix
    called = "" if is_plain else f", with {_called(nearest)}"
    held = "" if is_plain and nearest.unknown == () else f"; it holds {_found(nestings)}"
    adapter = any("lora_" in name for name in nearest.unknown)
    return (
        f"{where} is of another model{called}: {differences}{held}",
        "it holds an adapter of peft: let model.factory return peft.get_peft_model(...)"
        if adapter
        else "correct model.factory and model.arguments, or checkpoints.directory, or tell where "
        "the state is with checkpoints.key and checkpoints.prefix",
    )


def _found(nestings: Sequence[_Nesting]) -> str:
    """Return what a checkpoint holds: keys, with the number of tensors and the first names of each."""
    words = []
    for one in nestings[:_SHOWN]:
        under = f"under '{shown('.'.join(one.key))}' " if one.key else ""
        words.append(f"{under}{len(one.tensors)} tensors ({listed(list(one.tensors), 2)})")
    more = f" and {len(nestings) - _SHOWN} more keys" if len(nestings) > _SHOWN else ""
    return ", ".join(words) + more


def _called(candidate: _Candidate) -> str:
    words = [f"what is under key '{shown('.'.join(candidate.key))}'"] if candidate.key else []
    words += [f"prefix '{shown(candidate.prefix)}' taken off"] if candidate.prefix else []
    return ", ".join(words) or "the names as they are"


def _quoted(text: str) -> str:
    return f"'{shown(text)}'" if text else '""'


def listed(names: Sequence[str], most: int = _SHOWN) -> str:
    """Some names, for a message.

    Args:
        names: The names.
        most: How many are shown.

    Returns:
        The first of them, and how many more there are.
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def shown(name: str) -> str:
    """A name as a message has it: without control characters, and not too long.

    Args:
        name: The name.

    Returns:
        The same, or its representation in ASCII, or its beginning.
    """
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= _WIDTH else f"{name[:_WIDTH]}..."


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _words(part: str) -> set[str]:
    return set(part.lower().replace("-", "_").split("_"))
