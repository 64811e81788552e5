"""PETSc's options on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from oracles import PrescribedSpectrum

from hessdist.cli.options import split_petsc_options
from hessdist.errors import InputError
from hessdist.parallel.ranks import Ranks
from hessdist.spectrum import petsc
from hessdist.spectrum.eigenpairs import Eigenpairs
from hessdist.spectrum.eps_options import REFUSED, WITHOUT_EFFECT
from hessdist.spectrum.extreme import extreme_eigenpairs
from hessdist.spectrum.krylov_schur import Solver
from hessdist.spectrum.shell import ShellMatrix


@pytest.mark.parametrize(
    ("words", "ours", "petsc"),
    [
        ("spectrum job.toml -eps_ncv 60", "spectrum job.toml", "-eps_ncv 60"),
        ("spectrum -eps_monitor job.toml", "spectrum job.toml", "-eps_monitor"),
        ("spectrum job.toml -eps_target -0.5", "spectrum job.toml", "-eps_target -0.5"),
        ("spectrum -log_view :log.txt job.toml", "spectrum job.toml", "-log_view :log.txt"),
        ("plot run.h5 -o here", "plot run.h5 -o here", ""),
        ("show run.h5 --set a.b=-1", "show run.h5 --set a.b=-1", ""),
    ],
)  # fmt: skip
def test_petsc_s_options_are_told_from_ours(words: str, ours: str, petsc: str) -> None:
    assert split_petsc_options(words.split()) == (ours.split(), petsc.split())


@pytest.mark.slow
def test_an_option_that_nobody_asks_for_is_warned_about(run: Run, job: Path) -> None:
    assert run("train", str(job)).returncode == 0
    done = run("spectrum", str(job), "-eps_ncw", "30", "-eps_max_it", "77")
    assert done.returncode == 0, done.stderr
    assert "warning: PETSc option -eps_ncw was not used" in done.stdout
    assert "-eps_max_it" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "option",
    [("-eps_type", "nonsense"), ("-eps_ncv", "2")],
)
def test_an_option_that_petsc_refuses_is_bad_input(
    run: Run, job: Path, option: tuple[str, str], ranks: int
) -> None:
    assert run("train", str(job), "--set", "training.checkpoint_steps=[40]").returncode == 0
    done = run("spectrum", str(job), *option, ranks=ranks)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("hessdist:")]
    assert len(said) == 1
    assert "PETSc refuses the options" in said[0]
    assert "Traceback" not in done.stderr


def test_a_command_that_does_not_solve_takes_none(run: Run, job: Path) -> None:
    done = run("train", str(job), "-eps_ncv", "30")
    assert done.returncode == 2
    assert done.stderr.startswith("hessdist: hessdist train takes no option -eps_ncv")


# -- options that do not fit -----------------------------------------------------------------

SPECTRUM = np.concatenate([np.linspace(-1, 1, 40), [3, 4], [-2, -2.5]])


@contextmanager
def given(words: str) -> Iterator[None]:
    """Options of a command line, for as long as this lasts."""
    known = petsc.initialise()[0].Options()
    names: list[str] = []
    for word in words.split():
        if petsc.is_option(word):
            names.append(word[1:])
            known[names[-1]] = None
        else:
            known[names[-1]] = word
    try:
        yield
    finally:
        for name in names:
            known.delValue(name)


def solved() -> Eigenpairs:
    return extreme_eigenpairs(ShellMatrix(PrescribedSpectrum(SPECTRUM), Ranks()), 2, 2)


@pytest.mark.parametrize(
    "words",
    [
        *(f"-{name}" for name in REFUSED),
        "-eps_krylovschur_partitions 2 -eps_all",  # a segmentation fault in SLEPc 3.18
        "-eps_interval -1,1 -st_type sinvert",
        "-eps_type jd -eps_harmonic",
        "-eps_type arnoldi -eps_refined",
        *(f"-st_type {kind}" for kind in ("sinvert", "cayley", "filter", "shell")),
    ],
)
def test_an_option_that_does_not_fit_is_refused_before_the_solve(words: str) -> None:
    with given(words), pytest.raises(InputError, match="does not fit") as caught:
        solved()
    assert any(word in caught.value.what for word in words.split())
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_an_option_without_effect_is_said_and_has_none(name: str) -> None:
    (line,) = petsc.ineffective_options([f"-{name}", "-eps_ncv", "20"])
    assert line.startswith(f"warning: PETSc option -{name} has no effect: ")
    assert petsc.unused_options([f"-{name}"]) == []
    value = {"eps_nev": "9", "eps_target": "0.5", "eps_balance": "oneside"}.get(name, "")
    if name in ("eps_balance_its", "eps_balance_cutoff"):
        value = "3"
    plain = solved()
    with given(f"-{name} {value}"):
        pairs = solved()
    assert pairs.products == plain.products
    for end in ("largest", "smallest"):
        assert np.array_equal(getattr(pairs, end).values, getattr(plain, end).values)


@pytest.mark.parametrize(
    "words", ["-eps_ncv 12", "-eps_ncv 20 -eps_mpd 18", "-eps_tol 1e-9", "-eps_type arnoldi",
              "-eps_type gd", "-eps_type lapack", "-eps_krylovschur_restart 0.5", "-eps_max_it 99",
              "-eps_krylovschur_locking", "-eps_true_residual", "-eps_all false"]
)  # fmt: skip
def test_options_that_fit_go_on_working(words: str) -> None:
    with given(words):
        pairs = solved()
    assert pairs.converged
    assert pairs.largest.values == pytest.approx([4, 3], rel=1e-5)
    assert pairs.smallest.values == pytest.approx([-2.5, -2], rel=1e-5)


@pytest.mark.parametrize("words", ["-eps_ncv 5", "-eps_mpd 3", "-ds_method 3"])
def test_petsc_s_errors_during_a_solve_are_one_line(words: str) -> None:
    with given(words), pytest.raises(InputError, match="PETSc refuses the options: ") as caught:
        solved()
    assert "\n" not in str(caught.value)
    assert caught.value.agreed


def test_pairs_that_were_not_found_are_no_one_else_s() -> None:
    with given("-eps_type gd -eps_max_it 3"):
        pairs = solved()
    assert not pairs.converged
    assert np.isnan(pairs.smallest.values[-1])
    found = pairs.smallest.values[np.isfinite(pairs.smallest.values)]
    assert (found < 0).all()


@pytest.mark.parametrize("wrong", [{0: 0.9}, {3: -0.9}, {1: 0.5, 2: 1.0}])
def test_a_method_that_misses_an_end_is_found_out(wrong: dict[int, float]) -> None:
    with given("-eps_type arnoldi"):
        shell = ShellMatrix(PrescribedSpectrum(SPECTRUM), Ranks())
        with Solver(shell, 2, 2, 1e-6, 0) as solver:
            solver.solve_each_end()
            assert np.sort(solver.values) == pytest.approx([-2.5, -2, 3, 4])
            solver.values = np.sort(solver.values)
            for place, value in wrong.items():
                solver.values[place] = value
            with pytest.raises(InputError, match="-eps_type arnoldi has missed an eigenvalue"):
                solver._require_ends()


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_command_line_refuses_in_one_line(run: Run, job: Path, ranks: int) -> None:
    assert run("train", str(job), "--set", "training.checkpoint_steps=[0]").returncode == 0
    done = run("spectrum", str(job), "-eps_harmonic", "-eps_smallest_magnitude", ranks=ranks)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("hessdist:")]
    assert len(said) == 1
    assert "-eps_harmonic does not fit" in said[0]
    assert "warning: PETSc option -eps_smallest_magnitude has no effect" in done.stdout
    assert "Traceback" not in done.stderr
