"""G by classes against explicit sums over samples, on ranks; bad losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from class_sums import Explicit, explicit
from networks import Problem, Samples, dense
from numpy.typing import NDArray

from hessdist.errors import WorkloadError
from hessdist.objective import Compute, Objective, Workload
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum.class_means import ClassMeans, class_means, within_classes
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES

CLASSES = 4  # of which the last one has no sample


def problem(count: int = 11) -> Problem:
    """A network of 48 parameters on a few samples, of classes of different sizes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 0, 0, 2, 0, 1, 2, 0, 0])[:count]
    torch.manual_seed(1)
    model = mlp([5, 4, CLASSES], "tanh").double()
    return Problem(model, LOSSES["cross_entropy"], Samples(inputs, labels))


def objective_of(given: Problem, ranks: Ranks, loss: Any = None) -> Objective:
    indices = np.arange(len(given.dataset))
    compute = Compute(dtype="float64", batch_size=3, workers=0)
    loss = given.loss if loss is None else loss
    return Workload(given.model, loss, given.dataset, indices, compute=compute).on(ranks)


def largest(matrix: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.linalg.eigvalsh(matrix)[::-1][:count]


def test_the_sums_are_those_of_the_dense_matrix() -> None:
    given = problem()
    found = explicit(given, CLASSES)
    whole = dense(given, "gauss_newton").numpy() / len(given.dataset)
    assert sum(found.parts.values()) == pytest.approx(whole, abs=1e-14)
    for name, part in found.parts.items():
        assert np.trace(part) > 0.01 * np.trace(whole), name  # none is there for nothing
    for c in range(CLASSES):  # the true class lies along the class mean
        true = found.weights[c, c] * found.means[c, c]
        assert true == pytest.approx(-found.class_weights[c] * found.class_means[c], abs=1e-14)


@pytest.mark.mpi(ranks=[1, 2, 3], timeout=60, unit="s")
@pytest.mark.parametrize("count", [11, 2])  # 2: a rank of 3 has no sample
def test_means_against_explicit_sums(mpi_ranks: int, comm: Any, count: int) -> None:
    given, ranks = problem(count), Ranks(comm)
    expected, objective = explicit(given, CLASSES), objective_of(given, ranks)
    told: list[tuple[int, int]] = []
    means = class_means(objective, count, lambda done, of: told.append((done, of)))
    assert told == [(done, CLASSES) for done in range(1, CLASSES + 1)]
    labels = given.dataset.tensors[1].numpy()
    assert means.counts.tolist() == np.bincount(labels, minlength=CLASSES).tolist()
    assert means.weights == pytest.approx(expected.weights, abs=1e-14)
    begin, end = ranks.shard(objective.layout.size)
    rows = np.sqrt(expected.weights)[..., None] * expected.means
    assert means.rows.dtype == np.float64
    assert means.rows == pytest.approx(rows.reshape(CLASSES**2, -1)[:, begin:end], abs=1e-14)
    parts = expected.parts
    everything = np.eye(CLASSES**2)
    for combined, matrix in (
        (means.of_classes, parts["class"]),
        (means.of_cross, parts["cross"]),
        (means.of_true, parts["true"]),
        (means.of_others, parts["class"] + parts["cross"]),
        (everything, parts["class"] + parts["cross"] + parts["true"]),
    ):
        values = means.eigenvalues(combined)
        assert values == pytest.approx(largest(matrix, len(combined)), abs=1e-14)
        assert means.trace(combined) == pytest.approx(np.trace(matrix), rel=1e-12)
    check_shares(means, expected, begin, end)
    check_within(objective, means, parts["within"], count)


def check_shares(means: ClassMeans, expected: Explicit, begin: int, end: int) -> None:
    """Shares in spans against projections, and parts of quadratic forms. Collective."""
    vectors = np.random.default_rng(0).standard_normal((3, expected.means.shape[-1]))
    vectors[0] = expected.class_means[0]
    vectors[1] = expected.means[0, 1]
    overlaps = means.overlaps(vectors[:, begin:end])
    squares = (vectors**2).sum(axis=1)
    every = expected.means.reshape(CLASSES**2, -1)
    for combined, span in ((means.of_classes, expected.class_means), (means.of_others, every)):
        found = means.shares(combined, overlaps, squares)
        left, values, _ = np.linalg.svd(span.T, full_matrices=False)
        basis = left[:, values > 1e-8 * values[0]]
        assert found.dimension == basis.shape[1]
        assert found.values == pytest.approx(((vectors @ basis) ** 2).sum(1) / squares, abs=1e-9)
    for combined, name in ((means.of_classes, "class"), (means.of_cross, "cross")):
        forms = np.einsum("id,de,ie->i", vectors, expected.parts[name], vectors)
        assert ((combined @ overlaps) ** 2).sum(axis=0) == pytest.approx(forms, rel=1e-10)


def check_within(
    objective: Objective, means: ClassMeans, within: NDArray[np.float64], count: int
) -> None:
    """The product with what is left of G, column by column. Collective."""
    shell = within_classes(objective, means, count)
    begin, end = objective.ranks.shard(shell.size)
    scale = np.abs(within).max() + 1e-3
    for column in (0, 7, shell.size - 1):
        unit = np.zeros(shell.size)
        unit[column] = 1.0
        assert shell.apply(unit[begin:end]) == pytest.approx(
            within[column, begin:end], abs=1e-13 * scale
        )


def test_an_ignored_label_has_no_part() -> None:
    given = problem()
    without = Problem(given.model, given.loss, given.dataset.reordered(torch.arange(1, 11)))
    inputs, labels = given.dataset.tensors
    labels = labels.clone()
    labels[0] = -100
    ignoring = Problem(given.model, given.loss, Samples(inputs, labels))
    found = [
        class_means(objective_of(one, Ranks()), 10, lambda *_: None) for one in (without, ignoring)
    ]
    assert found[1].counts.sum() == 10
    assert found[1].rows == pytest.approx(found[0].rows, abs=1e-14)


@pytest.mark.parametrize(
    "loss",
    [
        torch.nn.MultiMarginLoss(),
        torch.nn.CrossEntropyLoss(label_smoothing=0.1),
        torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=torch.float64)),
        torch.nn.CrossEntropyLoss(reduction="sum"),
        lambda model, batch: (model(batch[0]).square().sum(), len(batch[0])),
    ],
)
def test_another_loss_is_refused(loss: Any) -> None:
    objective = objective_of(problem(), Ranks(), loss)
    with pytest.raises(WorkloadError, match="defined for the mean cross-entropy"):
        class_means(objective, 11, lambda *_: None)


def test_the_module_of_the_criterion_is_taken() -> None:
    given = problem()
    found = [
        class_means(objective_of(given, Ranks(), loss), 11, lambda *_: None).gram
        for loss in (None, torch.nn.CrossEntropyLoss())
    ]
    assert np.array_equal(*found)
