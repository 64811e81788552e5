"""The memory of a solve: what is planned fits or is refused, and pages are taken as it grows."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DIGITS_JOB, Run
from oracles import PrescribedSpectrum, outliers_and_bulk

from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import memory_plan, petsc
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.memory_plan import (
    ResidualsWanted,
    Vectors,
    basis_sizes,
    fewest_vectors,
    plan,
    plan_solve,
)
from hessdist.spectrum.shell import ShellMatrix

TESTS = Path(__file__).resolve().parent.parent


def _is_too_much(
    vectors: Vectors, wanted: int, wish: ResidualsWanted, held: dict[str, int], budget: float
) -> bool:
    """Say whether even the smallest basis is too large, with the source that takes least."""
    sources: list[ResidualsWanted] = ["recorded", "sketched"] if wish == "auto" else [wish]
    fewest = fewest_vectors(wanted, vectors.dimension)
    ample = [plan(vectors, wanted, source, held, 1e18) for source in sources]
    return all(each.total(fewest) > budget for each in ample[-1:])


@pytest.mark.parametrize("seed", range(200))
def test_a_plan_fits_or_is_refused_with_what_would_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dimension, ranks = int(10 ** rng.uniform(1, 9)), int(rng.integers(1, 9))
    wanted = int(rng.integers(1, min(60, dimension) + 1))
    residuals: list[ResidualsWanted] = ["auto", "recorded", "recomputed", "sketched"]
    wish = residuals[seed % 4]
    vectors = Vectors(dimension, ranks, int(rng.choice([4, 8])), 4, dimension)
    held = {"process": int(10 ** rng.uniform(7, 9))}
    budget = float(10 ** rng.uniform(7, 11))
    refused = pytest.raises(InputError)
    with refused if _is_too_much(vectors, wanted, wish, held, budget) else nullcontext() as error:
        found = plan(vectors, wanted, wish, held, budget)
    if error is not None:
        remedy = error.value.remedy
        if remedy.startswith("use "):
            spread = replace(vectors, ranks=int(remedy.split()[1]))
            assert plan(spread, wanted, wish, held, budget).total() <= budget
        else:
            assert "compute.memory_gib" in remedy
        return
    assert found.total() <= budget
    assert fewest_vectors(wanted, dimension) <= found.most
    assert (found.first, found.most) <= basis_sizes(wanted, dimension)
    if vectors.scalar == 4:
        assert found.residuals != "sketched"
    else:
        assert wish in ("auto", found.residuals)
    if (found.first, found.most) != basis_sizes(wanted, dimension):  # no larger basis would do
        assert found.total(found.most + 1) > budget
    assert sum(size for _, size, _ in found.rows()) >= found.total()


def test_the_source_of_residuals_depends_on_the_problem_first() -> None:
    def chosen(dimension: int, budget: float = 1e12) -> str:
        return plan(Vectors(dimension, 1, 8, 4, dimension), 23, "auto", {}, budget).residuals

    assert [chosen(d) for d in (100, 900_000, 1_000_000, 10**8)] == [
        "recorded", "recorded", "sketched", "sketched"
    ]  # fmt: skip
    assert chosen(900_000, budget=950e6) == "sketched"


@pytest.mark.parametrize(("ncv", "mpd"), [(40, 0), (0, 20), (35, 30), (30, 50)])
def test_a_basis_that_options_set_is_planned_as_slepc_has_it(
    ncv: int, mpd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "held_bytes", lambda shell: {})
    monkeypatch.setattr(memory_plan, "reusable_bytes", lambda: 0)
    options = petsc.initialise()[0].Options()
    given = {name: size for name, size in (("eps_ncv", ncv), ("eps_mpd", mpd)) if size}
    shell = ShellMatrix(PrescribedSpectrum(outliers_and_bulk(1.0)), Ranks())
    for name, size in given.items():
        options.setValue(name, size)
    try:
        found = plan_solve(shell, 5, 3, "recomputed")
        pairs = extreme_eigenpairs(shell, 5, 3, residuals="recomputed")
        shell.memory = found.total() - 1
        with pytest.raises(InputError, match=r"lower -eps_ncv"):
            extreme_eigenpairs(shell, 5, 3, residuals="recomputed")
    finally:
        for name in given:
            options.delValue(name)
    assert pairs.converged
    assert pairs.basis <= found.most == (ncv or 8 + mpd)


@pytest.mark.parametrize("residuals", ["recorded", "sketched", "recomputed"])
def test_a_short_memory_costs_products_and_no_accuracy(
    residuals: ResidualsWanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "held_bytes", lambda shell: {})
    monkeypatch.setattr(memory_plan, "reusable_bytes", lambda: 0)
    eigenvalues = outliers_and_bulk(0.1)
    single = petsc.initialise() and petsc.scalar_bytes() == 4
    dtype = torch.float32 if single else torch.float64

    def solve(vectors: int | None) -> object:
        shell = ShellMatrix(PrescribedSpectrum(eigenvalues, dtype=dtype), Ranks())
        if vectors is not None:
            shell.memory = plan_solve(shell, 20, 3, residuals).total(vectors)
        pairs = extreme_eigenpairs(shell, 20, 3, residuals=residuals)
        assert pairs.converged
        sketched = residuals == "sketched"
        assert pairs.residuals_from == ("recomputed" if sketched and single else residuals)
        exact = np.sort(eigenvalues)
        assert pairs.largest.values == pytest.approx(exact[::-1][:20], rel=1e-5)
        assert pairs.smallest.values == pytest.approx(exact[:3], rel=1e-5)
        return pairs

    ample, tight = solve(None), solve(30)
    assert tight.basis <= 30 < ample.basis
    assert tight.products > ample.products


GROWS = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from oracles import PrescribedSpectrum
from hessdist.parallel.memory import keep_freed_memory, peak_bytes
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import petsc
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.memory_plan import plan_solve
from hessdist.spectrum.shell import ShellMatrix
if {keeps}:
    keep_freed_memory()
values = np.zeros(1_000_000)
values[:3] = 3, 2, -1
shell = ShellMatrix(PrescribedSpectrum(values), Ranks())
shell.apply(values)
for turn in range(2):
    shell.products = 0
    plan = plan_solve(shell, 2, 1)
    pairs = extreme_eigenpairs(shell, 2, 1, plan=plan)
    assert pairs.converged
    print(peak_bytes(), plan.total(pairs.basis, pairs.products), plan.total())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.parametrize("keeps", [True, False])
def test_pages_are_taken_as_the_basis_grows(keeps: bool) -> None:
    code = GROWS.format(tests=str(TESTS), keeps=keeps)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *later = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    peak, planned, most = first
    column = 8_000_000
    assert most - planned > 15 * column  # the basis stays far smaller than it may become
    assert peak < planned + 14 * column  # the products of this operator take some
    if keeps:  # otherwise the C library may use the same pages again, which are filled with zeros
        assert all(peak < planned + 14 * column for peak, planned, _ in later)


def test_the_command_line_refuses_what_cannot_fit(run: Run, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(DIGITS_JOB, encoding="utf-8")
    assert run("train", str(job)).returncode == 0
    for ranks in (1, 2):
        done = run("spectrum", str(job), "--set", "compute.memory_gib=0.01", ranks=ranks)
        assert done.returncode == 2
        (line,) = {line for line in done.stderr.splitlines() if line.startswith("hessdist: ")}
        assert "and 0.01 GiB may be taken" in line
        assert "compute.memory_gib" in line
