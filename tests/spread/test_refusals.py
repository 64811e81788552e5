"""Models that do not bear spread parameters are refused, with one line on every rank."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import Samples
from torch import Tensor, nn

import hessdist
from hessdist.errors import HessdistError, NumericalError

COUNT, BATCH = 24, 12


def here() -> int:
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.rank)


class Base(nn.Module):
    """Two layers, of which the second can be any of three."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.seconds = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x[:, 1:]))

    def forward(self, x: Tensor) -> Tensor:
        return self.seconds[0](self.hidden(x))


class Experts(Base):
    """Each sample has its layer, so that a rank does not evaluate those of others."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        z = torch.zeros_like(h)
        for number, expert in enumerate(self.seconds):
            chosen = (x[:, 0].long() == number).nonzero()[:, 0]
            if len(chosen):
                z = z.index_put((chosen,), expert(h[chosen]))
        return z


class ReadsData(Base):
    """Values without their derivatives."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.hidden(x) @ self.seconds[1].weight.data


class Changes(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.first.weight.data.mul_(0.99)
        return super().forward(x)


class ChangesInPlace(Base):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.mul_(1.01)
        return self.scale * super().forward(x)


class Replaces(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.first.weight = nn.Parameter(torch.ones(3, 4))
        return super().forward(x)


class Keeps(Base):
    """A parameter in a list, which is not a piece."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [nn.Parameter(torch.ones(3))]
        self.scale = self.kept[0]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.kept[0].sum())


class Penalty(Base):
    """A penalty on what are pieces."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * sum(p.square().sum() for p in self.parameters())


class Fails(Base):
    """An error of one rank in the middle of the pass over all samples."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        if here() == 1 and len(x) == BATCH:
            raise ValueError("bad day")
        return self.seconds[0](h)


class Ends(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        if here() == 1 and len(x) == BATCH:
            raise SystemExit(0)
        return self.seconds[0](h)


class NotANumber(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z * torch.nan if here() == 1 and len(x) == BATCH else z


class NoSlope(Base):
    """The loss is finite on every rank, and a gradient of one rank is not."""

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        if here() == 1 and len(x) == BATCH:
            z = z + (z.detach() - z).sqrt()
        return z


def scripted() -> nn.Module:
    model = Base()
    model.first = torch.jit.script(model.first)  # type: ignore[assignment]
    return model


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (Experts, "evaluate different layers: the model's path depends on its data"),
    (ReadsData, "the second derivative of the model or the loss is wrong"),
    (Changes, "the model changes its parameter first.weight when it is evaluated"),
    (ChangesInPlace, "the model changes its parameter scale when it is evaluated"),
    (Replaces, "the model replaces its parameter weight"),
    (Keeps, "not finite"),
    (Penalty, "rank 1 has another loss than rank 0"),
    (Fails, r"rank 1: batch 0: .*ValueError: bad day"),
    (Ends, "rank 1: .*ends the program"),
    (NotANumber, "rank 1: the loss of batch 0 is not finite"),
    (NoSlope, "rank 0: the gradient of batch 0 is not finite"),
    (scripted, "the module first is scripted"),
]


def spectrum(comm: Any, model: nn.Module, **options: Any) -> hessdist.Spectrum:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(COUNT, 5, generator=generator, dtype=torch.float64)
    inputs[:, 0] = torch.arange(COUNT) * 3 // COUNT  # sorted, as many data sets are
    labels = torch.randint(3, (COUNT,), generator=generator)
    given: dict[str, Any] = {"largest": 1, "smallest": 0, "batch_size": BATCH, "shards": 2}
    return hessdist.extreme_eigenpairs(
        model.double(), nn.CrossEntropyLoss(), Samples(inputs, labels), comm=comm, **given | options
    )


@pytest.mark.mpi(ranks=2, timeout=60, unit="s")
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_models_that_do_not_bear_it(mpi_ranks: int, comm: Any) -> None:
    found = []
    for make, message in REFUSED:
        torch.manual_seed(0)
        said, status = "no error", 0
        try:
            spectrum(comm, make())
        except HessdistError as error:
            said, status = str(error), error.exit_status
        right = re.search(message, said) and "\n" not in said
        right = right and status == (1 if "not finite" in said else 2)
        found += [] if right else [f"{make.__name__}: {said} ({status})"]
    everyone = comm.allgather(found)
    assert not any(everyone), everyone
    torch.manual_seed(0)
    assert spectrum(comm, Base()).converged  # and what is sound is still solved


@pytest.mark.mpi(ranks=3, timeout=60, unit="s")
def test_shards_that_do_not_divide_the_ranks(mpi_ranks: int, comm: Any) -> None:
    with pytest.raises(HessdistError, match="shards = 2 does not divide the 3 ranks") as caught:
        spectrum(comm, Base())
    assert caught.value.exit_status == 2
    assert not isinstance(caught.value, NumericalError)
