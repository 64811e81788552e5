"""Many small networks of one architecture at once: losses, gradients, Hessians and descent.

Networks are rows of a matrix of parameters, and one call evaluates all of them on one full batch.
Nothing that happens to a row depends on the other rows, so that networks can be spread over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from hessdist.curvature.differentiation import exact_derivatives
from hessdist.curvature.parameters import Parameters
from hessdist.errors import NumericalError, WorkloadError
from hessdist.optimizers.training import minibatches
from hessdist.workload.losses import CriterionLoss, checked_loss

# Numbers that a pass over some networks keeps at once: as many as stay in a processor's cache,
# and for second derivatives, where a call costs more than memory does, 32 times as many.
_CACHED = 1 << 19
_IN_MEMORY = 1 << 24
# Temporaries of second derivatives beside each number that the loss itself keeps.
_SECOND = 4

_POINTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Softplus, nn.Identity)


@dataclass(frozen=True)
class Descent:
    """Where gradient descent led K networks."""

    parameters: Tensor  # (K, d), those of the last step
    loss: Tensor  # (K,) there
    gradient_norm: Tensor  # (K,) there
    steps: Tensor  # (K,) int64, steps taken
    reached: Tensor  # (K,) bool: the gradient norm is within the tolerance


class Ensemble:
    """K networks of one architecture, rows θ_k of a matrix (K, d), on one batch of N samples.

    The loss of a network is the mean over the N samples. Rows have the dtype of the model.

    Args:
        model: The architecture, in evaluation mode; its own parameters are not used, except for
            those that do not require a gradient.
        criterion: The loss.
        inputs: (N, ...), of the model's dtype and on its device.
        targets: (N, ...).
        chunk: Networks that are evaluated together; None: as many as stay in a processor's cache.
            Results do not depend on it beyond rounding.

    Raises:
        WorkloadError: The model and the loss cannot be evaluated on the samples, or `chunk` is
            below 1.
        DataError: A class label is out of the range of the model's outputs.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: CriterionLoss,
        inputs: Tensor,
        targets: Tensor,
        *,
        chunk: int | None = None,
    ) -> None:
        if chunk is not None and chunk < 1:
            raise WorkloadError(f"an ensemble in chunks of {chunk} networks", "give 1 or more")
        parameters = Parameters(model)
        self.layout = parameters.layout
        self._names = _all_names(model, parameters)
        self._model, self._criterion = model, criterion
        self._samples = (inputs, targets)
        with torch.no_grad():
            checked_loss(criterion, model, (inputs, targets), "the ensemble's batch")
        self._chain = _Chain.of(model, self.layout.names)
        theta = parameters.flat()
        self.dtype, self.device = theta.dtype, theta.device
        self._kept = self._numbers_kept(theta[None])
        self.chunk = chunk if chunk is not None else max(1, _CACHED // self._kept)

    # -- evaluation --------------------------------------------------------------------------

    def losses(self, theta: Tensor) -> Tensor:
        """The loss of each network.

        Args:
            theta: (K, d).

        Returns:
            (K,).

        Raises:
            WorkloadError: `theta` has another shape or dtype.
        """
        self._check(theta)
        losses = theta.new_empty(len(theta))
        with torch.no_grad():
            for part in self._parts(len(theta)):
                losses[part] = self._evaluate(theta[part], *self._samples)
        return losses

    def losses_and_gradients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each network and its gradient.

        Args:
            theta: (K, d).

        Returns:
            (K,) and (K, d).

        Raises:
            WorkloadError: `theta` has another shape or dtype.
        """
        self._check(theta)
        losses, gradients = theta.new_empty(len(theta)), torch.empty_like(theta)
        for part in self._parts(len(theta)):
            losses[part], gradients[part] = self._differentiate(theta[part], *self._samples)
        return losses, gradients

    def hessians(self, theta: Tensor) -> Tensor:
        """The exact Hessian of each network's loss, by differentiating twice.

        Where the loss has a kink its second derivative there counts as zero, as in PyTorch.

        Args:
            theta: (K, d).

        Returns:
            (K, d, d), symmetric.

        Raises:
            WorkloadError: `theta` has another shape or dtype.
        """
        self._check(theta)
        d = self.layout.size
        columns = max(1, _IN_MEMORY // (_SECOND * self._kept))  # of all networks, at a time
        networks = max(1, min(self.chunk, columns // d))
        units = torch.eye(d, dtype=theta.dtype, device=theta.device)
        found = theta.new_empty(len(theta), d, d)
        for part in self._parts(len(theta), networks):
            for begin in range(0, d, columns):
                block = slice(begin, begin + columns)
                found[part, block] = self._columns(theta[part], units[block])
            # Mixed derivatives are equal up to rounding.
            found[part] = (found[part] + found[part].mT) / 2
        return found

    def _columns(self, theta: Tensor, directions: Tensor) -> Tensor:
        """H_k v of each network and each direction v, (n, d) to (K, n, d)."""
        gradient = grad(lambda rows: self._evaluate(rows, *self._samples).sum())
        # Its transpose, which is the same: reverse over reverse is as fast as forward over reverse,
        # whose rule for `mse_loss` warns under vmap.
        product = vjp(gradient, theta)[1]
        columns: Tensor = vmap(lambda v: product(v.expand_as(theta))[0], out_dims=1)(directions)
        return columns

    def _differentiate(
        self, theta: Tensor, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss of each network and its gradient, (K,) and (K, d)."""
        theta = theta.detach().requires_grad_()
        with exact_derivatives():
            losses = self._evaluate(theta, inputs, targets)
        # A network's loss depends on its own row alone.
        (gradients,) = torch.autograd.grad(losses.sum(), theta)
        return losses.detach(), gradients

    def _evaluate(self, theta: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each network, (K,), with its graph."""
        if self._chain is None:
            return vmap(lambda row: self._loss_of_one(row, inputs, targets))(theta)
        outputs = self._chain(self._pieces(theta), inputs)
        count, weight = len(targets), self._criterion.weight(targets)
        plain = self._criterion.name == "cross_entropy" and self._criterion.is_plain
        if plain and targets.ndim == 1 and not targets.is_floating_point():
            # It takes the classes before the samples as they are; others want them turned round.
            each = nn.functional.cross_entropy(
                outputs, targets.expand(len(theta), count), reduction="none"
            )
            return each.mean(1)
        return vmap(lambda z: self._criterion.total(z.T, targets) / weight)(outputs)

    def _loss_of_one(self, row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        pieces = self.layout.split(row)
        named = {name: pieces[number] for name, number in self._names.items()}
        # With its own treatment of ties a module that is used twice would keep the last row.
        outputs = functional_call(self._model, named, (inputs,), tie_weights=False)
        return self._criterion.total(outputs, targets) / self._criterion.weight(targets)

    def _pieces(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters by name, (K, ...)."""
        layout = self.layout
        sizes = [
            end - begin for begin, end in zip(layout.offsets, layout.offsets[1:], strict=False)
        ]
        pieces = zip(layout.names, torch.split(theta, sizes, dim=1), layout.shapes, strict=True)
        return {name: piece.view(-1, *shape) for name, piece, shape in pieces}

    def _numbers_kept(self, theta: Tensor) -> int:
        """How many numbers the loss of one network keeps for its gradient."""
        kept = [theta.numel()]

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self._evaluate(theta.requires_grad_(), *self._samples)
        return sum(kept)

    def _parts(self, count: int, size: int | None = None) -> Iterator[slice]:
        """Some of `count` networks at a time."""
        step = self.chunk if size is None else size
        return (slice(begin, begin + step) for begin in range(0, count, step))

    def _check(self, theta: Tensor) -> None:
        d = self.layout.size
        if theta.ndim != 2 or theta.shape[1] != d or theta.dtype != self.dtype:
            raise WorkloadError(
                f"networks as rows of {tuple(theta.shape)} {theta.dtype}, and the model has {d} "
                f"parameters of {self.dtype}",
                "give (K, d) of the model's dtype",
            )

    # -- training ----------------------------------------------------------------------------

    def descend(
        self,
        theta: Tensor,
        *,
        learning_rate: float,
        tolerance: float,
        max_steps: int,
        on_step: Callable[[int], None] = lambda ended: None,
    ) -> Descent:
        """Full-batch gradient descent with constant step, from each row by itself.

        A network ends at the first point, its start included, where its gradient norm is within the
        tolerance, or where its loss or its gradient is not finite, or that is `max_steps` steps
        away. The next one takes its place, so that a few slow ones do not hold the others up.

        Args:
            theta: Starts, (K, d).
            learning_rate: The step size η: θ ← θ − η ∇L(θ).
            tolerance: Of the norm of ∇L.
            max_steps: The most steps of a network.
            on_step: Called after every step of the networks that move with the number of those that
                have ended; what it raises ends the descent.

        Returns:
            The last point of each network, whether or not it has reached the tolerance.

        Raises:
            WorkloadError: `theta` has another shape or dtype.
        """
        self._check(theta)
        ends = _nowhere(theta)
        moving = _Moving(theta, self.chunk)
        while moving.fill():
            loss, gradient = self._differentiate(moving.points, *self._samples)
            norm = torch.linalg.vector_norm(gradient, dim=1)
            reached = norm <= tolerance
            is_finite = torch.isfinite(loss) & torch.isfinite(norm)
            ended = reached | ~is_finite | (moving.steps >= max_steps)
            if bool(ended.any()):
                last = moving.which[ended]
                ends.parameters[last], ends.steps[last] = moving.points[ended], moving.steps[ended]
                ends.loss[last], ends.gradient_norm[last] = loss[ended], norm[ended]
                ends.reached[last] = reached[ended]
                moving.keep(~ended)
                gradient = gradient[~ended]
            moving.step(-learning_rate * gradient)
            on_step(moving.ended)
        return ends

    def sgd_path(
        self,
        theta: Tensor,
        *,
        batch_size: int | None,
        learning_rate: float,
        steps: int,
        every: int,
        seed: int,
    ) -> Tensor:
        """One network's path under stochastic gradient descent with constant step.

        Args:
            theta: The start, (d,).
            batch_size: Samples in a minibatch; None: all, which is gradient descent.
            learning_rate: The step size.
            steps: Steps taken.
            every: Steps from one point of the path to the next.
            seed: Of the minibatches.

        Returns:
            (steps // every + 1, d): θ at the start and after every so many steps.

        Raises:
            WorkloadError: `theta` has another shape or dtype.
            NumericalError: The path leads to parameters that are not finite.
        """
        self._check(theta[None])
        inputs, targets = self._samples
        draw = minibatches(len(targets), batch_size or len(targets), seed)
        point, path = theta[None], [theta]
        for step in range(1, steps // every * every + 1):
            batch = self._samples
            if batch_size is not None:
                picked = next(draw).to(theta.device)
                batch = inputs[picked], targets[picked]
            point = point - learning_rate * self._differentiate(point, *batch)[1]
            if step % every == 0:
                path.append(point[0])
                if not bool(torch.isfinite(point).all()):
                    raise NumericalError(
                        f"stochastic gradient descent: parameters are not finite at step {step}",
                        "lower the learning rate",
                    )
        return torch.stack(path)


def _nowhere(theta: Tensor) -> Descent:
    """Room for where a descent from `theta`, (K, d), leads."""
    count, device = len(theta), theta.device
    return Descent(
        parameters=torch.empty_like(theta),
        loss=theta.new_empty(count),
        gradient_norm=theta.new_empty(count),
        steps=torch.zeros(count, dtype=torch.int64, device=device),
        reached=torch.zeros(count, dtype=torch.bool, device=device),
    )


class _Moving:
    """Networks on their way, and those that wait for a place among them.

    Args:
        theta: Starts, (K, d).
        places: The most networks on their way.
    """

    def __init__(self, theta: Tensor, places: int) -> None:
        self._starts, self._places = theta, places
        self._begun = 0
        self.which = torch.arange(0, device=theta.device)  # rows of theta, (k,)
        self.points = theta[:0]  # (k, d)
        self.steps = torch.zeros_like(self.which)  # taken, (k,)

    @property
    def ended(self) -> int:
        """The number of networks that are no longer on their way."""
        return self._begun - len(self.which)

    def fill(self) -> bool:
        """Give free places to networks that wait; whether any is on its way then."""
        free = min(self._places - len(self.which), len(self._starts) - self._begun)
        if free:
            new = torch.arange(self._begun, self._begun + free, device=self.which.device)
            self.which = torch.cat([self.which, new])
            self.points = torch.cat([self.points, self._starts[new]])
            self.steps = torch.cat([self.steps, torch.zeros_like(new)])
            self._begun += free
        return len(self.which) > 0

    def keep(self, chosen: Tensor) -> None:
        """Take all but the chosen ones, a mask (k,), out."""
        self.which, self.points = self.which[chosen], self.points[chosen]
        self.steps = self.steps[chosen]

    def step(self, displacement: Tensor) -> None:
        """Move by (k, d)."""
        self.points, self.steps = self.points + displacement, self.steps + 1


def on_sphere(
    indices: Sequence[int], size: int, radius: float, seed: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Points drawn uniformly from a sphere about the origin (Muller 1959: normalised Gaussians).

    Args:
        indices: Which points; a point depends on its index and the seed alone.
        size: d.
        radius: Of the sphere.
        seed: Which sequence of points.
        dtype: Of the result.

    Returns:
        (K, d).
    """
    drawn = np.empty((len(indices), size))
    for row, index in zip(drawn, indices, strict=True):
        np.random.default_rng((seed, index)).standard_normal(out=row)
    drawn *= radius / np.linalg.norm(drawn, axis=1, keepdims=True)
    return torch.from_numpy(drawn).to(dtype)


def _all_names(model: nn.Module, parameters: Parameters) -> dict[str, int]:
    """Each name by which a module holds a parameter in use, and the number of the parameter."""
    numbers = {id(tensor): number for number, tensor in enumerate(parameters.tensors)}
    return {
        name: numbers[id(tensor)]
        for prefix, module in model.named_modules()
        for name, tensor in module.named_parameters(prefix, recurse=False, remove_duplicate=False)
        if id(tensor) in numbers
    }


class _Chain:
    """Linear and pointwise layers one after another, each for all networks at once.

    Samples come last, (K, width, N), so that loops run along them: where layers have a few units
    this is two to three times as fast as what vmap makes of the model, whose loops run along units.
    """

    def __init__(self, layers: Sequence[tuple[str, nn.Module]]) -> None:
        self._layers = layers

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str]) -> _Chain | None:
        """The chain that a model is, if it is one with all its parameters, `names`, in use."""
        if type(model) is not nn.Sequential or not len(model) or type(model[0]) is not nn.Flatten:
            return None
        layers = [(name, layer) for name, layer in model.named_children()][1:]
        linear = [(name, layer) for name, layer in layers if type(layer) is nn.Linear]
        used = [f"{name}.{part}" for name, layer in linear for part, _ in layer.named_parameters()]
        is_plain = all(type(layer) in (nn.Linear, *_POINTWISE) for _, layer in layers)
        is_shared = len(layers) + 1 != len(model)
        return cls(layers) if is_plain and not is_shared and used == list(names) else None

    def __call__(self, pieces: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Parameters by name (K, ...), and inputs (N, ...), to outputs (K, C, N)."""
        values = inputs.flatten(1).T
        for name, layer in self._layers:
            if isinstance(layer, nn.Linear):
                values = pieces[f"{name}.weight"] @ values
                if layer.bias is not None:
                    values = values + pieces[f"{name}.bias"].unsqueeze(-1)
            else:
                values = layer(values)
        return values
