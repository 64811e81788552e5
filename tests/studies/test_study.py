"""`hessdist study` as users run it: its numbers, at 1, 2 and 3 ranks, its files, its complaints."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Run
from networks import Problem, Samples, dense, loss_along
from service.sweeps import completed, started, until
from studied import JOB, prepare

import hessdist
from hessdist.config.loader import load_job
from hessdist.errors import InputError
from hessdist.landscape.found import Found
from hessdist.parallel.ranks import Ranks
from hessdist.results.writer import write_index
from hessdist.service.console import Console
from hessdist.service.study import study
from hessdist.workload.checkpoints import read_state
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES

# How a cluster of eigenvalues, such as zero, shares its weight among nodes is a matter of rounding.
OF_CLUSTERS = {"nodes", "weights", "effective_rank", "effective_rank_error"}
TIMES = {
    "seconds",
    "seconds_plain",
    "seconds_tracking",
    "seconds_products",
    "seconds_eigenvalues",
}


@pytest.fixture
def alone(studied: Path) -> Path:
    """The folder that one process has made."""
    return studied


@pytest.fixture
def folder(alone: Path, tmp_path: Path) -> Path:
    """A folder like that one, which is where `run` runs, and not a copy that has been moved."""
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    for note in tmp_path.glob("results/run.checkpoints/checkpoints.*.json"):
        note.unlink()  # it names the folder of the checkpoints
    return tmp_path


def problem_at(folder: Path, step: int) -> Problem:
    """The job's network and samples, by themselves."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60,), generator=generator)
    inputs[:, 0] += labels
    model = mlp([6, 5, 3], "tanh").double()
    model.load_state_dict(read_state(folder / "checkpoints" / f"step-{step:08d}.pt"))
    return Problem(model, LOSSES["cross_entropy"], Samples(inputs, labels))


# -- the numbers -----------------------------------------------------------------------------


def test_lines_against_the_definition(alone: Path) -> None:
    run = hessdist.open_run(alone / "results" / "run.h5")
    lines = run.studies["lines"]
    assert list(lines["step"]) == [0, 20]
    assert list(lines["pair"]) == ["smallest 1", "largest 2"]
    alpha = lines["alpha"]
    assert list(alpha) == [-1.0, -0.5, -0.1, -0.05, 0.0, 0.05, 0.1, 0.5, 1.0]
    for row, step in enumerate((0, 20)):
        problem, result = problem_at(alone, step), run[step]
        vectors = result.eigenvectors_smallest[0], result.eigenvectors_largest[1]
        values = result.eigenvalues_smallest[0], result.eigenvalues_largest[1]
        for column, (v, value) in enumerate(zip(vectors, values, strict=True)):
            slope = v.astype(float) @ result.gradient
            expected = [loss_along(problem, -a * slope * v.astype(float)) for a in alpha]
            assert lines["loss"][row, column] == pytest.approx(expected, rel=1e-12)
            model = result.loss - alpha * slope**2 + alpha**2 / 2 * slope**2 * value
            assert lines["quadratic_model"][row, column] == pytest.approx(model, rel=1e-9)
            near = np.abs(alpha) <= 0.05
            third = 10 * np.abs(alpha[near] * slope) ** 3 + 1e-12
            assert (np.abs(lines["loss"][row, column] - model)[near] <= third).all()


def test_best_steps_against_a_search_by_hand(alone: Path) -> None:
    run = hessdist.open_run(alone / "results" / "run.h5")
    steps, problem, result = run.studies["step_sizes"], problem_at(alone, 20), run[20]
    vectors = np.concatenate([result.eigenvectors_largest, result.eigenvectors_smallest])
    assert list(steps["pair"]) == [f"largest {i}" for i in (1, 2, 3, 4)] + [
        f"smallest {i}" for i in (1, 2, 3)
    ]
    start = float(steps["start"][1])
    assert start == pytest.approx(float(result.loss), rel=1e-12)
    minima = 0
    for i, v in enumerate(vectors.astype(float)):
        slope, alpha = steps["slope"][1, i], steps["best_step"][1, i]
        assert slope == pytest.approx(v @ result.gradient, rel=1e-12)

        def change(a: float, v: np.ndarray = v, slope: float = slope) -> float:
            return loss_along(problem, -a * slope * v) - start

        assert steps["best_loss_change"][1, i] == pytest.approx(change(alpha), abs=1e-12)
        if steps["found"][1, i] == Found.MINIMUM:
            minima += 1
            near = [change(alpha * (1 + e)) for e in (-1e-3, 1e-3)]
            assert min(near) > change(alpha)
        scanned = steps["scanned_loss"][1, i] - start
        assert change(alpha) <= scanned.min() + 1e-12
        value = steps["eigenvalue"][1, i]
        for rule, a in ((0, 1 / value), (1, 1 / abs(value)), (2, alpha)):
            assert steps["loss_change"][1, rule, i] == pytest.approx(change(a), abs=1e-12)
    assert minima >= 4
    joint = -(vectors.T.astype(float) @ (steps["slope"][1] / np.abs(steps["eigenvalue"][1])))
    expected = loss_along(problem, joint) - start
    assert steps["joint_loss_change"][1, 1, 0] == pytest.approx(expected, rel=1e-6)
    for scale, scaled in zip(steps["scale"], steps["scaled_joint_loss_change"][1], strict=True):
        expected = loss_along(problem, scale * joint) - start
        assert scaled[1, 0] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_blocks_against_dense_ones(alone: Path) -> None:
    run = hessdist.open_run(alone / "results" / "run.h5")
    blocks, hessian = run.studies["blocks"], dense(problem_at(alone, 20), "hessian").numpy() / 60
    assert list(blocks["block"]) == ["fc1", "fc1.bias + fc2"]
    assert list(blocks["block_parameters"][0]) == [35, 23]
    for row, part in enumerate((slice(0, 35), slice(30, 53))):
        expected = np.linalg.eigvalsh(hessian[part, part])
        largest, smallest = (
            blocks[f"eigenvalues_{end}"][0, row] for end in ("largest", "smallest")
        )
        assert largest == pytest.approx(expected[::-1][:5], rel=1e-6)
        assert smallest == pytest.approx(expected[:3], abs=1e-6 * expected[-1])
    assert blocks["converged_largest"].all()
    assert blocks["converged_smallest"].all()
    shares = blocks["share"][0]
    assert shares.sum(axis=1) == pytest.approx(np.ones(7))
    v = run[20].eigenvectors_smallest[1].astype(float)
    assert shares[5] == pytest.approx([v[:35] @ v[:35], v[35:] @ v[35:]], rel=1e-6)
    gradient = run[20].gradient
    in_first = gradient[:35] @ gradient[:35] / (gradient @ gradient)
    assert blocks["gradient_share"][0, 0] == pytest.approx(in_first)
    assert blocks["parameter_share"][0] == pytest.approx([35 / 53, 18 / 53])


def test_subsets_against_dense_ones(alone: Path) -> None:
    from hessdist.workload.datasets import choose_samples

    run = hessdist.open_run(alone / "results" / "run.h5")
    subsets, problem = run.studies["subsets"], problem_at(alone, 20)
    assert subsets["num_samples"][0].tolist() == [[15, 15], [30, 30]]
    for i, count in enumerate((15, 30)):
        for seed in (0, 1):
            chosen = torch.from_numpy(choose_samples(60, None, count, "random", seed))
            part = Problem(problem.model, problem.loss, problem.dataset.reordered(chosen))
            values, vectors = np.linalg.eigh(dense(part, "hessian").numpy() / count)
            found = subsets["eigenvalues_largest"][0, i, seed]
            assert found == pytest.approx(values[::-1][:4], rel=1e-8)
            full = run[20].eigenvalues_largest
            difference = (values[::-1][:4] - full) / full
            assert subsets["relative_difference_largest"][0, i, seed] == pytest.approx(
                difference, rel=1e-6, abs=1e-9
            )
            first = run[20].eigenvectors_smallest[0].astype(float)
            angle = np.degrees(np.arccos(min(1, abs(first @ vectors[:, 0]))))
            assert subsets["angle_smallest"][0, i, seed, 0] == pytest.approx(angle, abs=0.05)
    for end in ("largest", "smallest"):
        principal, matched = (
            subsets[f"{name}_{end}"][0] for name in ("principal_angle", "matched_angle")
        )
        assert (np.diff(principal, axis=-1) >= -1e-9).all()
        assert (principal.min(axis=-1) <= matched.min(axis=-1) + 1e-3).all()


def test_the_optimiser_beside_exact_pairs(alone: Path) -> None:
    run = hessdist.open_run(alone / "results" / "run.h5")
    found = run.studies["optimizer"]
    assert list(found["run"]) == ["rmsprop", "rmsprop + curvature 1"]
    assert list(found["iteration"]) == [0, 10, 20]
    assert np.isfinite(found["loss"]).all()
    assert (found["loss"][:, :, 0] == found["loss"][:1, :, 0]).all()  # the same start
    assert np.isnan(found["estimated_curvature"][0]).all()
    assert found["steps_along"].tolist() == [[0, 0, 0], [10, 10, 10]]
    for name in ("seconds_tracking", "seconds_plain"):  # which is longer is noise here
        assert (found[name] > 0).all()
    lowest = found["eigenvalues_smallest"][0, :, 0]
    assert (found["curvature_along"][0] >= lowest - 1e-9).all()
    assert (found["angle_to_space"] <= found["angle"] + 1e-9).all()


def test_the_same_numbers_on_any_number_of_ranks(alone: Path, tmp_path: Path) -> None:
    mine = hessdist.open_run(alone / "results" / "run.h5").studies
    for ranks in (2, 3):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        prepare(folder)
        shutil.copytree(alone / "checkpoints", folder / "checkpoints")
        for command in ("spectrum", "study"):
            done = completed(folder, command, "job.toml", ranks=ranks)
            assert done.returncode == 0, done.stderr
        theirs = hessdist.open_run(folder / "results" / "run.h5").studies
        assert mine.keys() == theirs.keys()
        for name, section in mine.items():
            assert list(section) == list(theirs[name])
            for table in set(section) - TIMES - OF_CLUSTERS:
                one, other = section[table], theirs[name][table]
                if one.dtype.kind != "f":
                    same = table in {"products"} or np.array_equal(one, other)
                    assert same, f"{name}.{table}"
                    continue
                # Vectors are stored as float32, and less exact than their eigenvalues.
                allowed = 1e-4 if "angle" in table else 1e-6
                good = np.isclose(one, other, rtol=allowed, atol=allowed * 1e-1, equal_nan=True)
                if "residual" not in table:
                    assert good.all(), f"{name}.{table}: {one} {other}"


def test_eigenpairs_that_were_not_found(folder: Path, run: Run) -> None:
    """NaN where a pair was not found; the pairs beside it are as they were."""
    before = hessdist.open_run(folder / "results" / "run.h5").studies
    (part,) = (folder / "results" / "run.checkpoints").glob("step-00000020.*.h5")
    with part.open("r+b") as file:  # as a file that was never sealed
        whole = file.read()
        file.seek(0)
        file.write(whole[512:])
        file.truncate()
    with h5py.File(part, "r+") as file:
        for name in ("eigenvalues", "residuals"):
            file[f"{name}_smallest"][2] = np.nan
        file["converged_smallest"][2] = False
        file["eigenvectors_smallest"][2] = np.nan
    (folder / "results" / "run.h5").unlink()
    words = ("--only", "step_sizes,subsets,lines", "--set", 'study.lines.pairs=["smallest 3"]')
    write_index(folder / "results" / "run.h5", [part])
    words += ("--set", "study.lines.steps=[20]", "--set", "study.step_sizes.steps=[20]")
    done = run("study", "job.toml", *words, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "1 without an eigenpair" in done.stdout
    after = hessdist.open_run(folder / "results" / "run.h5").studies
    one, other = before["step_sizes"], after["step_sizes"]
    assert other["found"][1].tolist()[-1] == Found.NO_PAIR
    for table in ("best_step", "best_loss_change", "slope", "predicted_loss_change"):
        assert np.array_equal(one[table][1, :-1], other[table][1, :-1], equal_nan=True), table
        assert np.isnan(other[table][1, -1])
    assert np.isfinite(other["joint_loss_change"]).all()
    assert np.isnan(after["lines"]["loss"]).all()
    assert np.isnan(after["subsets"]["principal_angle_smallest"]).all()
    assert np.isfinite(after["subsets"]["principal_angle_largest"]).all()


# -- the files -------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(folder: Path, run: Run) -> None:
    before = (folder / "results" / "run.h5").read_bytes()
    done = run("study", "job.toml")
    assert done.returncode == 0, done.stderr
    assert "(0 units done, 21 done before)" in done.stdout
    assert (folder / "results" / "run.h5").read_bytes() == before


def test_studies_outlive_a_sweep(folder: Path, run: Run) -> None:
    before = hessdist.open_run(folder / "results" / "run.h5").studies
    (folder / "results" / "run.h5").unlink()
    assert run("spectrum", "job.toml").returncode == 0
    after = hessdist.open_run(folder / "results" / "run.h5").studies
    assert before.keys() == after.keys()
    for name, section in before.items():
        for table, values in section.items():
            assert values.dtype == after[name][table].dtype
            assert np.array_equal(values, after[name][table], equal_nan=values.dtype.kind == "f")


def test_other_eigenpairs_make_a_study_stale(folder: Path, run: Run) -> None:
    words = ("job.toml", "--set", "training.steps=21", "--set", "training.checkpoint_steps=[0,20]")
    (folder / "checkpoints" / "step-00000020.pt").unlink()
    shutil.copy(folder / "checkpoints/step-00000000.pt", folder / "checkpoints/step-00000020.pt")
    assert run("spectrum", *words).returncode == 0
    assert list(hessdist.open_run(folder / "results" / "run.h5").studies["lines"]["step"]) == [0]
    done = run("study", *words, "--only", "lines")
    assert "(1 units done, 1 done before)" in done.stdout, done.stderr
    lines = hessdist.open_run(folder / "results" / "run.h5").studies["lines"]["loss"]
    assert lines[0] == pytest.approx(lines[1], rel=1e-12)


def test_a_damaged_unit_is_done_again(folder: Path, run: Run) -> None:
    (unit,) = (folder / "results" / "run.checkpoints").glob("study-lines.step-00000020.*.h5")
    unit.write_bytes(unit.read_bytes()[:-100])
    done = run("study", "job.toml", "--only", "lines")
    assert "(1 units done, 1 done before)" in done.stdout


def test_other_settings_are_refused_and_replaced_on_request(folder: Path, run: Run) -> None:
    words = ("study", "job.toml", "--only", "lines", "--set", "study.lines.points=7")
    refused = run(*words)
    assert refused.returncode == 2
    assert "with other settings of [study.lines]" in refused.stderr
    assert run(*words, "--overwrite").returncode == 0
    assert len(hessdist.open_run(folder / "results" / "run.h5").studies["lines"]["alpha"]) == 13


def test_xarray_and_h5py_read_them(alone: Path) -> None:
    xarray = pytest.importorskip("xarray")
    path = alone / "results" / "run.h5"
    group = xarray.open_dataset(path, engine="h5netcdf", group="studies/step_sizes")
    assert group["best_step"].dims == ("step", "pair")
    assert group["best_step"].attrs["long_name"].startswith("α*")
    assert list(group["pair"].values[:2]) == ["largest 1", "largest 2"]
    assert group["scanned_loss"].sizes["alpha"] == 40
    mine = hessdist.open_run(path).studies["step_sizes"].to_xarray()
    assert mine["best_step"].equals(group["best_step"].load())
    with h5py.File(path) as file:
        for name, section in file["studies"].items():
            for table, dataset in section.items():
                if isinstance(dataset, h5py.Dataset):  # the others are links
                    assert {"units", "long_name"} <= set(dataset.attrs), f"{name}/{table}"


def test_the_figures_of_a_study(alone: Path, tmp_path: Path, run: Run) -> None:
    done = run("plot", str(alone / "results" / "run.h5"), "-o", "figures", "--format", "png")
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    names = {
        "progression", "best-decrease", "best-decrease-wide", "best-decrease-near-zero",
        "inverse-step", "inverse-step-wide", "inverse-step-all", "gains",
        "line-step-20-smallest-1-0.1", "line-step-20-smallest-1-1", "subsets-largest-step-20",
        "subsets-smallest-step-20", "layer-shares-step-20", "blocks-step-20", "optimizer-loss",
        "optimizer-tracking", "eigenspace-loss", "eigenspace-end",
        "decomposition-eigenvalues", "decomposition-traces", "decomposition-alignment",
        "laws-exact-hessian-step-20", "laws-density-hessian-fc1-fc2-step-20",
        "laws-density-hessian-fc2-step-20",
        "widths-residual", "widths-training", "minimizers",
    }  # fmt: skip
    assert {f"run-{name}.png" for name in names} <= made
    assert all(path.stat().st_size > 4000 for path in (tmp_path / "figures").iterdir())


def test_the_tables_of_a_study(alone: Path, run: Run) -> None:
    done = run("show", str(alone / "results" / "run.h5"))
    assert done.returncode == 0, done.stderr
    steps = hessdist.open_run(alone / "results" / "run.h5").studies["step_sizes"]
    lines = done.stdout.splitlines()
    (row,) = [line.split() for line in lines if line.split()[:3] == ["20", "3", "smallest"]]
    gains = [steps["loss_change"][1, rule, 4:].sum() for rule in range(3)]
    gains += list(steps["joint_loss_change"][1, :, 2])
    assert [float(cell) for cell in row[3:9]] == pytest.approx(gains, rel=1e-3)
    shares = steps["scaled_joint_loss_change"][1, :, 2, 2]
    assert float(row[9]) == pytest.approx(shares.min(), rel=1e-3)
    assert row[10] == f"({steps['scale'][shares.argmin()]:g})"
    assert any(line.split()[:2] == ["rmsprop", "+"] for line in lines)
    assert any(line.split()[:4] == ["20", "0.25", "4", "largest"] for line in lines)


@pytest.mark.slow
def test_a_study_that_needs_no_checkpoint(tmp_path: Path, run: Run) -> None:
    prepare(tmp_path)
    done = run("study", "job.toml", "--only", "optimizer", "--set", "study.optimizer.exact_at=[]")
    assert done.returncode == 0, done.stderr
    result = hessdist.open_run(tmp_path / "results" / "run.h5")
    assert len(result) == 0
    assert list(result.studies) == ["optimizer"]
    assert run("show", "results/run.h5").returncode == 0
    assert run("plot", "results/run.h5").returncode == 0


@pytest.mark.slow
def test_a_signal_stops_a_study_and_it_goes_on(folder: Path) -> None:
    shutil.rmtree(folder / "results")
    assert completed(folder, "spectrum", "job.toml").returncode == 0
    parts = folder / "results" / "run.checkpoints"
    with started(folder, "study", "job.toml", ranks=2) as process:
        until(lambda: list(parts.glob("study-step_sizes*.h5")))
        os.kill(process.pid, signal.SIGUSR1)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 75, said
        assert "of 21 units of the study left; start the same command again" in said
    again = completed(folder, "study", "job.toml")
    assert again.returncode == 0
    assert "already done" in again.stdout
    assert len(hessdist.open_run(folder / "results" / "run.h5").studies) == 19


# -- what a user can get wrong ---------------------------------------------------------------


def the_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("hessdist: ")]
    assert "Traceback" not in done.stderr
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--only", "angles"], "--only angles: the job has no section [study.angles]"),
        (["--set", "study.lines.steps=[7]"], "has no step 7; there are 0, 20"),
        (["--set", 'study.lines.pairs=["smallest 9"]'], "the job has no pair 'smallest 9'"),
        (["--set", 'study.lines.pairs=["lowest"]'], "'lowest' is not a pair"),
        (["--set", "study.line.points=3"], "unknown key 'study.line'; did you mean 'lines'?"),
        (["--set", "study.lines.point=3"], "unknown key 'study.lines.point'"),
        (["--set", "study.step_sizes.count=7"], "study.step_sizes.count"),
        (["--set", "study.step_sizes.smallest=1e9"], "smallest is not below largest"),
        (["--set", "spectrum.operator=gauss_newton"], "is about the Hessian"),
        (["--set", "spectrum.tolerance=1e-5"], "is the result of another job"),
        (["--set", 'output.path="results/none.h5"'], "does not exist; run `hessdist spectrum`"),
    ],
)  # fmt: skip
def test_bad_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    """In this process: the way from an error to its line is tested with the other commands."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    before = (folder / "results" / "run.h5").read_bytes()
    with pytest.raises(InputError) as raised:
        study_job(Path("job.toml"), words)
    assert expected in str(raised.value)
    assert (folder / "results" / "run.h5").read_bytes() == before


def study_job(path: Path, words: list[str]) -> None:
    given = dict(zip(words[::2], words[1::2], strict=True))
    job, text = load_job(path, [given["--set"]] if "--set" in given else [])
    only = given["--only"].split(",") if "--only" in given else []
    with Console(enabled=False) as console:
        study(job, text, Ranks(), console, only=only)


def test_a_fraction_with_fewer_samples_than_ranks(folder: Path, run: Run) -> None:
    words = ("--only", "subsets", "--set", "study.subsets.fractions=[0.04]", "--overwrite")
    line = the_line(run("study", "job.toml", *words, ranks=3))
    assert "0.04 of 60 samples are 2, fewer than the 3 ranks; raise the fraction" in line


def test_a_block_that_is_not_there(folder: Path, run: Run) -> None:
    words = ("--only", "blocks", "--overwrite", "--set", 'study.blocks.blocks=[["fc9"]]')
    assert "study.blocks.blocks: no trainable parameter 'fc9'" in the_line(
        run("study", "job.toml", *words)
    )


def test_a_job_without_a_study(folder: Path, run: Run) -> None:
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    assert "the job asks for no study; add a section" in the_line(run("study", "job.toml"))


@pytest.mark.slow
def test_a_checkpoint_without_eigenvectors(folder: Path, run: Run) -> None:
    words = ("--set", "spectrum.eigenvectors=false", "--set", 'output.path="results/bare.h5"')
    assert run("spectrum", "job.toml", *words).returncode == 0
    line = the_line(run("study", "job.toml", *words))
    assert "step 0 has no stored eigenvectors; run `hessdist spectrum` with" in line


def test_another_checkpoint_in_its_place(folder: Path, run: Run) -> None:
    shutil.copy(folder / "checkpoints/step-00000000.pt", folder / "checkpoints/step-00000020.pt")
    line = the_line(run("study", "job.toml"))
    assert "step-00000020.pt is not the checkpoint that results/run.h5 is of" in line


SADDLE = """
from torch import nn
import torch
from torch.utils.data import TensorDataset

def samples():
    return TensorDataset(torch.ones(6, 1, dtype=torch.float64))

class Saddle(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.5]))

def loss(model, batch):
    a, b, c, d = model.theta
    return (batch[0] * (a**2 + b**2 / 2 - c**2 / 2 - d**2)).sum(), len(batch[0])
"""


@pytest.mark.slow
def test_a_direction_orthogonal_to_the_gradient_is_said(tmp_path: Path, run: Run) -> None:
    """A saddle with H = diag(2, 1, -1, -2) and a gradient in its first and last direction alone."""
    (tmp_path / "ours.py").write_text(SADDLE, encoding="utf-8")
    text = JOB.replace('"mlp"', '"ours:Saddle"').split("arguments")
    text = text[0] + text[1].split("\n", 1)[1] + '[loss]\nfactory = "ours:loss"\n'
    text = text.replace("largest = 4", "largest = 2").replace("smallest = 3", "smallest = 2")
    (tmp_path / "job.toml").write_text(text + "[study.step_sizes]\n", encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    theta = torch.tensor([1.0, 0.0, 0.0, 0.5])
    torch.save({"theta": theta}, tmp_path / "checkpoints" / "step-00000020.pt")
    done = run("spectrum", "job.toml")
    assert done.returncode == 0, done.stderr
    done = run("study", "job.toml")
    assert done.returncode == 0, done.stderr
    for pair in ("largest 2", "smallest 2"):
        assert f"{pair} is orthogonal to the gradient: α* is undefined" in done.stdout
    steps = hessdist.open_run(tmp_path / "results" / "run.h5").studies["step_sizes"]
    expected = [Found.MINIMUM, Found.ORTHOGONAL, Found.EDGE, Found.ORTHOGONAL]
    assert steps["found"][0].tolist() == expected
    assert steps["best_step"][0, 0] == pytest.approx(0.5, rel=1e-6)
    assert steps["best_loss_change"][0, 0] == pytest.approx(-1, rel=1e-6)
    assert np.isnan(steps["best_step"][0, [1, 3]]).all()
