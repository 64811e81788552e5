"""Finding the state of a model in a checkpoint.

A checkpoint may have its state under nested keys, with names that a wrapper has extended, and
together with other states (averages, an optimiser). Each nesting with each prefix removed is a
candidate. Of those that the model loads strictly, usual names come before other names and averages.
If two of the same rank differ, neither is used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from hessdist.errors import CheckpointError
from hessdist.workload.conversion import equal, shape_of
from hessdist.workload.listing import listed, shown
from hessdist.workload.model_names import WRAPPERS, ModelNames, canonical

USUAL = (
    *("state_dict", "model_state_dict", "model_state", "model_weights", "model", "net", "network"),
    *("net_state_dict", "network_state_dict", "module", "weights", "params", "parameters", "state"),
    "current_model_state",  # of Lightning, if its "state_dict" is an average
)
# Words in names of averages over training.
_AVERAGES = {
    *("ema", "swa", "avg", "average", "averaged", "averages", "averaging", "shadow", "polyak"),
    *("modelema", "emamodel"),
}


@dataclass(frozen=True)
class Choice:
    """The place of the state as the job names it; None: any place that fits."""

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
    """A nesting with a prefix removed, by the names of a model."""

    key: tuple[str, ...]
    prefix: str
    state: OrderedDict[str, Any]
    sources: frozenset[str]  # names in the checkpoint
    outside: tuple[str, ...]  # other names of the nesting
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    wrong: tuple[str, ...]  # names whose shapes differ
    is_given: bool  # whether the job names the prefix

    @property
    def fits(self) -> bool:
        """Return whether names and shapes are those of the model."""
        return not (self.missing or self.unknown or self.wrong)

    @property
    def distance(self) -> int:
        """Return the number of names that do not fit."""
        return len(self.missing) + len(self.unknown) + len(self.wrong)

    @cached_property
    def rank(self) -> int:
        """The rank of the names: 0 for usual names, 1 for others, 2 for averages."""
        parts = [*self.key, *filter(None, self.prefix.split("."))]
        if any(_words(part) & _AVERAGES for part in parts):
            return 2
        return int(not all(part in USUAL or part in WRAPPERS for part in parts))


def fit(
    model: nn.Module, content: Mapping[str, Any], where: str, choice: Choice
) -> OrderedDict[str, Any]:
    """Find the state of a model in the content of a checkpoint.

    Args:
        model: The model, without wrappers.
        content: The tensors by name, perhaps under keys.
        where: The name of the checkpoint in messages.
        choice: The place of the state, as far as the job names it.

    Returns:
        The state by the model's names, for a strict `load_state_dict`.

    Raises:
        CheckpointError: No state fits, or several different states fit.
    """
    names = ModelNames(model)
    nestings = [*_nestings(content), *_of_children(content, model)] or [_Nesting((), {}, None)]
    if choice.key is not None:
        nestings = _under(nestings, choice.key, where)
    candidates = [
        candidate for nesting in nestings for candidate in _candidates(nesting, names, choice)
    ]
    fitting = [c for c in candidates if c.fits and _is_whole(c, candidates)]
    best = min((c.rank for c in fitting), default=2)
    near = [c for c in candidates if not c.fits and not c.wrong and c.rank <= best]
    near = sorted((c for c in near if _overlaps(c, names)), key=lambda c: c.distance)
    # The model itself may rename tensors, so the nearest candidates are tried.
    fitting += [c for c in near[:8] if _is_whole(c, candidates) and names.takes(c.state)]
    if not fitting:
        raise CheckpointError(*_refusal(nestings, candidates, names, where))
    return _best(fitting, where).state


def adapter_of(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the weights of an adapter of peft in a checkpoint.

    Args:
        content: The tensors by name, perhaps under keys.

    Returns:
        The tensors by name; None if there are none.
    """
    for nesting in _nestings(content):
        if any(name.startswith("base_model.model.") for name in nesting.tensors):
            return nesting.tensors
    return None


def state_under(
    content: Mapping[str, Any], key: str | None, prefix: str | None
) -> Mapping[str, Tensor]:
    """Return the tensors under a key whose names have a prefix, without the prefix.

    Args:
        content: The tensors by name, perhaps under keys.
        key: The key; None or "" for no key.
        prefix: The prefix.

    Returns:
        The tensors by name; empty if the key does not exist.
    """
    start = f"{prefix.removesuffix('.')}." if prefix else ""
    for path, mapping in _mappings(content):
        if ".".join(path) == (key or ""):
            return {
                name.removeprefix(start): value
                for name, value in mapping.items()
                if isinstance(value, Tensor) and name.startswith(start)
            }
    return {}


# -- nestings --------------------------------------------------------------------------------


def _nestings(content: Mapping[str, Any]) -> Iterator[_Nesting]:
    """Iterate over mappings that have tensors by name, the outer ones first."""
    for key, mapping in _mappings(content):
        own = {name: value for name, value in mapping.items() if _belongs(name, value)}
        if any(isinstance(value, Tensor) for value in own.values()):
            yield _Nesting(key, own, getattr(mapping, "_metadata", None))


def _mappings(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Iterate over mappings under text keys, each once, the outer ones first, to 8 levels."""
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    seen = {id(content)}
    for _ in range(8):
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
    """Join separate states of the model's children: {"encoder": ..., "decoder": ...}."""
    children = {name for name, child in model.named_children() if child.state_dict()}
    for key, mapping in _mappings(content):
        states = {n.key[0]: n.tensors for n in _nestings(mapping) if len(n.key) == 1}
        if len(children) > 1 and children <= states.keys():
            tensors = {
                f"{child}.{name}": tensor
                for child in sorted(children)
                for name, tensor in states[child].items()
            }
            yield _Nesting(key, tensors, None)


def _under(nestings: Sequence[_Nesting], key: str, where: str) -> list[_Nesting]:
    """Return the nestings under a key of the job, or inside it if it has no tensors itself."""
    exact = [n for n in nestings if ".".join(n.key) == key]
    chosen = exact or [n for n in nestings if ".".join(n.key).startswith(f"{key}.")]
    if not chosen:
        raise CheckpointError(
            f"{where} has no tensors under checkpoints.key '{key}'; it has {_content(nestings)}",
            "correct checkpoints.key, or remove it",
        )
    return chosen


# -- candidates ------------------------------------------------------------------------------


def _candidates(nesting: _Nesting, names: ModelNames, choice: Choice) -> Iterator[_Candidate]:
    """Iterate over a nesting with every prefix removed that may make it fit."""
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
                is_given = choice.prefix is not None
                yield _candidate(nesting, names, mapping, versions, taken + prefix, is_given)


def _groups(
    nesting: _Nesting, names: ModelNames, prefix: str | None
) -> Iterator[tuple[list[str], str]]:
    """Iterate over names of a nesting that may belong together, with their common prefix."""
    all_names = list(nesting.tensors)
    if prefix:
        prefix = prefix if prefix.endswith(".") else f"{prefix}."
        yield [name for name in all_names if name.startswith(prefix)], prefix
        return
    heads = [name.split(".")[0] if "." in name else "" for name in all_names]
    wrappers = [head for head in dict.fromkeys(heads) if head in names.wrappers]
    pairs = list(zip(all_names, heads, strict=True))
    if len({canonical(name, names.wrappers) for name in all_names}) == len(all_names):
        yield all_names, ""
    else:  # both "module.weight" and "weight": two states in one
        yield [name for name, head in pairs if head not in wrappers], ""
    # Names without such a head are not in the state, such as the count of AveragedModel.
    if prefix is None and set(heads) > set(wrappers):
        for wrapper in wrappers:
            yield [name for name, head in pairs if head == wrapper], f"{wrapper}."


def _affixes(short: Sequence[str], names: ModelNames, is_free: bool) -> Iterator[tuple[str, str]]:
    """Iterate over prefixes to remove from the names of a nesting, and to add instead."""
    own = list(names.by_short)
    for added in ("", *_common_prefixes(own)):
        ends = [name.removeprefix(added) for name in own]
        # Three names of the model are enough to find the prefixes.
        anchors = {ends[len(ends) * i // 3] for i in range(3)} if ends else set()
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
            # Replacing "decoder." by "encoder." would be another network.
            if not added or all(part in USUAL or _words(part) & _AVERAGES for part in parts):
                yield prefix, added


def _common_prefixes(names: Sequence[str]) -> Iterator[str]:
    """Iterate over prefixes that all names of the model have."""
    parts = [name.split(".")[:-1] for name in names]
    prefix = ""
    for level in range(min(map(len, parts), default=0)):
        heads = {path[level] for path in parts}
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
    is_given: bool,
) -> _Candidate:
    """Make a candidate; drop and add the tensors that the model itself can provide."""
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
    present = [name for name in names.tensors if name in state]
    return _Candidate(
        key=nesting.key,
        prefix=prefix,
        state=state,
        sources=used,
        outside=tuple(name for name in nesting.tensors if name not in used),
        missing=tuple(name for name in names.tensors if name not in state),
        unknown=tuple(name for name in state if name not in names.tensors),
        wrong=tuple(name for name in present if names.differs(name, state[name])),
        is_given=is_given,
    )


# -- the choice ------------------------------------------------------------------------------


def _overlaps(candidate: _Candidate, names: ModelNames) -> bool:
    return any(name in names.tensors for name in candidate.state)


def _is_whole(candidate: _Candidate, candidates: Sequence[_Candidate]) -> bool:
    """Return whether a prefix leaves out no part of a model, or is given by the job."""
    return candidate.is_given or not _left(candidate, candidates)


def _left(candidate: _Candidate, candidates: Sequence[_Candidate]) -> list[str]:
    # Words in names that are in one flat state with a model, but not part of it.
    not_of_model = _AVERAGES | {
        *("criterion", "loss", "losses", "metric", "metrics", "acc", "accuracy", "train", "val"),
        *("test", "initted", "step", "steps", "updates", "decay", "epoch", "iteration"),
    }
    others = [c.sources for c in candidates if c.fits and c.key == candidate.key]
    taken = frozenset[str]().union(*others)
    return [
        name
        for name in candidate.outside
        if not _words(name.split(".")[0]) & not_of_model and name not in taken
    ]


def _best(fitting: Sequence[_Candidate], where: str) -> _Candidate:
    """Return the candidate with the most usual name, if others of its rank are equal to it."""
    best = min(c.rank for c in fitting)
    first, *others = (c for c in fitting if c.rank == best)
    for other in others:
        if not _same(first.state, other.state):
            key, *values = (
                ("prefix", first.prefix, other.prefix)
                if first.key == other.key
                else ("key", ".".join(first.key), ".".join(other.key))
            )
            raise CheckpointError(
                f"{where} has two states that fit the model and differ: {_called(first)}, and "
                f"{_called(other)}",
                f"choose one with checkpoints.{key}: {' or '.join(map(_quoted, values))}",
            )
    return first


def _same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        isinstance(a, Tensor) and isinstance(b, Tensor) and equal(a, b)
        for a, b in ((value, second[name]) for name, value in first.items())
        if a is not b
    )


# -- messages --------------------------------------------------------------------------------


def _refusal(
    nestings: Sequence[_Nesting],
    candidates: Sequence[_Candidate],
    names: ModelNames,
    where: str,
) -> tuple[str, str]:
    """Return the message and the remedy if no state fits: the differences of the nearest one."""
    for candidate in candidates:
        if candidate.fits:  # but leaves out tensors that may be part of a model
            return (
                f"{where} is of another model: {_called(candidate)} fits, and leaves out "
                f"{listed(_left(candidate, candidates))}",
                f"if this is right, set checkpoints.prefix = {_quoted(candidate.prefix)}; or "
                "correct model.factory and model.arguments",
            )
    if all(c.is_given and not c.state for c in candidates):
        return (
            f"{where} has no names that begin with checkpoints.prefix; it has {_content(nestings)}",
            "correct checkpoints.prefix, or remove it",
        )
    nearest = min(candidates, key=lambda c: (c.distance, c.rank))
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
    differences = "; ".join(f"{what}: {listed(items)}" for what, items in parts if items)
    is_plain = len(nestings) == 1 and not nearest.key and not nearest.prefix
    called = "" if is_plain else f", with {_called(nearest)}"
    content = "" if is_plain and nearest.unknown == () else f"; it has {_content(nestings)}"
    adapter = any("lora_" in name for name in nearest.unknown)
    return (
        f"{where} is of another model{called}: {differences}{content}",
        "it has an adapter of peft: let model.factory return peft.get_peft_model(...)"
        if adapter
        else "correct model.factory and model.arguments, or checkpoints.directory, or set "
        "checkpoints.key and checkpoints.prefix",
    )


def _content(nestings: Sequence[_Nesting], most: int = 3) -> str:
    """List the keys of a checkpoint, with the number of tensors and the first names of each."""
    parts = []
    for nesting in nestings[:most]:
        under = f"under '{shown('.'.join(nesting.key))}' " if nesting.key else ""
        parts.append(f"{under}{len(nesting.tensors)} tensors ({listed(list(nesting.tensors), 2)})")
    more = f" and {len(nestings) - most} more keys" if len(nestings) > most else ""
    return ", ".join(parts) + more


def _called(candidate: _Candidate) -> str:
    parts = [f"the state under key '{shown('.'.join(candidate.key))}'"] if candidate.key else []
    parts += [f"prefix '{shown(candidate.prefix)}' removed"] if candidate.prefix else []
    return ", ".join(parts) or "the state with its own names"


def _quoted(text: str) -> str:
    return f"'{shown(text)}'" if text else '""'


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = shape_of(value)
    return "nested" if shape is None else str(tuple(shape))


def _words(part: str) -> set[str]:
    return set(part.lower().replace("-", "_").split("_"))
