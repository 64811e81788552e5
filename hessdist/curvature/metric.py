"""The metric P of a spectrum: eigenpairs are those of H v = λ P v, with a positive diagonal P.

P is that of the checkpoint's optimiser, or read from a file. It is used by rank 0 alone, which
computes it one tensor at a time. The same state tells the learning rates and momenta, and with them
how large λ may be before steps diverge.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.curvature.parameters import ParameterLayout
from hessdist.errors import CheckpointError, JobError
from hessdist.workload.checkpoints import blaming
from hessdist.workload.optimizer_rules import Step
from hessdist.workload.optimizer_states import Entry, entries_of, find_optimizer
from hessdist.workload.reading import read_file

Kind = Literal["none", "optimizer", "diagonal"]


@dataclass(frozen=True)
class Bound:
    """The largest eigenvalue at which steps of the optimiser are stable."""

    value: float  # NaN: unknown
    reason: str  # the optimiser and its settings, or why it is unknown
    has_state: bool = True  # whether there is an optimiser's state that says so


@dataclass(frozen=True)
class Description:
    """What results say of a metric."""

    kind: Kind = "none"
    digest: str = ""  # of all entries of P, and of the bound; "" without a metric
    bound: Bound = Bound(math.nan, "unknown: no optimiser's state was read", False)

    def attributes(self) -> dict[str, str]:
        """Return what is stored with a result."""
        return {
            "metric": self.kind,
            "metric_digest": self.digest,
            "stability_bound_of": self.bound.reason,
        }


@dataclass(frozen=True)
class Asked:
    """The matrix whose largest eigenvalue is compared with the bound."""

    operator: str
    layers: Sequence[str]
    l2: float


class Metric:
    """The diagonal P, tensor by tensor.

    Args:
        kind: Where it is from.
        layout: The layout of the parameters in use.
        piece: Returns P of a parameter by its name, flat, in float64.
        where: The file that it is from, for messages.
        bound: The bound on the eigenvalues.

    Raises:
        CheckpointError: An entry is not positive, or not finite.
    """

    def __init__(
        self,
        kind: Kind,
        layout: ParameterLayout,
        piece: Callable[[str], NDArray[np.float64]],
        where: Path,
        bound: Bound,
    ) -> None:
        self._piece = piece
        self._last: tuple[str, NDArray[np.float64]] = ("", np.empty(0))
        digest = hashlib.sha256(f"{kind} {bound.value!r} {bound.reason}".encode())
        for name, begin, end in _places(layout):
            values = piece(name)
            _require_positive(values, end - begin, name, where)
            digest.update(name.encode())
            digest.update(values.tobytes())
        self.description = Description(kind, digest.hexdigest(), bound)

    def entries(self, layout: ParameterLayout, begin: int, end: int) -> NDArray[np.float64]:
        """Return entries of P in a flat vector. Not collective.

        Args:
            layout: The layout of the vector, of all parameters in use or of some.
            begin: The first entry.
            end: One after the last entry.

        Returns:
            The entries, (end - begin,), all positive and finite.
        """
        found = np.empty(end - begin)
        for name, first, last in _places(layout):
            low, high = max(begin, first), min(end, last)
            if low < high:
                if self._last[0] != name:
                    self._last = name, self._piece(name)
                found[low - begin : high - begin] = self._last[1][low - first : high - first]
        return found


def _places(layout: ParameterLayout) -> list[tuple[str, int, int]]:
    """Return the name and the range of each tensor."""
    return list(zip(layout.names, layout.offsets[:-1], layout.offsets[1:], strict=True))


def _require_positive(values: NDArray[np.float64], size: int, name: str, where: Path) -> None:
    if values.shape != (size,):
        raise CheckpointError(
            f"{where}: the metric of {name} has {values.size} entries, and the parameter {size}",
            "give each parameter a tensor of its shape",
        )
    wrong = int((~(np.isfinite(values) & (values > 0))).sum())
    if wrong:
        raise CheckpointError(
            f"{where}: the metric P is zero, negative or not finite at {wrong:,} of {size:,} "
            f"entries of {name}",
            "choose a checkpoint after more steps, or leave these parameters out by "
            "spectrum.layers",
        )


# -- from a file -----------------------------------------------------------------------------


def diagonal_metric(path: Path, layout: ParameterLayout) -> Metric:
    """Read P from a file.

    Args:
        path: An .npy file with a vector, (d,), in the order of the parameters in use; or a file of
            torch.save or safetensors with a tensor for each parameter in use, by its name.
        layout: The layout of the parameters in use.

    Returns:
        The metric.

    Raises:
        JobError: The file cannot be read.
        CheckpointError: It does not fit the parameters, or an entry is not positive and finite.
    """
    unknown = Bound(math.nan, "unknown: the metric is from a file", False)
    if not path.is_file():
        raise JobError(f"spectrum.metric_file: {path} is no file", "correct its path")
    if path.suffix.lower() == ".npy":
        return Metric("diagonal", layout, _of_vector(path, layout), path, unknown)
    content = read_file(path, mapped=True)
    tensors = content if isinstance(content, Mapping) else {}

    def piece(name: str) -> NDArray[np.float64]:
        value = tensors.get(name)
        shape = layout.shapes[layout.names.index(name)]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            what = "no tensor" if not isinstance(value, Tensor) else f"shape {tuple(value.shape)}"
            raise CheckpointError(
                f"{path} has {what} for {name}, whose shape is {shape}",
                "give each parameter in use a tensor of its shape",
            )
        return _flat(value)

    return Metric("diagonal", layout, piece, path, unknown)


def _of_vector(path: Path, layout: ParameterLayout) -> Callable[[str], NDArray[np.float64]]:
    try:
        vector = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise JobError(
            f"spectrum.metric_file: {path} cannot be read as a vector ({error})",
            "write it by numpy.save, without pickled objects",
        ) from error
    if vector.shape != (layout.size,) or vector.dtype.kind not in "fiu":
        raise CheckpointError(
            f"{path} has {vector.dtype} numbers of shape {vector.shape}, and there are "
            f"{layout.size} parameters in use",
            "write a vector of that length in the order of model.named_parameters()",
        )
    places = {name: slice(begin, end) for name, begin, end in _places(layout)}
    return lambda name: np.array(vector[places[name]], np.float64)


def _flat(values: Tensor) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = values.detach().to("cpu", torch.float64).reshape(-1).numpy()
    return flat


# -- of an optimiser -------------------------------------------------------------------------


def optimizer_metric(
    content: Mapping[str, Any],
    path: Path,
    model: nn.Module,
    layout: ParameterLayout,
    asked: Asked,
) -> Metric:
    """Make P from the state of the checkpoint's optimiser.

    If rates differ between parameters, P is divided by a parameter's rate over that of the
    optimiser's first one, so that one rate belongs to it: that of the first parameter.

    Args:
        content: The content of the checkpoint.
        path: Where it is from.
        model: The model, with all its parameters, perhaps without values.
        layout: The layout of the parameters in use.
        asked: What is asked of the bound.

    Returns:
        The metric.

    Raises:
        CheckpointError: There is no state, it is of another model, it is not known, or P is not
            positive and finite.
    """
    with blaming(path):  # a state may hold anything
        entries = _entries(content, path, model, layout)
        steps = _steps(entries, path, layout)
    reference = _reference(list(steps.values()), path)

    def piece(name: str) -> NDArray[np.float64]:
        entry, rate = entries[name], steps[name].rate
        size = math.prod(layout.shapes[layout.names.index(name)])
        own = _flat(entry.rule.denominator(entry.state, entry.group))
        own = np.full(size, own[0]) if not entry.rule.squares else own
        with np.errstate(divide="ignore"):
            return own if rate == reference else own * np.float64(reference) / np.float64(rate)

    bound = stability_bound(entries, steps, layout, asked)
    with blaming(path):
        return Metric("optimizer", layout, piece, path, bound)


def bound_without_metric(
    content: Mapping[str, Any],
    path: Path,
    model: nn.Module,
    layout: ParameterLayout,
    asked: Asked,
) -> Bound:
    """Find the bound on the largest eigenvalue of H itself, which only SGD has.

    Args:
        content: The content of the checkpoint.
        path: Where it is from.
        model: The model, with all its parameters, perhaps without values.
        layout: The layout of the parameters in use.
        asked: What is asked of the bound.

    Returns:
        The bound; NaN with the reason where it is unknown.
    """
    try:
        with blaming(path):
            entries = _entries(content, path, model, layout)
        adaptive = next((e.rule.name for e in entries.values() if e.rule.squares), None)
        if adaptive:
            reason = f"unknown: {adaptive} bounds the scaled matrix (spectrum.metric = 'optimizer')"
            return Bound(math.nan, reason)
        with blaming(path):
            steps = _steps(entries, path, layout)
    except CheckpointError as error:
        return Bound(math.nan, f"unknown: {error.what}", False)
    if len({step.rate for step in steps.values()}) > 1:
        reason = "unknown: learning rates differ between groups (spectrum.metric = 'optimizer')"
        return Bound(math.nan, reason)
    return stability_bound(entries, steps, layout, asked)


def _entries(
    content: Mapping[str, Any], path: Path, model: nn.Module, layout: ParameterLayout
) -> dict[str, Entry]:
    """Return what the optimiser's state says of each parameter in it."""
    own = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
    trainable = [name for name, parameter in own.items() if parameter.requires_grad]
    entries = entries_of(find_optimizer(content, path), shapes, trainable, path)
    entries = {name: entry for name, entry in entries.items() if own[name].requires_grad}
    missing = [name for name in layout.names if name not in entries]
    if missing:
        raise CheckpointError(
            f"the optimiser of {path} does not move {missing[0]}, which is in use",
            "leave it out by spectrum.layers, or freeze it in the model's factory",
        )
    return entries


def _steps(entries: Mapping[str, Entry], path: Path, layout: ParameterLayout) -> dict[str, Step]:
    """Return the step of each parameter that the optimiser has moved; those in use must be."""
    steps: dict[str, Step] = {}
    for name, entry in entries.items():
        rule, state = entry.rule, entry.state
        if rule.squares and not (rule.squares in state and float(state.get("step", 0)) >= 1):
            if name not in layout.names:
                continue
            raise CheckpointError(
                f"the optimiser's state of {path} has no {rule.squares} of {name}: {rule.name} has "
                "made no step of it",
                "choose a checkpoint after the first step (--checkpoints); set spectrum.metric = "
                "'none'; or freeze a parameter that the loss does not use",
            )
        try:
            steps[name] = rule.step(state, entry.group)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise CheckpointError(
                f"the settings of {name} in the optimiser's state of {path} are not those of "
                f"{rule.name} ({type(error).__name__}: {error})",
                "save optimizer.state_dict() as torch.optim has it",
            ) from error
    return steps


def _reference(steps: Sequence[Step], path: Path) -> float:
    """Return the rate of the first parameter that moves; 0 if none does."""
    if any(not (math.isfinite(step.rate) and step.rate >= 0) for step in steps):
        raise CheckpointError(
            f"a learning rate in the optimiser's state of {path} is not finite or negative",
            "save the state again",
        )
    return next((step.rate for step in steps if step.rate > 0), 0.0)


# -- the bound -------------------------------------------------------------------------------


def stability_bound(
    entries: Mapping[str, Entry],
    steps: Mapping[str, Step],
    layout: ParameterLayout,
    asked: Asked,
) -> Bound:
    """Find the largest eigenvalue at which the optimiser's steps do not diverge, P being frozen.

    Args:
        entries: What the optimiser's state says of each parameter.
        steps: The steps of the parameters.
        layout: The layout of the parameters in use.
        asked: The matrix.

    Returns:
        The bound; NaN with the reason where it is unknown.
    """

    def unknown(reason: str) -> Bound:
        return Bound(math.nan, f"unknown: {reason}")

    own = list(steps.values())
    names = sorted({entry.rule.name for entry in entries.values()})
    penalties = {step.penalty for step in own}
    if asked.operator != "hessian":
        return unknown(f"spectrum.operator is {asked.operator}, and not the Hessian")
    if asked.layers or set(layout.names) != set(entries):
        return unknown("the optimiser moves other parameters than those in use")
    if any(step.ascends for step in own):
        return unknown("the optimiser maximises")
    if any(math.isnan(one) for one in penalties):
        return unknown("the state does not say whether the weight decay is decoupled")
    if penalties not in ({0.0}, {asked.l2}):
        return unknown(
            "the gradients have a weight decay that the Hessian lacks (set loss.l2 to it)"
        )
    if len({step.kind for step in own}) > 1 or len(names) > 1:
        return unknown("momenta, or numbers of steps, differ between parameters")
    moving = [step for step in own if step.rate > 0]
    if not moving:
        return unknown("the learning rate is 0")
    # Rates are those of P; what is left to differ is the decoupled weight decay.
    lowest = min(moving, key=lambda step: step.bound * step.rate)
    reference = moving[0].rate
    value = lowest.bound * lowest.rate / reference
    return Bound(value, _described(lowest, names[0], reference))


def _described(step: Step, name: str, rate: float) -> str:
    """Return the optimiser and what its bound follows from."""
    words = [f"{name} of rate {rate:.6g}"]
    if step.decay and step.memory:
        nesterov = " (Nesterov)" if name == "SGD" and step.gradient else ""
        momentum = "β₁" if name in {"Adam", "NAdam"} else "β"
        words.append(f"{momentum} = {step.decay:g}{nesterov}")
    if step.shrink:
        words.append(f"weight decay {step.shrink / step.rate:.3g}")
    return ", ".join(words)
