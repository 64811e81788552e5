"""The study of laws: the numbers of a made spectrum, its place after other sections, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Samples
from numpy.typing import NDArray
from shown import figures_of, tables_of

import hessdist
from hessdist.config.job import Job
from hessdist.config.loader import load_job
from hessdist.config.studies import registry
from hessdist.errors import JobError, ResultError
from hessdist.objective import Workload
from hessdist.parallel.ranks import Ranks
from hessdist.present.histograms import density_at
from hessdist.present.outliers import outliers_sought
from hessdist.results.units import Measurements, Variable, stacked
from hessdist.service.console import Console
from hessdist.service.study import study
from hessdist.service.workload import computed_as
from hessdist.studies.context import Context
from hessdist.studies.random_matrices.laws import laws
from hessdist.studies.random_matrices.settings import LawsSection
from hessdist.theory.fit import fit
from hessdist.theory.laws import MarchenkoPastur
from hessdist.theory.measured_spectrum import MeasuredSpectrum, split
from hessdist.theory.shortcomings import where_it_fails
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES

QUICK = ["semicircle", "marchenko_pastur", "marchenko_pastur_atom"]
OUTLIERS = np.array([50.0, 40.0])


def made_spectrum() -> NDArray[np.float64]:
    """200 zeros, 300 eigenvalues of the law with σ = 2 and φ = 1/4, and two outliers."""
    bulk = MarchenkoPastur(0.25, 2.0).sample(300, np.random.default_rng(0))
    return np.sort(np.r_[np.zeros(200), bulk, OUTLIERS])


def exact_section(values: NDArray[np.float64]) -> Measurements:
    return Measurements({
        "operator": Variable(("operator",), np.array(["hessian"], dtype=object), "matrix"),
        "eigenvalues": Variable(("operator", "index"), values[None], "all eigenvalues"),
    })


def fitted(ranks: Ranks, found: Measurements | None, **settings: Any) -> Measurements:
    """Laws of a made section, at a checkpoint of five samples, two outputs."""
    job = Job.model_validate({
        "model": {"factory": "mlp", "arguments": {"widths": [3, 2]}},
        "data": {"dataset": "digits"},
        "checkpoints": {"directory": "none"},
        "output": {"path": "none.h5"},
    })
    data = Samples(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
    workload = Workload(
        mlp([3, 2]), LOSSES["cross_entropy"], data, np.arange(2), **computed_as(job)
    )
    objective = workload.on(ranks)

    def stored(name: str) -> Measurements | None:
        assert ranks.is_root  # which alone reads files
        return found if name == "exact" else None

    here = Context(job, workload, objective, stored=stored)
    return laws(here, LawsSection(**{"laws": QUICK, **settings}))


@pytest.mark.mpi(ranks=[1, 3], timeout=60, unit="s")
def test_a_made_spectrum(mpi_ranks: int, comm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every rank the whole section; one rank has no sample."""
    section = fitted(Ranks(comm), exact_section(made_spectrum()))
    assert section["spectrum"].tolist() == ["exact, hessian"]
    assert section["law"].tolist() == QUICK
    assert section["size"].tolist() == [502]
    assert section["parameters_over_data"] == pytest.approx([502 / (2 * 2)])
    assert section["outliers"].tolist() == [2]
    assert section["spike"] == pytest.approx([200 / 502])
    assert section["bulk_points"].tolist() == [300]
    assert section["scale"][0, 1] == pytest.approx(2, rel=0.03)
    assert section["ratio"][0, 1] == pytest.approx(1 / 4, rel=0.05)
    assert np.isnan(section["centre"][0, 1:]).all()
    assert np.isnan(section["energy"]).all()
    assert section["kolmogorov_smirnov"][0, 1] < 0.03
    assert section["kolmogorov_smirnov"][0, 0] > 2 * section["kolmogorov_smirnov"][0, 1]
    assert section["converged"].all()
    assert not any(section["reason"].flat)
    bulk = made_spectrum()
    at = section["grid"][0]
    inside = bulk[(bulk > 0) & (bulk < 20)]
    expected = np.searchsorted(inside, at, "right") / len(inside)
    assert section["cumulative"][0] == pytest.approx(expected)
    assert np.abs(section["law_cumulative"][0, 1] - expected).max() < 0.03

    def fail(*_: object) -> None:
        raise ResultError("nothing is drawn", "mend it")

    monkeypatch.setattr("hessdist.studies.random_matrices.laws.drawn_grid", fail)
    with pytest.raises(ResultError, match="nothing is drawn"):  # on every rank
        fitted(Ranks(comm), exact_section(made_spectrum()))


def test_where_a_law_fails_is_said() -> None:
    section = fitted(Ranks(), exact_section(made_spectrum()))
    told = where_it_fails(section, (0, 1))
    assert "eigenvalues above its upper edge 4.5" in told
    assert f"up to {OUTLIERS[0]:.3g}" in told
    assert "near zero 39.8% measured, 0.0% by the law" in told
    assert "negative 0.0% measured, 0.0% by the law" in told
    lines = list(registry()["laws"].remarks_on(section))
    assert lines[0] == "exact, hessian: 39.84% near zero, 2 outliers, 300 points left"
    assert lines[2].startswith("exact, hessian, Marchenko-Pastur: σ ")
    assert told in lines[2]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros(40), "all eigenvalues are zero"),
        (np.full(40, np.nan), "no eigenvalue is finite"),
        (np.arange(5.0), "points are neither outliers nor near zero"),
    ],
)
def test_what_cannot_be_fitted_is_kept_and_named(values: NDArray[np.float64], reason: str) -> None:
    section = fitted(Ranks(), exact_section(values))
    assert all(reason in one for one in section["reason"].flat)
    for name in ("kolmogorov_smirnov", "scale", "high", "law_cumulative"):
        assert np.isnan(section[name]).all(), name
    assert section["converged"].all()  # no iteration was begun
    assert (
        f"no fit: {where_it_fails(section, (0, 0))[8:]}"
        in list(registry()["laws"].remarks_on(section))[1]
    )


@pytest.mark.parametrize("found", [None, exact_section(np.arange(30.0))])
def test_without_a_spectrum_it_is_refused(found: Measurements | None) -> None:
    with pytest.raises(ResultError, match=r"study.laws has no spectrum .* add \[study.density\]"):
        fitted(Ranks(), found, operators=["residual"])


def test_spectra_that_steps_do_not_share_are_all_kept() -> None:
    """Step 0 has all eigenvalues, 50 a density as well, and 100 that alone."""
    whole = fitted(Ranks(), exact_section(made_spectrum()))
    renamed = np.array(["density, hessian"], dtype=object)
    other = dict(whole.variables)
    other["spectrum"] = replace(other["spectrum"], values=renamed)
    other["source"] = replace(other["source"], values=np.array(["density"], dtype=object))
    both = dict(whole.variables)
    for name, variable in both.items():
        if variable.dimensions[0] == "spectrum":
            values = np.concatenate([variable.values, other[name].values])
            both[name] = replace(variable, values=values)
    steps = zip((0, 50, 100), (whole.variables, both, other), strict=True)
    section = stacked([Measurements(v, {"step": step, "settings": ""}) for step, v in steps])
    assert section["spectrum"].tolist() == ["exact, hessian", "density, hessian"]
    assert section["step"].tolist() == [0, 50, 100]
    assert section["source"].tolist() == [["exact", ""], ["exact", "density"], ["", "density"]]
    there = np.array([[True, False], [True, True], [False, True]])
    assert np.array_equal(section["outliers"], np.where(there, 2, np.nan), equal_nan=True)
    assert np.array_equal(np.isfinite(section["grid"]).all(axis=-1), there)
    assert section["kolmogorov_smirnov"][there] == pytest.approx(
        np.tile(whole["kolmogorov_smirnov"][0], (4, 1))
    )
    assert [one.row_count for one in tables_of({"laws": section})] == [4 * len(QUICK)] * 2
    drawn = [name for name, _ in figures_of({"laws": section}, "made")]
    assert [name.rsplit("-step-", 1)[1] for name in drawn] == ["0", "50", "50", "100"]


# -- a run -----------------------------------------------------------------------------------


def test_a_run_has_them_after_its_spectra(studied: Path) -> None:
    """Fits of what the file holds, by themselves, and what `hessdist show` prints of them."""
    run = hessdist.open_run(studied / "results" / "run.h5")
    section, most = run.studies["laws"], outliers_sought(run)
    names = ["exact, hessian", "density, hessian, fc1 + fc2", "density, hessian, fc2"]
    assert section["spectrum"].tolist() == names
    exact = run.studies["exact"]["eigenvalues"][0, 0]
    density = density_at(run.studies["density"], (0, 0, 1))
    for row, spectrum in (
        (0, MeasuredSpectrum.of_eigenvalues(exact)),
        (2, MeasuredSpectrum.of_density(density)),
    ):
        parts = split(spectrum, most)
        assert section["spike"][0, row] == pytest.approx(parts.spike)
        for column, law in enumerate(QUICK):
            found = fit(parts, law)
            for name in ("kolmogorov_smirnov", "wasserstein", "high", "above"):
                expected = getattr(found, name)
                stored = section[name][0, row, column]
                assert stored == pytest.approx(expected, rel=1e-6, nan_ok=True), (law, name)
    assert [one.row_count for one in tables_of({"laws": section})] == [9, 9]


JOB = """
[model]
factory = "mlp"
arguments = { widths = [64, 3, 10] }
[data]
dataset = "digits"
samples = 30
[checkpoints]
directory = "FOLDER"
[output]
path = "FOLDER/run.h5"
"""


def test_laws_follow_their_spectra(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(mlp([64, 3, 10]).state_dict(), tmp_path / "step-00000007.pt")
    base = JOB.replace("FOLDER", str(tmp_path))
    wanted = '[study.laws]\nlaws = ["semicircle"]\n'

    def studied(sections: str, **how: Any) -> tuple[list[str], list[str]]:
        (tmp_path / "job.toml").write_text(base + sections, encoding="utf-8")
        job, text = load_job(tmp_path / "job.toml")
        done = study(job, text, Ranks(), Console(lambda line: None), **how)
        return [u.name for u in done.done], [u.name for u in done.skipped]

    with pytest.raises(
        JobError,
        match=r"reads results of exact or density, and there are none; add \[study.exact\]",
    ):
        studied(wanted)
    exact = "[study.exact]\npicture = 0\n"
    names = ["exact of step 7", "laws of step 7"]
    assert studied(wanted + exact) == (names, [])
    assert studied(wanted) == ([], names[1:])
    # What is found anew takes along the laws of what was there.
    other = wanted + "[study.exact]\npicture = 3\n"
    assert studied(other, only=["exact"], overwrite=True) == (names[:1], [])
    assert "laws" not in hessdist.open_run(tmp_path / "run.h5").studies
    assert studied(other) == (names[1:], names[:1])
    with pytest.raises(ResultError, match=r"study.laws.steps: .* has no step 5; there are 7"):
        studied(exact + wanted + "steps = [5]\n")
