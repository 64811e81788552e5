"""From a model and a data set to quantities of the whole training set, over ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hessdist.curvature.additivity import prove_additive
from hessdist.curvature.determinism import refuse_random
from hessdist.curvature.local_loss import LocalLoss
from hessdist.curvature.parameters import ParameterLayout, Parameters
from hessdist.curvature.products import LocalProduct
from hessdist.curvature.second_derivative import prove_product
from hessdist.errors import DataError, WorkloadError
from hessdist.parallel.ranks import Ranks, choose_device
from hessdist.workload.checkpoints import state_digest
from hessdist.workload.collate import Collate
from hessdist.workload.datasets import MapDataset, count_samples, expecting_samples
from hessdist.workload.losses import AnyLoss, as_summed_loss
from hessdist.workload.nestings import Batch
from hessdist.workload.preparation import check_model, converted
from hessdist.workload.sample_digests import (
    Digests,
    probe_positions,
    require_repeatable,
    require_same_lengths,
    require_same_samples,
)
from hessdist.workload.shard import Shard

Operator = Literal["hessian", "gauss_newton", "empirical_fisher", "residual"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
_PROBED = 8  # samples that all ranks evaluate
_LOOKS = 20  # by threes, for one that has a loss


@dataclass(frozen=True)
class Compute:
    """How products are computed; none of it changes the numbers beyond rounding.

    Raises:
        WorkloadError: A value is out of its range.
    """

    device: str = "auto"  # or "cpu", "cuda"; "auto" is the GPU of the node-local index, if any
    dtype: str = "float32"  # or "float64"; of parameters, activations and products
    batch_size: int = 256  # samples of one pass
    cache_gib: float = 4.0  # budget of a rank for kept graphs, in GiB
    data_gib: float = 8.0  # budget of a rank for its samples, in GiB
    workers: int = 2  # processes of a rank that read a larger shard ahead

    def __post_init__(self) -> None:
        allowed = {"device": ("auto", "cpu", "cuda"), "dtype": tuple(DTYPES)}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise WorkloadError(
                    f"{name} is {getattr(self, name)!r}", f"use one of {', '.join(values)}"
                )
        for name, least in (("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
                raise WorkloadError(f"{name} is {value!r}", f"give a whole number, {least} or more")
        for name in ("cache_gib", "data_gib"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not float(value) >= 0:
                raise WorkloadError(f"{name} is {value!r}", "give a number, 0 or more")


@dataclass(frozen=True)
class Evaluation:
    """Loss and gradient over all samples."""

    loss: float  # mean over all samples, the l2 term included
    num_samples: int  # N
    weight: float  # Σ w, what the sum of the losses is divided by
    gradient: NDArray[np.float64]  # (d_local,) this rank's entries
    gradient_norm: float  # Euclidean, over all parameters in use


@dataclass(frozen=True)
class Workload:
    """What is differentiated, as it is before anything is moved to a device."""

    model: nn.Module
    loss: AnyLoss
    dataset: MapDataset
    indices: NDArray[np.int64]  # (N,) samples in use
    collate: Collate | None = None  # makes a batch of a list of samples; None: they are stacked
    compute: Compute = field(default_factory=Compute)
    l2: float = 0.0  # adds (l2 / 2) ‖θ‖²
    layers: Sequence[str] = ()  # names of parameters or modules in use; empty: all

    def on(self, ranks: Ranks, indices: NDArray[np.int64] | None = None) -> Objective:
        """Spread it over ranks. Collective.

        Args:
            ranks: The ranks.
            indices: Samples in use instead of the workload's, (n,).

        Returns:
            The loss over all ranks.

        Raises:
            InputError: The model, loss and data do not fit together; on every rank.
        """
        return Objective(
            ranks,
            self.model,
            self.loss,
            self.dataset,
            self.indices if indices is None else indices,
            compute=self.compute,
            l2=self.l2,
            layers=self.layers,
            collate=self.collate,
        )


@dataclass
class _Proofs:
    """What has been proven of a loss, shared with its parts."""

    additive: bool = False
    products: set[tuple[str, tuple[str, ...]]] = field(default_factory=set)  # at the present θ


def _together_or_alone(shard: Shard, positions: list[int]) -> list[Batch]:
    """Samples as one batch, or one by one where they are of shapes that only neighbours share."""
    try:
        return [shard.fetch(positions)]
    except DataError:
        return [shard.fetch([position]) for position in positions]


def _structure(model: nn.Module) -> list[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and dtypes of a model's parameters and buffers."""
    named = chain(model.named_parameters(), model.named_buffers())
    return [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in named]


class Objective:
    """L(θ) over the samples of all ranks, and its curvature matrices. Making it is collective.

    Args:
        ranks: The ranks.
        model: The model; it is moved to the device and dtype, and put into evaluation mode.
        loss: In any of its forms (`workload/losses.py`).
        dataset: The whole data set, the same on every rank.
        indices: Samples in use, (N,) int64.
        compute: Device, dtype, batch size, budgets.
        l2: Adds (l2 / 2) ‖θ‖².
        layers: Names of parameters or modules in use; empty: all.
        collate: Makes a batch of a list of samples; None: they are stacked.

    Raises:
        InputError: The model, loss and data do not fit together; on every rank.
    """

    def __init__(
        self,
        ranks: Ranks,
        model: nn.Module,
        loss: AnyLoss,
        dataset: MapDataset,
        indices: NDArray[np.int64],
        *,
        compute: Compute,
        l2: float = 0.0,
        layers: Sequence[str] = (),
        collate: Collate | None = None,
    ) -> None:
        self.ranks, self.compute, self.l2 = ranks, compute, l2
        self.sample_digests = agreed_samples(ranks, dataset, indices)
        node_index, _, _ = ranks.node()
        with ranks.agreeing():
            self.device = choose_device(compute.device, node_index)
            dtype = DTYPES[compute.dtype]
            check_model(model)
            self.model = converted(model, self.device, dtype).eval()

            def shard(chosen: NDArray[np.int64], memory: float) -> Shard:
                return Shard(
                    dataset,
                    chosen,
                    batch_size=compute.batch_size,
                    device=self.device,
                    dtype=dtype,
                    memory=memory,
                    workers=compute.workers,
                    collate=collate,
                    quiet=not ranks.is_root,
                )

            begin, end = ranks.shard(len(indices))
            first = _first_samples(shard(indices[:3], memory=0))
            with expecting_samples(dataset):
                others = _others(shard(indices, memory=0))
                summed = as_summed_loss(loss, self.model, first, others)
            parameters = Parameters(self.model, layers)
            mine = shard(indices[begin:end], compute.data_gib * 2**30)
            self.local = LocalLoss(self.model, summed, mine, parameters, ranks.rank)
            probed = probe_positions(len(indices), seed=1, most=_PROBED)
            self._probe = shard(indices[probed], memory=0)
        self._weight: float | None = None
        self._proofs = _Proofs()
        ranks.require_same(
            "model (names, shapes and kinds of its tensors)",
            _structure(self.model),
            "build the same network on every rank",
        )
        settings = (compute.batch_size, compute.dtype, l2, tuple(layers))
        ranks.require_same("batch size, dtype, l2 or layers", settings, "give all ranks the same")

    @property
    def layout(self) -> ParameterLayout:
        """Where the parameters in use lie in the flat vector."""
        return self.local.parameters.layout

    def load(self, read: Callable[[nn.Module], None]) -> str:
        """Set the parameters and buffers: rank 0 reads them, the others receive them. Collective.

        Args:
            read: Fills the model; called on rank 0 alone.

        Returns:
            A digest of all the tensors, the same on every rank.

        Raises:
            CheckpointError: What `read` raises, on every rank.
        """
        with self.ranks.agreeing():
            if self.ranks.is_root:
                read(self.model)
        self.share_parameters()
        return self.digest()

    def share_parameters(self, root: int = 0) -> None:
        """Give every rank the parameters and buffers that one rank's model has. Collective.

        Buffers that are not part of the state dict are among them.
        """
        for tensor in chain(self.model.parameters(), self.model.buffers()):
            # As bytes: NumPy has no bfloat16, and does not keep 0 dimensions everywhere.
            host = tensor.detach().cpu().contiguous()
            self.ranks.broadcast_array(host.reshape(-1).view(torch.uint8).numpy(), root)
            if self.ranks.rank != root:
                tensor.data.copy_(host)
        self._proofs.products.clear()

    def digest(self) -> str:
        """A hash of this rank's parameters and buffers, with their names. Not collective."""
        return state_digest(self.model.state_dict())

    def evaluate(self) -> Evaluation:
        """Loss and gradient in one pass over the samples. Collective.

        Returns:
            Both, over all samples.

        Raises:
            InputError: A workload that is not deterministic, labels out of range; on every rank.
            NumericalError: A value is not finite; the rank and batch are named; on every rank.
        """
        self._prove_additive()
        with self.ranks.agreeing():
            sums = self.local.loss_and_gradient()
        mine = [sums.loss, sums.weight, float(self.local.shard.num_samples)]
        loss, weight, count = self.ranks.sum(np.array(mine))
        self._weight = self._positive(weight)
        begin, end = self.ranks.shard(self.layout.size)
        gradient = np.empty(end - begin)
        self.ranks.reduce_scatter(sums.gradient.cpu().numpy(), gradient)
        gradient /= weight
        gradient += self.l2 * self.local.parameters.flat()[begin:end].cpu().numpy()
        (square,) = self.ranks.sum(np.array([gradient @ gradient]))
        penalty = self.l2 / 2 * float(self.square_norm())
        norm = float(np.sqrt(square))
        return Evaluation(loss / weight + penalty, int(count), float(weight), gradient, norm)

    def weight(self) -> float:
        """Σ w over all samples: N, labels that count, or class weights. Collective.

        Returns:
            The same on every rank.

        Raises:
            InputError: The loss cannot be evaluated; on every rank.
        """
        if self._weight is None:
            with self.ranks.agreeing():
                mine = self.local.weight_sum()
            (objective,) = self.ranks.sum(np.array([mine]))
            self._weight = self._positive(objective)
        return self._weight

    @staticmethod
    def _positive(weight: float) -> float:
        if not weight > 0:
            raise DataError(
                "no label of any sample counts in the loss",
                "check the data set and the loss's ignore_index",
            ).on_all_ranks()
        return float(weight)

    def _prove_additive(self) -> None:
        """Refuse a loss that is no sum over samples, or not the same on all ranks. Collective."""
        with self.ranks.agreeing():
            refuse_random(self.local)
            if not self._proofs.additive:
                self._proofs.additive = prove_additive(self.local, self._probe, self.ranks.rank)
            mine = self._probed()
        close = 1e-3 if self.local.dtype == torch.float32 else 1e-6
        everyone = self.ranks.collect(mine)
        for rank, values in enumerate(everyone):
            if not np.allclose(values, everyone[0], rtol=close, atol=close, equal_nan=True):
                raise WorkloadError(
                    f"rank {rank} has another loss than rank 0 for the same samples and parameters "
                    f"({values[0]:.6g} and {everyone[0][0]:.6g})",
                    "draw constants of the model and the loss with a fixed seed, or register them "
                    "as buffers, and read the same files on every rank",
                ).on_all_ranks()

    def _probed(self) -> tuple[float, float]:
        """Loss and weight of a few samples, the same ones on every rank."""
        everything = range(self._probe.num_samples)
        value, weight = 0.0, 0.0
        for begin in everything[:: self.compute.batch_size]:
            positions = list(everything[begin : begin + self.compute.batch_size])
            for batch in _together_or_alone(self._probe, positions):
                here = self.local.plain(batch, self.local.called("some samples"))
                value, weight = value + here[0], weight + here[1]
        return value, weight

    def square_norm(self) -> Tensor:
        """‖θ‖² of all trainable parameters, in use or not, float64. Not collective."""
        trainable = [p.detach() for p in self.model.parameters() if p.requires_grad]
        return torch.stack([p.double().square().sum() for p in trainable]).sum()

    def is_streamed(self) -> bool:
        """Whether any rank reads its samples anew at every pass. Collective."""
        shard = self.local.shard
        return self.ranks.any(bool(shard.num_samples) and shard.is_streamed)

    def of_layers(self, layers: Sequence[str]) -> Objective:
        """The same loss as a function of some parameters alone, on the same samples in memory.

        Collective.

        Args:
            layers: Names of parameters or modules in use; empty: all.

        Returns:
            It shares the model with this one.

        Raises:
            WorkloadError: A name is unknown; on every rank.
        """
        part = copy.copy(self)
        with self.ranks.agreeing():
            whole = self.local
            parameters = Parameters(self.model, layers)
            part.local = LocalLoss(self.model, whole.loss, whole.shard, parameters, whole.rank)
        return part

    def local_product(self, operator: str) -> LocalProduct:
        """The product of a curvature matrix over this rank's samples, a sum. Collective.

        The parameters must not move while it is used. That it is a second derivative is proven
        before, once for each operator and point.

        Args:
            operator: "hessian", "gauss_newton", "empirical_fisher" or "residual".

        Returns:
            The product.

        Raises:
            WorkloadError: The operator is not defined for this loss; on every rank.
        """
        proof = (operator, self.layout.names)
        with self.ranks.agreeing():
            if proof not in self._proofs.products:
                prove_product(self.local, operator, self.ranks.rank)
                self._proofs.products.add(proof)
            return LocalProduct(self.local, operator, self.compute.cache_gib * 2**30)


def _first_samples(shard: Shard) -> Any:
    """Three samples, by which a sum is told from a mean; fewer where they make no batch."""
    if shard.batch_size < 3:
        with suppress(DataError):
            return shard.head(3)
    return shard.head(min(3, shard.batch_size))


def _others(shard: Shard) -> Iterator[Any]:
    """Samples from all over a data set, by threes, each read when it is asked for.

    Yields:
        Batches.
    """
    rng = np.random.default_rng(0)
    with suppress(DataError):  # they make no batch
        for _ in range(_LOOKS):
            yield shard.fetch(rng.integers(shard.num_samples, size=3).tolist())


def agreed_samples(ranks: Ranks, dataset: MapDataset, indices: NDArray[np.int64]) -> Digests:
    """Make sure that a data set gives the same samples each time and on all ranks. Collective.

    Args:
        ranks: The ranks.
        dataset: The whole data set.
        indices: Samples in use, (N,), of which some are looked at.

    Returns:
        Digests of those, by index.

    Raises:
        DataError: A data set that draws at random, or that is another one on another rank; on
            every rank.
    """
    with ranks.agreeing():
        length = count_samples(dataset)
    lengths = ranks.collect((length, len(indices)))
    with ranks.agreeing():
        for each in zip(*lengths, strict=True):
            require_same_lengths(each)
        digests = require_repeatable(dataset, indices[probe_positions(len(indices), seed=0)])
    everyone = ranks.collect(digests)
    with ranks.agreeing():
        require_same_samples(everyone)
    return digests
