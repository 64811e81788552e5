"""Language models on several ranks, some of them without samples or without labels that count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from language_models import Dense, Small, causal, random_sequences
from precision import within

import hessdist
from hessdist.workload.tokens import sequences


@pytest.mark.mpi(ranks=[2, 3], timeout=60, unit="s")
def test_every_rank_has_the_pairs_of_the_dense_matrix(mpi_ranks: int, comm: Any) -> None:
    model = Small().double()
    # Of two sequences a third rank has none.
    for lengths, mean in (((5, 3, 6, 2, 4), "tokens"), ((6, 3), "sequences")):
        ids = random_sequences(lengths)
        dataset = sequences([one.numpy() for one in ids], 6, packed=False)
        exact = Dense(model, causal(ids), lambda m, one: m(one[None])[0], mean)
        matrices, weight = exact.matrices(), float(exact.weights.sum())
        loss = hessdist.losses.causal_lm(mean, chunk_tokens=3, fisher="tokens")  # type: ignore[arg-type]
        for operator in ("hessian", "gauss_newton", "empirical_fisher"):
            matrix = matrices["tokens" if operator == "empirical_fisher" else operator]
            right = np.linalg.eigvalsh(matrix.detach().numpy() / weight)[::-1][:2]
            found = hessdist.extreme_eigenpairs(
                model,
                loss,
                dataset,
                largest=2,
                smallest=0,
                tolerance=1e-7,
                operator=operator,  # type: ignore[arg-type]
                batch_size=2,
                comm=comm,
            )
            assert found.weight == pytest.approx(weight, rel=1e-12)
            assert found.eigenvalues_largest == pytest.approx(right, rel=within(1e-9))
