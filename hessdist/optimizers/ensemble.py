"""Many small networks of one architecture at once: losses, gradients, Hessians and descent.

Networks are rows of a matrix of parameters, and one call evaluates all of them on one full batch. A
row does not depend on the other rows, so that networks can be distributed over ranks.
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


@dataclass(frozen=True)
class Descent:
    """The results of gradient descent for K networks."""

    parameters: Tensor  # (K, d) at the last point
    loss: Tensor  # (K,) at the last point
    gradient_norm: Tensor  # (K,) at the last point
    steps: Tensor  # (K,) int64, steps taken
    reached: Tensor  # (K,) bool: the gradient norm is within the tolerance


class Ensemble:
    """K networks of one architecture, rows θ_k of a matrix (K, d), on one batch of N samples.

    The loss of a network is the mean over the N samples. Rows have the dtype of the model.

    Args:
        model: The architecture, in evaluation mode. Its own parameters are not used, except for
            those that do not require a gradient.
        criterion: The loss.
        inputs: The inputs, (N, ...), of the model's dtype and on its device.
        targets: The targets, (N, ...).
        chunk: The number of networks that are evaluated together; None: as many as stay in a
            processor's cache. It changes the results only by rounding.

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
        cached = 1 << 19  # numbers that stay in a processor's cache
        self.chunk = chunk if chunk is not None else max(1, cached // self._kept)

    @property
    def samples(self) -> tuple[Tensor, Tensor]:
        """The inputs, (N, ...), and the targets, (N, ...)."""
        return self._samples

    # -- evaluation --------------------------------------------------------------------------

    def losses(self, theta: Tensor) -> Tensor:
        """Compute the loss of each network, (K,), at rows (K, d)."""
        self._check(theta)
        losses = theta.new_empty(len(theta))
        with torch.no_grad():
            for part in self._parts(len(theta)):
                losses[part] = self._evaluate(theta[part], *self._samples)
        return losses

    def losses_and_gradients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of each network, (K,), and its gradient, (K, d), at rows (K, d)."""
        self._check(theta)
        losses, gradients = theta.new_empty(len(theta)), torch.empty_like(theta)
        for part in self._parts(len(theta)):
            losses[part], gradients[part] = self._differentiate(theta[part], *self._samples)
        return losses, gradients

    def hessians(self, theta: Tensor, *, numbers: int = 1 << 24) -> Tensor:
        """Compute the exact Hessian of each network's loss by differentiating twice.

        On a kink of the loss the second derivative counts as zero, as in PyTorch.

        Args:
            theta: The parameters, (K, d).
            numbers: The count of numbers that are in memory at a time. As a call costs more time
                here than memory does, it is larger than a cache.

        Returns:
            The symmetric Hessians, (K, d, d).
        """
        self._check(theta)
        d = self.layout.size
        # Second derivatives need four temporary numbers for each one that the loss keeps.
        columns = max(1, numbers // (4 * self._kept))  # of all networks, at a time
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
        """Compute H_k v of each network and each direction v, (n, d) to (K, n, d)."""
        gradient = grad(lambda rows: self._evaluate(rows, *self._samples).sum())
        # Reverse over reverse: forward over reverse is not faster, and its rule for `mse_loss`
        # warns under vmap.
        product = vjp(gradient, theta)[1]
        columns: Tensor = vmap(lambda v: product(v.expand_as(theta))[0], out_dims=1)(directions)
        return columns

    def _differentiate(
        self, theta: Tensor, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the loss of each network and its gradient, (K,) and (K, d)."""
        theta = theta.detach().requires_grad_()
        with exact_derivatives():
            losses = self._evaluate(theta, inputs, targets)
        # A network's loss depends only on its own row.
        (gradients,) = torch.autograd.grad(losses.sum(), theta)
        return losses.detach(), gradients

    def _evaluate(self, theta: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each network, (K,), with its graph."""
        if self._chain is None:
            return vmap(lambda row: self._loss_of_one(row, inputs, targets))(theta)
        outputs = self._chain(self._pieces(theta), inputs)
        count, weight = len(targets), self._criterion.weight(targets)
        plain = self._criterion.name == "cross_entropy" and self._criterion.is_plain
        if plain and targets.ndim == 1 and not targets.is_floating_point():
            # It takes the classes before the samples; other criteria need the transpose.
            each = nn.functional.cross_entropy(
                outputs, targets.expand(len(theta), count), reduction="none"
            )
            return each.mean(1)
        return vmap(lambda z: self._criterion.total(z.T, targets) / weight)(outputs)

    def _loss_of_one(self, row: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        pieces = self.layout.split(row)
        named = {name: pieces[number] for name, number in self._names.items()}
        # Otherwise a module that is used twice would keep the last row.
        outputs = functional_call(self._model, named, (inputs,), tie_weights=False)
        return self._criterion.total(outputs, targets) / self._criterion.weight(targets)

    def _pieces(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name, (K, ...)."""
        layout = self.layout
        sizes = [
            end - begin for begin, end in zip(layout.offsets, layout.offsets[1:], strict=False)
        ]
        pieces = zip(layout.names, torch.split(theta, sizes, dim=1), layout.shapes, strict=True)
        return {name: piece.view(-1, *shape) for name, piece, shape in pieces}

    def _numbers_kept(self, theta: Tensor) -> int:
        """Count the numbers that the loss of one network keeps for its gradient."""
        kept = [theta.numel()]

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self._evaluate(theta.requires_grad_(), *self._samples)
        return sum(kept)

    def _parts(self, count: int, size: int | None = None) -> Iterator[slice]:
        """Iterate over ranges of `count` networks."""
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
        """Run full-batch gradient descent with a constant step, from each row.

        A network ends at the first point, including its start, at which its gradient norm is within
        the tolerance, its loss or its gradient is not finite, or `max_steps` steps are taken. Then
        the next network takes its place, so that slow networks do not hold up the others.

        Args:
            theta: The starts, (K, d).
            learning_rate: The learning rate η of θ ← θ − η ∇L(θ).
            tolerance: The tolerance of the norm of ∇L.
            max_steps: The maximum number of steps of a network.
            on_step: Called after every step of the active networks, with the number of networks
                that have ended. An exception in it ends the descent.

        Returns:
            The last point of each network, whether or not it has reached the tolerance.
        """
        self._check(theta)
        ends = _empty_descent(theta)
        moving = _Active(theta, self.chunk)
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
        """Run stochastic gradient descent with a constant step for one network.

        Args:
            theta: The start, (d,).
            batch_size: The samples of a minibatch; None: all, which is gradient descent.
            learning_rate: The learning rate.
            steps: The number of steps.
            every: The number of steps between two points of the path.
            seed: The seed of the minibatches.

        Returns:
            The parameters at the start and after every `every` steps, (steps // every + 1, d).

        Raises:
            NumericalError: The parameters become infinite or NaN.
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


def _empty_descent(theta: Tensor) -> Descent:
    """Allocate the results of a descent from `theta`, (K, d)."""
    count, device = len(theta), theta.device
    return Descent(
        parameters=torch.empty_like(theta),
        loss=theta.new_empty(count),
        gradient_norm=theta.new_empty(count),
        steps=torch.zeros(count, dtype=torch.int64, device=device),
        reached=torch.zeros(count, dtype=torch.bool, device=device),
    )


class _Active:
    """The active networks, and the starts that wait for a free place.

    Args:
        theta: The starts, (K, d).
        places: The maximum number of active networks.
    """

    def __init__(self, theta: Tensor, places: int) -> None:
        self._starts, self._places = theta, places
        self._begun = 0
        self.which = torch.arange(0, device=theta.device)  # rows of theta, (k,)
        self.points = theta[:0]  # (k, d)
        self.steps = torch.zeros_like(self.which)  # taken, (k,)

    @property
    def ended(self) -> int:
        """The number of networks that have ended."""
        return self._begun - len(self.which)

    def fill(self) -> bool:
        """Start networks in free places; return True if any network is active."""
        free = min(self._places - len(self.which), len(self._starts) - self._begun)
        if free:
            new = torch.arange(self._begun, self._begun + free, device=self.which.device)
            self.which = torch.cat([self.which, new])
            self.points = torch.cat([self.points, self._starts[new]])
            self.steps = torch.cat([self.steps, torch.zeros_like(new)])
            self._begun += free
        return len(self.which) > 0

    def keep(self, chosen: Tensor) -> None:
        """Remove all networks except those of a mask, (k,)."""
        self.which, self.points = self.which[chosen], self.points[chosen]
        self.steps = self.steps[chosen]

    def step(self, displacement: Tensor) -> None:
        """Move the networks by (k, d)."""
        self.points, self.steps = self.points + displacement, self.steps + 1


def on_sphere(
    indices: Sequence[int], size: int, radius: float, seed: int, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Draw points uniformly from a sphere around the origin (Muller 1959: normalised Gaussians).

    Args:
        indices: The indices of the points. A point depends only on its index and the seed.
        size: The dimension d.
        radius: The radius of the sphere.
        seed: The seed of the sequence of points.
        dtype: The dtype of the result.

    Returns:
        The points, (K, d).
    """
    drawn = np.empty((len(indices), size))
    for row, index in zip(drawn, indices, strict=True):
        np.random.default_rng((seed, index)).standard_normal(out=row)
    drawn *= radius / np.linalg.norm(drawn, axis=1, keepdims=True)
    return torch.from_numpy(drawn).to(dtype)


def _all_names(model: nn.Module, parameters: Parameters) -> dict[str, int]:
    """Map each name of a parameter in use, of which it may have several, to its number."""
    numbers = {id(tensor): number for number, tensor in enumerate(parameters.tensors)}
    return {
        name: numbers[id(tensor)]
        for prefix, module in model.named_modules()
        for name, tensor in module.named_parameters(prefix, recurse=False, remove_duplicate=False)
        if id(tensor) in numbers
    }


class _Chain:
    """Linear and pointwise layers in sequence, each evaluated for all networks at once.

    Samples come last, (K, width, N), so that loops run along them. For layers with a few units this
    is two to three times as fast as vmap of the model, whose loops run along units.
    """

    def __init__(self, layers: Sequence[tuple[str, nn.Module]]) -> None:
        self._layers = layers

    @classmethod
    def of(cls, model: nn.Module, names: Sequence[str]) -> _Chain | None:
        """Return the chain that a model is, with all its parameters, `names`, in use; else None."""
        if type(model) is not nn.Sequential or not len(model) or type(model[0]) is not nn.Flatten:
            return None
        layers = [(name, layer) for name, layer in model.named_children()][1:]
        linear = [(name, layer) for name, layer in layers if type(layer) is nn.Linear]
        used = [f"{name}.{part}" for name, layer in linear for part, _ in layer.named_parameters()]
        pointwise = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Softplus, nn.Identity)
        is_plain = all(type(layer) in (nn.Linear, *pointwise) for _, layer in layers)
        is_shared = len(layers) + 1 != len(model)
        return cls(layers) if is_plain and not is_shared and used == list(names) else None

    def __call__(self, pieces: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Map parameters by name, (K, ...), and inputs, (N, ...), to outputs, (K, C, N)."""
        values = inputs.flatten(1).T
        for name, layer in self._layers:
            if isinstance(layer, nn.Linear):
                values = pieces[f"{name}.weight"] @ values
                if layer.bias is not None:
                    values = values + pieces[f"{name}.bias"].unsqueeze(-1)
            else:
                values = layer(values)
        return values
