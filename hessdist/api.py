"""The Python interface: eigenpairs of a model in memory, on one rank or on all ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hessdist.curvature.precision import Precision
from hessdist.errors import WorkloadError
from hessdist.objective import Compute, Objective, Operator
from hessdist.parallel.host import prepared_process
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.dense import ExactSpectrum, plan
from hessdist.spectrum.dense import exact_spectrum as solve_densely
from hessdist.spectrum.densities import SpectralDensity
from hessdist.spectrum.eigenpairs import full_vectors
from hessdist.spectrum.extreme import extreme_eigenpairs as solve
from hessdist.spectrum.lanczos import lanczos_quadrature
from hessdist.spectrum.memory_plan import ResidualsWanted, reserved_bytes
from hessdist.spectrum.shell import curvature_matrix
from hessdist.workload.datasets import choose_samples, count_samples, require_map_style
from hessdist.workload.preparation import borrowed, check_model, unwrapped

if TYPE_CHECKING:
    from mpi4py import MPI

    from hessdist.workload.collate import Collate
    from hessdist.workload.datasets import MapDataset
    from hessdist.workload.losses import AnyLoss

_log = logging.getLogger("hessdist")


@dataclass(frozen=True)
class Spectrum:
    """The extreme eigenpairs of a model's Hessian, whole on every rank."""

    eigenvalues_largest: NDArray[np.float64]  # (k,) descending
    eigenvectors_largest: NDArray[Any] | None  # (k, d), the model's dtype, unit norm
    residuals_largest: NDArray[np.float64]  # (k,) ‖Hv − λv‖ / |λ|
    converged_largest: NDArray[np.bool_]  # (k,)
    eigenvalues_smallest: NDArray[np.float64]  # (m,) ascending
    eigenvectors_smallest: NDArray[Any] | None  # (m, d)
    residuals_smallest: NDArray[np.float64]  # (m,)
    converged_smallest: NDArray[np.bool_]  # (m,)
    loss: float  # mean over all samples
    num_samples: int  # N
    weight: float  # divisor of the sum of the losses: N, labels that count, or class weights
    gradient_norm: float  # Euclidean
    products: int  # matrix-vector products that the solve made
    seconds: float  # wall time of the solve
    outcome: str  # why the solve ended, and the remedy
    parameter_names: tuple[str, ...]  # in the order of the flat vector
    parameter_shapes: tuple[tuple[int, ...], ...]  # in the same order
    product_error: float = 0.0  # relative, of products by finite differences
    reduced_products: int = 0  # those of the products that were made in reduced precision
    reduced_error: float = 0.0  # their measured relative error

    @property
    def converged(self) -> bool:
        """True if every pair converged."""
        return bool(self.converged_largest.all() and self.converged_smallest.all())


def extreme_eigenpairs(
    model: nn.Module,
    loss: AnyLoss,
    dataset: MapDataset,
    *,
    largest: int = 20,
    smallest: int = 3,
    tolerance: float = 1e-3,
    operator: Operator = "hessian",
    layers: Sequence[str] = (),
    l2: float = 0.0,
    eigenvectors: bool = True,
    seed: int = 0,
    batch_size: int = 256,
    batch_tokens: int | None = 8192,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    cache_gib: float = 4.0,
    data_gib: float = 8.0,
    memory_gib: float | None = None,
    workers: int = 0,
    shards: int = 1,
    product: Literal["exact", "finite_difference"] = "exact",
    recompute: Literal["none", "block"] | Sequence[str] = "none",
    precision: Precision = "float32",
    residuals: ResidualsWanted = "auto",
    collate: Collate | None = None,
    comm: MPI.Comm | None = None,
) -> Spectrum:
    """Compute LA(k) and SA(m) of a curvature matrix over a whole data set. Collective.

    Every rank calls it with the same arguments, and rank p differentiates the p-th part of the
    samples. The model is copied, and the copy is evaluated in `eval()` mode.

    Args:
        model: A module with float32 or float64 parameters. Parameters that do not require a
            gradient are constants.
        loss: A criterion of (outputs, targets) that sums or averages over samples; a callable whose
            first parameter is called `model`, of (model, batch), that returns the loss summed over
            the batch and the batch's weight: the number of samples, of tokens that count, or the
            sum of class weights; or an object with `outputs(model, batch)` that returns z and
            `of_outputs(z, batch)` that returns the same pair.
        dataset: A map-style data set: `len(dataset)`, `dataset[i]`.
        largest: The number k of algebraically largest eigenpairs.
        smallest: The number m of algebraically smallest eigenpairs.
        tolerance: The relative residual ‖Hv − λv‖ / |λ| of a converged pair.
        operator: The matrix; "residual" is the Hessian minus the Gauss-Newton matrix.
        layers: The names of parameters or modules, or patterns such as "transformer.h.*.attn", for
            the spectrum of this block; empty: all.
        l2: The factor of the penalty (l2 / 2) ‖θ‖², which is added to the loss.
        eigenvectors: True if vectors are gathered, whole on every rank.
        seed: The seed of the starting vector.
        batch_size: The samples that are evaluated together; it does not change the result.
        batch_tokens: The tokens that are evaluated together, if the data set has `lengths`, the
            number of tokens of each sample. Then it limits a batch as well.
        device: The device; "auto" is the GPU of the rank's node-local index, if there is one.
        cache_gib: The budget of a rank for kept graphs, in GiB.
        data_gib: The budget of a rank for its samples, in GiB; a larger shard is streamed.
        memory_gib: What a rank may take in all, in GiB; None: its share of what its node has free.
        workers: The processes of a rank that read a streamed shard in advance, if the data set can
            be sent to them.
        shards: The number of ranks that hold one copy of the parameters between them. It divides
            the number of ranks.
        product: "finite_difference" multiplies the Hessian by central differences of the gradient,
            with the memory of one gradient. Its error is measured first.
        recompute: "block" computes the activations of repeated blocks again when they are needed;
            a list of patterns names modules. It does not change the result.
        precision: "tf32" or "bfloat16" makes the first products of the solve with faster matrix
            kernels. The pairs are corrected in float32, so that values and residuals are those of
            the float32 matrix.
        residuals: "recorded" keeps products (memory), "recomputed" makes k + m more (time), and
            "sketched" keeps sketches, from which residuals are known to one percent. "auto" records
            up to 256 MiB, and sketches beyond.
        collate: Makes a batch of a list of samples, for example with padding; None: samples are
            stacked.
        comm: The communicator; None: `MPI.COMM_WORLD`.

    Returns:
        The eigenpairs, the same on every rank; pairs that did not converge are marked.

    Raises:
        InputError: The arguments do not fit together.
        NumericalError: A loss or a gradient is not finite, or products by differences are too
            inaccurate.
        DependencyError: mpi4py, petsc4py or slepc4py is missing or cannot be used.
    """
    compute = {
        "device": device,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "cache_gib": cache_gib,
        "data_gib": data_gib,
        "memory_gib": memory_gib,
        "workers": workers,
        "shards": shards,
        "product": product,
        "recompute": recompute,
        "precision": precision,
    }
    settings = {
        "largest": largest,
        "smallest": smallest,
        "tolerance": tolerance,
        "operator": operator,
        "seed": seed,
        "residuals": residuals,
        "eigenvectors": eigenvectors,
    }
    with borrowed_objective(
        comm, model, loss, dataset, compute, l2, layers, collate, **settings
    ) as objective:
        ranks, here = objective.ranks, objective.evaluate()
        reserved = reserved_bytes(objective, largest + smallest)
        shell = curvature_matrix(objective, operator, here.weight, reserved=reserved)
        pairs = solve(shell, largest, smallest, tolerance=tolerance, seed=seed, residuals=residuals)
        if not pairs.converged and ranks.is_root:
            _log.warning("not all eigenpairs converged: %s", pairs.outcome.value)

        ends: dict[str, Any] = {}
        for name, end in (("largest", pairs.largest), ("smallest", pairs.smallest)):
            ends[f"eigenvalues_{name}"] = end.values
            ends[f"residuals_{name}"] = end.residuals
            ends[f"converged_{name}"] = end.converged
            ends[f"eigenvectors_{name}"] = (
                full_vectors(ranks, end.vectors, shell.size, objective.compute.dtype)
                if eigenvectors
                else None
            )
        return Spectrum(
            **ends,
            loss=here.loss,
            num_samples=here.num_samples,
            weight=here.weight,
            gradient_norm=here.gradient_norm,
            products=pairs.products,
            seconds=pairs.seconds,
            outcome=pairs.outcome.value,
            parameter_names=objective.layout.names,
            parameter_shapes=objective.layout.shapes,
            product_error=pairs.product_error,
            reduced_products=pairs.reduced_products,
            reduced_error=pairs.reduced_error,
        )


def exact_spectrum(
    model: nn.Module,
    loss: AnyLoss,
    dataset: MapDataset,
    *,
    operator: Operator = "hessian",
    layers: Sequence[str] = (),
    l2: float = 0.0,
    eigenvectors: bool = False,
    batch_size: int = 256,
    batch_tokens: int | None = 8192,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    product: Literal["exact", "finite_difference"] = "exact",
    collate: Collate | None = None,
    comm: MPI.Comm | None = None,
) -> ExactSpectrum:
    """Compute all eigenvalues of a curvature matrix, for models of up to some 20,000 parameters.

    Collective. The arguments that `extreme_eigenpairs` has as well are the same.

    Args:
        model: The model.
        loss: The loss.
        dataset: The samples.
        operator: The matrix.
        layers: The names of parameters or modules; empty: all.
        l2: The factor of the penalty.
        eigenvectors: True if eigenvectors are computed, on each rank its entries of them.
        batch_size: The samples that are evaluated together.
        batch_tokens: The tokens that are evaluated together.
        device: The device.
        product: "finite_difference" multiplies the Hessian by central differences of the gradient.
        collate: Makes a batch of a list of samples.
        comm: The communicator.

    Returns:
        The ascending `values`, (d,), the same on every rank, and `vectors`, (d, d_local), by row.

    Raises:
        InputError: The arguments do not fit together, or the dense matrix does not fit into memory.
        NumericalError: A loss or a gradient is not finite, or products by differences are too
            inaccurate.
        DependencyError: mpi4py, petsc4py or slepc4py is missing or cannot be used.
    """
    compute = {
        "device": device,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "product": product,
    }
    settings = {"operator": operator, "eigenvectors": eigenvectors}
    with borrowed_objective(
        comm, model, loss, dataset, compute, l2, layers, collate, **settings
    ) as objective:
        shell = curvature_matrix(objective, operator, objective.evaluate().weight)
        return solve_densely(shell, plan(shell, eigenvectors=eigenvectors))


def spectral_density(
    model: nn.Module,
    loss: AnyLoss,
    dataset: MapDataset,
    *,
    probes: int = 10,
    steps: int = 100,
    operator: Operator = "hessian",
    layers: Sequence[str] = (),
    l2: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
    batch_tokens: int | None = 8192,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    product: Literal["exact", "finite_difference"] = "exact",
    collate: Collate | None = None,
    comm: MPI.Comm | None = None,
) -> SpectralDensity:
    """Estimate the density of all eigenvalues by stochastic Lanczos quadrature. Collective.

    The arguments that `extreme_eigenpairs` has as well are the same.

    Args:
        model: The model.
        loss: The loss.
        dataset: The samples.
        probes: The number of random vectors, over which error bars are computed.
        steps: The number of products for each of them.
        operator: The matrix.
        layers: The names of parameters or modules; empty: all.
        l2: The factor of the penalty.
        seed: The seed of the random vectors.
        batch_size: The samples that are evaluated together.
        batch_tokens: The tokens that are evaluated together.
        device: The device.
        product: "finite_difference" multiplies the Hessian by central differences of the gradient.
        collate: Makes a batch of a list of samples.
        comm: The communicator.

    Returns:
        The nodes and weights, the same on every rank, with methods for traces, norms, counts and
        smoothed densities.

    Raises:
        InputError: The arguments do not fit together, or there are no probes.
        NumericalError: A loss or a gradient is not finite, or products by differences are too
            inaccurate.
        DependencyError: mpi4py is missing or cannot be used.
    """
    compute = {
        "device": device,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "product": product,
    }
    settings = {"operator": operator, "probes": probes, "steps": steps, "seed": seed}
    with borrowed_objective(
        comm, model, loss, dataset, compute, l2, layers, collate, **settings
    ) as objective:
        shell = curvature_matrix(objective, operator, objective.evaluate().weight)
        return lanczos_quadrature(shell, probes=probes, steps=steps, seed=seed)


@contextmanager
def borrowed_objective(
    comm: MPI.Comm | None,
    model: nn.Module,
    loss: AnyLoss,
    dataset: MapDataset,
    compute: dict[str, Any],
    l2: float,
    layers: Sequence[str],
    collate: Collate | None,
    **settings: Any,
) -> Iterator[Objective]:
    """Make the loss of a copy of the model over all samples, the same on every rank. Collective.

    Args:
        comm: The communicator; None: `MPI.COMM_WORLD`.
        model: The model.
        loss: The loss, as `extreme_eigenpairs` takes it.
        dataset: The samples.
        compute: Fields of `Compute`, without the dtype, which is the model's.
        l2: The factor of the penalty.
        layers: The names of parameters or modules; empty: all.
        collate: Makes a batch of a list of samples.
        settings: Whatever else has to be the same on every rank.

    Yields:
        The training loss, at the parameters that the model has on rank 0.

    Raises:
        InputError: The arguments do not fit together, or differ between ranks.
        DependencyError: mpi4py is missing or cannot be used.
    """
    ranks = Ranks(comm)
    with ranks.agreeing():
        require_map_style(dataset)
        indices = choose_samples(count_samples(dataset), None, None, "first", 0)
        check_model(model)
        section = Compute(dtype=_dtype_of(model), **compute)
    given = ", ".join(sorted(settings))
    ranks.require_same(given, sorted(settings.items()), "call it with the same on every rank")
    with prepared_process(ranks, section.device), borrowed(unwrapped(model)) as mine:
        objective = Objective(
            ranks,
            mine,
            loss,
            dataset,
            indices,
            compute=section,
            l2=l2,
            layers=layers,
            collate=collate,
        )
        objective.share_parameters()
        yield objective


def _dtype_of(model: nn.Module) -> Literal["float32", "float64"]:
    found = {parameter.dtype for parameter in model.parameters() if not parameter.is_complex()}
    if found == {torch.float32}:
        return "float32"
    if found == {torch.float64}:
        return "float64"
    listed = ", ".join(sorted(str(dtype) for dtype in found)) or "none"
    raise WorkloadError(
        f"the model's parameters are of dtype {listed}", "call model.float() or model.double()"
    )
