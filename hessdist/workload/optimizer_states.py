"""Finding the state of an optimiser in a checkpoint, and what it says of each parameter.

A state dict of `torch.optim` numbers the parameters, group after group. Which parameter a number is
of follows from names where the optimiser was given some; otherwise from the order of
`model.parameters()`, which each group keeps, and from the shapes in the state. Where several ways
fit, the state is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hessdist.errors import CheckpointError
from hessdist.workload.checkpoints import content_digest, optimizer_path
from hessdist.workload.listing import listed
from hessdist.workload.optimizer_rules import Rule, Values, rule_of
from hessdist.workload.reading import read_file


@dataclass(frozen=True)
class Entry:
    """What a state says of one parameter."""

    rule: Rule
    group: Values
    state: Values  # empty if there is none


def find_optimizer(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Find the state dict of an optimiser in a checkpoint, or in a file beside it.

    Args:
        content: The content of the checkpoint.
        path: The file or folder that it is from. In a folder, the state may be in a file
            optimizer.pt or optimizer.bin; `hessdist train` writes it to a folder beside the file.

    Returns:
        The state dict, with "state" and "param_groups".

    Raises:
        CheckpointError: There is none, there are several, or it belongs to other parameters.
    """
    found = _state_dicts(content)
    if not found:
        found = _beside(content, path)
    if not found:
        raise CheckpointError(
            f"the checkpoint {path} has no optimiser's state",
            "save optimizer.state_dict() with the model, under a key such as optimizer, or set "
            "spectrum.metric = 'none'",
        )
    if len(found) > 1:
        raise CheckpointError(
            f"the checkpoint {path} has the states of several optimisers ({listed(list(found))})",
            "save one",
        )
    return next(iter(found.values()))


def _state_dicts(content: Any) -> dict[str, Mapping[str, Any]]:
    """Find state dicts of optimisers in a nesting of mappings and lists, to 4 levels."""
    found: dict[str, Mapping[str, Any]] = {}
    level: list[tuple[str, Any]] = [("", content)]
    for _ in range(4):
        deeper: list[tuple[str, Any]] = []
        for key, value in level:
            if isinstance(value, Mapping):
                if isinstance(value.get("param_groups"), list) and "state" in value:
                    found[key or "the file"] = value
                    continue
                deeper += [(f"{key}.{k}".strip("."), v) for k, v in value.items()]
            elif isinstance(value, list | tuple):
                deeper += [(f"{key}.{k}", v) for k, v in enumerate(value)]
        level = [(k, v) for k, v in deeper if isinstance(v, Mapping | list | tuple)]
    return found


def _beside(content: Mapping[str, Any], path: Path) -> dict[str, Mapping[str, Any]]:
    """Find state dicts in the files that libraries, or `hessdist train`, write beside a model."""
    own = optimizer_path(path)
    if own.is_file():
        read = read_file(own, mapped=True)
        if not isinstance(read, Mapping) or read.get("model_digest") != content_digest(content):
            raise CheckpointError(
                f"{own} is not the optimiser's state at {path}: the file has changed since",
                "train again, or move it away",
            )
        return _state_dicts(read)
    for name in ("optimizer.pt", "optimizer.bin"):
        if path.is_dir() and (path / name).is_file():
            return _state_dicts(read_file(path / name, mapped=True))
    return {}


# -- which parameter a number is of ----------------------------------------------------------


def entries_of(
    optimizer: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    trainable: Sequence[str],
    where: Path,
) -> dict[str, Entry]:
    """Return what the state of an optimiser says of each parameter.

    Args:
        optimizer: The state dict.
        shapes: The shapes of all parameters of the model by name, in the order of `parameters()`.
        trainable: The names of those that require a gradient, in that order.
        where: The checkpoint, for messages.

    Returns:
        The entries by name of parameter, in the order of the optimiser.

    Raises:
        CheckpointError: The optimiser is not known, or its groups or shapes are of another model.
    """
    groups, states = _checked(optimizer, where)
    numbers = [list(group["params"]) for group in groups]
    known: dict[Any, Entry] = {}
    for group, own in zip(groups, numbers, strict=True):
        for index in own:
            state = states.get(index) or {}
            rule = rule_of(group, state)
            if rule is None:
                raise CheckpointError(*_unknown(group, state, where))
            if index in known:
                raise CheckpointError(*_other(where, "a parameter is in two groups"))
            known[index] = Entry(rule, group, state)
    names = _names_of(groups, numbers, known, shapes, trainable, where)
    for index, entry in known.items():
        name = names[index]
        for key, value in entry.state.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != shapes[name]:
                what = f"{key} of {name} is {tuple(value.shape)}, not {shapes[name]}"
                raise CheckpointError(*_other(where, what))
    return {names[index]: entry for index, entry in known.items()}


def _checked(
    optimizer: Mapping[str, Any], where: Path
) -> tuple[list[Mapping[str, Any]], Mapping[Any, Any]]:
    """Return groups and states of parameters, if they have the form of torch.optim's."""
    groups, states = optimizer["param_groups"], optimizer["state"]
    if (
        isinstance(states, Mapping)
        and all(isinstance(one, Mapping) for one in (*groups, *states.values()))
        and all(isinstance(group.get("params"), list) for group in groups)
    ):
        return groups, states
    raise CheckpointError(
        f"the optimiser's state of {where} has not the form of torch.optim's",
        "save optimizer.state_dict()",
    )


def _unknown(group: Values, state: Values, where: Path) -> tuple[str, str]:
    """Return the message and the remedy for an optimiser that is not known."""
    keys = [str(key) for key in group if key not in {"params", "param_names"}]
    own = f"its groups have {', '.join(keys)}"
    own += f"; its state {', '.join(map(str, state))}" if state else ""
    return (
        f"the optimiser of {where} is not known: {own}",
        "known are torch.optim's SGD, RMSprop, Adagrad, Adam, AdamW and NAdam; or give its "
        "diagonal by spectrum.metric = 'diagonal'",
    )


def _other(where: Path, what: str) -> tuple[str, str]:
    """Return the message and the remedy for a state that does not fit the model."""
    return (
        f"the optimiser's state of {where} is of another model: {what}",
        "correct model.factory and model.arguments, or save the state of this model's optimiser",
    )


def _names_of(
    groups: Sequence[Mapping[str, Any]],
    numbers: Sequence[Sequence[Any]],
    known: Mapping[Any, Entry],
    shapes: Mapping[str, tuple[int, ...]],
    trainable: Sequence[str],
    where: Path,
) -> dict[Any, str]:
    """Return the name of the parameter of each number."""
    given = _given_names(groups, numbers)
    if given is not None:
        strange = [name for name in given.values() if name not in shapes]
        if strange:
            raise CheckpointError(*_other(where, f"the model has no {listed(strange)}"))
        return given
    fitting = [order for order in (list(shapes), list(trainable)) if len(order) == len(known)]
    if not fitting:
        counts = f"it has {len(known)} parameters, and the model {len(shapes)}"
        raise CheckpointError(*_other(where, f"{counts} ({len(trainable)} of them trainable)"))
    wanted = [(name, shapes[name]) for name in fitting[0]]
    of_state = {index: _shape(entry.state) for index, entry in known.items()}
    # Without squares, and with the same settings, it does not matter which is whose.
    if len(groups) == 1 or (_alike(groups) and not any(e.rule.squares for e in known.values())):
        pairs = list(zip(known, wanted, strict=True))
        if len(groups) == 1 and any(of_state[i] not in {None, shape} for i, (_, shape) in pairs):
            raise CheckpointError(*_other(where, "the shapes in it are others"))
        return {index: name for index, (name, _) in pairs}
    return _merged(numbers, of_state, wanted, where)


def _given_names(
    groups: Sequence[Mapping[str, Any]], numbers: Sequence[Sequence[Any]]
) -> dict[Any, str] | None:
    """Return the names that a state has itself; None if it has none."""
    names: dict[Any, str] = {}
    for group, own in zip(groups, numbers, strict=True):
        listed_names = group.get("param_names", own)
        if len(listed_names) != len(own) or not all(isinstance(n, str) for n in listed_names):
            return None
        names |= zip(own, listed_names, strict=True)
    return names


def _alike(groups: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether groups have the same settings, as far as those determine a bound."""
    ignored = {"params", "name", "weight_decay", "initial_lr"}
    first, *others = ({k: v for k, v in g.items() if k not in ignored} for g in groups)
    return all(other == first for other in others)


def _shape(state: Values) -> tuple[int, ...] | None:
    """Return the shape of a parameter according to its state; None if it does not say."""
    tensors = [
        v for k, v in state.items() if isinstance(v, Tensor) and k not in {"step", "mu_product"}
    ]
    return tuple(tensors[0].shape) if tensors else None


def _merged(
    numbers: Sequence[Sequence[Any]],
    known: Mapping[Any, tuple[int, ...] | None],
    wanted: Sequence[tuple[str, tuple[int, ...]]],
    where: Path,
) -> dict[Any, str]:
    """Distribute the parameters to groups that each keep their order, if only one way fits."""
    ways: list[dict[tuple[int, ...], int]] = []  # of the positions in the groups, how many lead to
    reached = {tuple(0 for _ in numbers): 1}
    for _, shape in wanted:
        ways.append(reached)
        following: dict[tuple[int, ...], int] = {}
        for at, count in reached.items():
            for after, _ in _next(at, numbers, known, shape):
                following[after] = min(2, following.get(after, 0) + count)
        reached = following
        if not reached or len(reached) > 10_000:
            break
    end = tuple(len(own) for own in numbers)
    if not reached:
        raise CheckpointError(
            *_other(where, "no distribution of the parameters to its groups has these shapes")
        )
    if reached.get(end, 2) > 1:
        raise CheckpointError(
            f"the optimiser of {where} has {len(numbers)} groups, and shapes do not tell which "
            "parameters are in which",
            "make it of model.named_parameters(), so that its state has their names, or give P by "
            "spectrum.metric = 'diagonal'",
        )
    names: dict[Any, str] = {}
    for (name, shape), before in zip(reversed(wanted), reversed(ways), strict=True):
        for at in before:
            steps = dict(_next(at, numbers, known, shape))
            if end in steps:
                names[steps[end]] = name
                end = at
                break
    return names


def _next(
    at: tuple[int, ...],
    numbers: Sequence[Sequence[Any]],
    known: Mapping[Any, tuple[int, ...] | None],
    shape: tuple[int, ...],
) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Iterate over the groups that may have the next parameter.

    Yields:
        The positions after it, and its number.
    """
    for group, position in enumerate(at):
        if position < len(numbers[group]):
            index = numbers[group][position]
            if known[index] in {None, shape}:
                yield (*at[:group], position + 1, *at[group + 1 :]), index
