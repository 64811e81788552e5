"""The update rules of `torch.optim`: the diagonal P that an optimiser divides by, and its step.

Each rule is written down from the functions `_single_tensor_*` of torch.optim. With the gradient g
of a parameter, the state that a step leaves, and its number of steps t:

| optimiser        | P, entry by entry                              |
| ---------------- | ---------------------------------------------- |
| SGD              | 1                                              |
| RMSprop          | sqrt(square_avg) + eps                         |
| RMSprop, centred | sqrt(square_avg - grad_avg²) + eps             |
| Adagrad          | sqrt(sum) + eps                                |
| Adam, AdamW      | sqrt(exp_avg_sq) / sqrt(1 - β₂ᵗ) + eps         |
| with amsgrad     | sqrt(max_exp_avg_sq) / sqrt(1 - β₂ᵗ) + eps     |
| NAdam            | sqrt(exp_avg_sq / (1 - β₂ᵗ)) + eps             |

Other factors, such as the correction 1 - β₁ᵗ of Adam's first average, belong to the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Values = Mapping[str, Any]
"""A parameter group without its parameters, or the state of one parameter."""


@dataclass(frozen=True)
class Step:
    """The step of one parameter on a quadratic, with P frozen.

    With G = P⁻¹ ∇L and all factors below, the memory is m ← decay · m + gain · G, and the parameter
    θ ← (1 - shrink) θ - rate · (gradient · G + memory · m).
    """

    rate: float  # learning rate, with corrections of bias and decays
    gradient: float = 1.0
    memory: float = 0.0
    decay: float = 0.0
    gain: float = 1.0
    shrink: float = 0.0  # decoupled weight decay times the learning rate
    penalty: float = 0.0  # weight decay that is added to the gradient; NaN: unknown
    ascends: bool = False  # maximize = True

    @property
    def kind(self) -> tuple[float, float, float, float]:
        """What has to be the same for all parameters, so that there is one bound."""
        return self.gradient, self.memory, self.decay, self.gain

    @property
    def bound(self) -> float:
        """The largest λ of P^(-1/2) H P^(-1/2) at which the step is stable; NaN for rate 0.

        The map of (θ, m) along an eigenvector has the trace 1 - s + β - λ (a + b c) and the
        determinant β (1 - s - λ a), with a and b the rates of gradient and memory. Its eigenvalue
        reaches -1 where 1 + trace + determinant = 0.
        """
        a, b = self.rate * self.gradient, self.rate * self.memory
        reach = a * (1 + self.decay) + b * self.gain
        return (1 + self.decay) * (2 - self.shrink) / reach if reach > 0 else math.nan


@dataclass(frozen=True)
class Rule:
    """An optimiser: how its state is recognised, its P and its step."""

    name: str
    keys: frozenset[str]  # of a group
    further: frozenset[str]  # keys that not every version has
    state: frozenset[str]  # names in the state of a parameter
    squares: str  # the name that P is made of; "": P is 1
    denominator: Callable[[Values, Values], Tensor]  # of state and group, float64
    step: Callable[[Values, Values], Step]

    def fits(self, group: Values, state: Values) -> bool:
        """Return whether a group and the state of a parameter are of this optimiser."""
        common = {
            *("params", "param_names", "name", "maximize", "foreach", "capturable"),
            *("differentiable", "fused", "initial_lr", "max_lr", "min_lr", "max_momentum"),
            *("base_momentum", "swa_lr"),
        }
        within = self.keys <= set(group) <= self.keys | self.further | common
        return within and set(state) <= self.state


def rule_of(group: Values, state: Values) -> Rule | None:
    """Return the rule of an optimiser, recognised by the names in its state dict.

    Args:
        group: A group of parameters.
        state: The state of one of its parameters; empty if it has none.

    Returns:
        The rule; None if it is no known one.
    """
    return next((rule for rule in _RULES if rule.fits(group, state)), None)


def number(value: Any) -> float:
    """Return a setting, which may be a tensor, as a number."""
    return float(value)


# -- P ---------------------------------------------------------------------------------------


def _ones(state: Values, group: Values) -> Tensor:
    return torch.ones((), dtype=torch.float64)


def _rmsprop(state: Values, group: Values) -> Tensor:
    squares: Tensor = state["square_avg"]
    if group["centered"]:  # in its own dtype, as in training: rounding must not make it negative
        squares = squares.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
    return squares.double().sqrt() + number(group["eps"])


def _adagrad(state: Values, group: Values) -> Tensor:
    return state["sum"].double().sqrt() + number(group["eps"])  # type: ignore[no-any-return]


def _adam(state: Values, group: Values) -> Tensor:
    squares = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].double()
    correction = 1 - number(group["betas"][1]) ** number(state["step"])
    return squares.sqrt() / correction**0.5 + number(group["eps"])  # type: ignore[no-any-return]


def _nadam(state: Values, group: Values) -> Tensor:
    correction = 1 - number(group["betas"][1]) ** number(state["step"])
    root = (state["exp_avg_sq"].double() / correction).sqrt()
    return root + number(group["eps"])  # type: ignore[no-any-return]


# -- steps -----------------------------------------------------------------------------------


def _of_group(group: Values) -> dict[str, Any]:
    """Return weight decay and direction of a step."""
    decay = number(group.get("weight_decay", 0.0))
    ascends = bool(group.get("maximize", False))
    is_adam = "betas" in group
    if not decay:
        return {"ascends": ascends}
    if is_adam and "decoupled_weight_decay" not in group:  # Adam or AdamW of an older PyTorch
        return {"penalty": math.nan, "ascends": ascends}
    if group.get("decoupled_weight_decay", False):
        return {"shrink": number(group["lr"]) * decay, "ascends": ascends}
    return {"penalty": decay, "ascends": ascends}


def _sgd_step(state: Values, group: Values) -> Step:
    rate, momentum = number(group["lr"]), number(group["momentum"])
    more = _of_group(group)
    if not momentum:
        return Step(rate, **more)
    if group.get("nesterov", False):
        return Step(rate, memory=momentum, decay=momentum, **more)
    gain = 1 - number(group.get("dampening", 0.0))
    return Step(rate, gradient=0.0, memory=1.0, decay=momentum, gain=gain, **more)


def _rmsprop_step(state: Values, group: Values) -> Step:
    rate, momentum = number(group["lr"]), number(group["momentum"])
    if not momentum:
        return Step(rate, **_of_group(group))
    return Step(rate, gradient=0.0, memory=1.0, decay=momentum, **_of_group(group))


def _adagrad_step(state: Values, group: Values) -> Step:
    # The rate of the next step, of number t + 1.
    decay = 1 + number(state["step"]) * number(group["lr_decay"])
    return Step(number(group["lr"]) / decay, **_of_group(group))


def _adam_step(state: Values, group: Values) -> Step:
    beta = number(group["betas"][0])
    correction = 1 - beta ** number(state["step"])
    rate = number(group["lr"]) / correction
    return Step(rate, 0.0, 1.0, beta, 1 - beta, **_of_group(group))


def _nadam_step(state: Values, group: Values) -> Step:
    beta, t = number(group["betas"][0]), number(state["step"])
    decay, product = number(group["momentum_decay"]), number(state["mu_product"])
    now, then = (beta * (1 - 0.5 * 0.96 ** (at * decay)) for at in (t, t + 1))
    gradient, memory = (1 - now) / (1 - product), then / (1 - product * then)
    return Step(number(group["lr"]), gradient, memory, beta, 1 - beta, **_of_group(group))


# -- the optimisers --------------------------------------------------------------------------


def _rule(
    name: str,
    keys: str,
    state: str,
    squares: str,
    denominator: Callable[[Values, Values], Tensor],
    step: Callable[[Values, Values], Step],
    further: str = "",
) -> Rule:
    required, optional, own = (frozenset(text.split()) for text in (keys, further, state))
    return Rule(name, required, optional, own, squares, denominator, step)


_RULES = (
    _rule(
        "SGD",
        "lr momentum dampening weight_decay nesterov",
        "momentum_buffer",
        "",
        _ones,
        _sgd_step,
    ),
    _rule("noisy SGD", "lr noise momentum", "momentum", "", _ones, _sgd_step),
    _rule(
        "RMSprop",
        "lr momentum alpha eps centered weight_decay",
        "step square_avg momentum_buffer grad_avg",
        "square_avg",
        _rmsprop,
        _rmsprop_step,
    ),
    _rule(
        "Adagrad",
        "lr lr_decay eps weight_decay initial_accumulator_value",
        "step sum",
        "sum",
        _adagrad,
        _adagrad_step,
    ),
    _rule(
        "Adam",
        "lr betas eps weight_decay amsgrad",
        "step exp_avg exp_avg_sq max_exp_avg_sq",
        "exp_avg_sq",
        _adam,
        _adam_step,
        "decoupled_weight_decay",
    ),
    _rule(
        "NAdam",
        "lr betas eps weight_decay momentum_decay",
        "step exp_avg exp_avg_sq mu_product",
        "exp_avg_sq",
        _nadam,
        _nadam_step,
        "decoupled_weight_decay",
    ),
)
