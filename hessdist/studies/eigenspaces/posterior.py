"""The posterior covariance and the range of G: section 3 of Salkey, Benton and Maddox (2019).

Laplace's covariance follows from the Gram matrix A Aᵀ of the outputs, with N G = Aᵀ A. SWAG's is
that of weights which stochastic gradient descent collects. How far a network is from its
linearisation tells the change of the tangent kernel. Each rank trains networks independently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.config.job import Job
from hessdist.curvature.output_residuals import output_residuals
from hessdist.curvature.parameters import Parameters
from hessdist.curvature.tangent_kernel import OutputJacobian, output_jacobian
from hessdist.errors import NumericalError
from hessdist.optimizers.swag import SWAG
from hessdist.optimizers.training import initialise, mean_loss, minibatches
from hessdist.parallel.memory import require_room
from hessdist.results.units import Measurements, Variable
from hessdist.studies.context import Context
from hessdist.studies.eigenspaces.settings import PosteriorSection
from hessdist.studies.networks import loss_over_job, mlp_of_widths
from hessdist.studies.tasks import distribute
from hessdist.theory.laplace import determined_parameters


@dataclass(frozen=True)
class _Kept:
    """What is kept of one network; picklable. NaN after it has diverged."""

    loss: NDArray[np.float64]  # (a,) at the iterations of the descent
    kernel_change: NDArray[np.float64]  # (a,) ‖K − K_0‖_F / ‖K_0‖_F
    eigenvalues: NDArray[np.float64]  # (N C,) of N G at the end of the descent, descending
    average_loss: float  # of SWAG's mean
    rank: float  # of G at SWAG's mean
    variance: float  # tr of the covariance of the collected weights
    deviations_share: float  # of that trace in the range of G
    diagonal_share: float  # of the trace of SWAG's diagonal part in the range of G


def posterior(context: Context, settings: PosteriorSection) -> Measurements:
    """Train networks of growing width, and compute both covariances. Collective.

    The dimensions are width, network and iteration; direction numbers the eigenvalues of N G.

    Raises:
        InputError: The model is not an mlp, its loss is not a criterion, or the Jacobians do not
            fit into memory; on every rank.
    """
    _, ranks_on_node, _ = context.ranks.node()
    with context.ranks.agreeing():
        models = [_network(context.job, settings, hidden, 0) for hidden in settings.hidden]
        sizes = [Parameters(model).layout.size for model in models]
        outputs = output_residuals(loss_over_job(context, models[0]))
        rows = context.num_samples * outputs.outputs
        _require_room(settings, rows, max(sizes), ranks_on_node)

    def measure(task: tuple[int, int]) -> _Kept:
        width, number = task
        model = _network(context.job, settings, settings.hidden[width], number)
        name = f"hidden widths {settings.hidden[width]}, network {number + 1}"
        seed = settings.seed + number
        return _Network(context, settings, model, name, rows).measure(seed)

    tasks = list(product(range(len(sizes)), range(settings.networks)))
    kept = distribute(context, tasks, measure, context.objective.device)
    bound = context.num_samples * outputs.rank
    return _measurements(settings, sizes, bound, kept)


def _network(job: Job, settings: PosteriorSection, hidden: Sequence[int], number: int) -> nn.Module:
    initialise(settings.seed + number)
    return mlp_of_widths(job, hidden, "posterior", parametrization=settings.parametrization)


def _require_room(settings: PosteriorSection, rows: int, size: int, ranks_on_node: int) -> None:
    """Refuse Jacobians of N C rows and d columns that do not fit into memory, one on each rank."""
    numbers = 4 * rows * size + 4 * rows**2 + 2 * settings.rank * size  # in memory at a time
    require_room(
        8.0 * numbers * ranks_on_node,
        f"study.posterior: Jacobians of {rows:,} outputs and {size:,} parameters, on "
        f"{ranks_on_node} ranks",
        "lower data.samples or study.posterior.hidden, or use fewer ranks a node",
    )


class _Network:
    """One network, which this rank trains and measures. Not collective."""

    def __init__(
        self, context: Context, settings: PosteriorSection, model: nn.Module, name: str, rows: int
    ) -> None:
        self._context, self._settings, self._name = context, settings, name
        self._loss = loss_over_job(context, model)
        self._rows = rows

    def measure(self, seed: int) -> _Kept:
        """Descend, collect weights, and measure; NaN from where the loss is not finite."""
        settings = self._settings
        unknown = np.full(len(settings.at), np.nan)
        losses, changes, values = unknown.copy(), unknown.copy(), np.full(self._rows, np.nan)
        ends = [float("nan")] * 5
        with suppress(NumericalError):
            values = gram_eigenvalues(self._descend(losses, changes).weighted())
            ends = self._collect(seed)
        return _Kept(losses, changes, values, *ends)

    def _descend(self, losses: NDArray[np.float64], changes: NDArray[np.float64]) -> OutputJacobian:
        """Descend by full-batch gradients, and fill in losses and changes of the kernel.

        Returns:
            The Jacobian at the last iteration.
        """
        loss, settings = self._loss, self._settings
        theta, jacobian = loss.parameters.flat().double(), output_jacobian(loss)
        first = jacobian.kernel()
        for iteration in range(settings.at[-1] + 1):
            self._context.local_progress(f"{self._name}, iteration {iteration}")
            sums = loss.loss_and_gradient()
            if iteration in settings.at:
                place = settings.at.index(iteration)
                losses[place] = sums.loss / sums.weight
                jacobian = output_jacobian(loss) if iteration else jacobian
                changes[place] = float((jacobian.kernel() - first).norm() / first.norm())
            if iteration < settings.at[-1]:
                theta = theta - settings.learning_rate * sums.gradient / sums.weight
                loss.parameters.assign(theta.to(loss.dtype))
        return jacobian

    def _collect(self, seed: int) -> list[float]:
        """Descend by minibatches and collect weights; measure at their mean."""
        loss, settings = self._loss, self._settings
        tensors, model = loss.parameters.tensors, loss.model
        swag = SWAG(tensors, settings.rank)
        optimizer = torch.optim.SGD(tensors, settings.swag_learning_rate)
        batches = minibatches(loss.shard.num_samples, settings.batch_size, seed)
        for step in range(1, settings.rank * settings.swag_every + 1):
            batch = loss.shard.fetch(next(batches).tolist())
            value = mean_loss(loss.loss, model, batch, 0.0, "a minibatch")
            if not bool(torch.isfinite(value)):
                raise NumericalError("the loss of a minibatch is not finite")
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
            if step % settings.swag_every == 0:
                self._context.local_progress(f"{self._name}, minibatch {step}")
                swag.collect()
        optimizer.zero_grad()
        loss.parameters.assign(torch.cat([mean.reshape(-1) for mean in swag.mean]))
        total, weight = loss.loss_sum()
        basis = range_basis(output_jacobian(loss).weighted(), settings.null)
        deviations = torch.stack([
            torch.cat([one.reshape(-1) for one in column]) for column in swag.deviations
        ]).double()
        variances = torch.cat([one.reshape(-1) for one in swag.variances]).double()
        return [
            total / weight,
            float(len(basis)),
            float(deviations.square().sum()) / (len(deviations) - 1),
            share_in_range(basis, deviations),
            diagonal_share_in_range(basis, variances),
        ]


# -- shares of the range ---------------------------------------------------------------------


def gram_eigenvalues(rows: Tensor) -> NDArray[np.float64]:
    """Compute the eigenvalues of A Aᵀ, (m,) descending, of A in rows, (m, d)."""
    values = torch.linalg.eigvalsh(rows @ rows.T).flip(0)
    return np.asarray(values.cpu().numpy())


def range_basis(rows: Tensor, null: float) -> Tensor:
    """Compute an orthonormal basis of the range of Aᵀ A through the Gram matrix A Aᵀ.

    Args:
        rows: A, (m, d).
        null: The share of the largest eigenvalue up to which one counts as zero.

    Returns:
        The basis in rows, (rank, d).
    """
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    seen = values > null * values[-1]
    basis: Tensor = (vectors[:, seen] / values[seen].sqrt()).T @ rows
    return basis


def share_in_range(basis: Tensor, deviations: Tensor) -> float:
    """Compute ‖Q D‖² / ‖D‖², the share of the trace of D Dᵀ in the space of a basis.

    Args:
        basis: Q, (rank, d), orthonormal rows.
        deviations: D in rows, (K, d).

    Returns:
        A share between 0 and 1.
    """
    return float((deviations @ basis.T).square().sum() / deviations.square().sum())


def diagonal_share_in_range(basis: Tensor, variances: Tensor) -> float:
    """Compute tr(Q Σ Qᵀ) / tr Σ of a diagonal covariance Σ, (d,) variances."""
    return float((basis.square() @ variances).sum() / variances.sum())


# -- what is stored --------------------------------------------------------------------------


def _measurements(
    settings: PosteriorSection,
    sizes: Sequence[int],
    bound: int,
    kept: Mapping[tuple[int, int], _Kept],
) -> Measurements:
    shape = (len(sizes), settings.networks)

    def of_networks(name: str) -> NDArray[np.float64]:
        places = product(range(shape[0]), range(shape[1]))
        values = np.array([getattr(kept[place], name) for place in places])
        return values.reshape(*shape, *values.shape[1:]).astype(np.float64)

    def number(name: str, long_name: str, *more: str) -> Variable:
        return Variable(("width", "network", *more), of_networks(name), long_name)

    names = np.array(["-".join(map(str, hidden)) for hidden in settings.hidden], dtype=object)
    eigenvalues = of_networks("eigenvalues")
    largest = eigenvalues[..., :1]
    determined = determined_parameters(eigenvalues, settings.prior_precision)
    counted = np.where(np.isfinite(largest), eigenvalues > settings.null * largest, np.nan)
    return Measurements({
        "width": Variable(("width",), names, "widths of the hidden layers"),
        "parameters": Variable(("width",), np.array(sizes), "number of parameters, d"),
        "rank_bound": Variable((), np.array(bound), "N times the rank of ∇²_z ℓ"),
        "prior_precision": Variable(
            (), np.array(settings.prior_precision), "precision of the prior"
        ),
        "iteration": Variable(("iteration",), np.array(settings.at), "steps of gradient descent"),
        "loss": number("loss", "loss; NaN: diverged", "iteration"),
        "kernel_change": number(
            "kernel_change", "change of the tangent kernel, ‖K − K₀‖_F / ‖K₀‖_F", "iteration"
        ),
        "eigenvalue": number("eigenvalues", "eigenvalues of N G, by the Gram matrix", "direction"),
        "rank": Variable(
            ("width", "network"), counted.sum(-1), "rank of G at the end of the descent"
        ),
        "determined": Variable(
            ("width", "network"), determined, "directions that the data determine, Σ κ / (κ + τ)"
        ),
        "average_loss": number("average_loss", "loss of SWAG's mean"),
        "average_rank": number("rank", "rank of G at SWAG's mean"),
        "swag_variance": number("variance", "trace of the covariance of the collected weights"),
        "swag_share": number("deviations_share", "share of that trace in the range of G"),
        "swag_diagonal_share": number(
            "diagonal_share", "share of the trace of SWAG's diagonal part in the range of G"
        ),
    })
