"""Whole spectra and the experiments of Sagun, Bottou and LeCun, as `hessdist study` does them."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import Run
from networks import Problem, Samples, dense, loss_along
from service.sweeps import completed, started, until
from studied import JOB, prepare
from torch.func import hessian
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import hessdist
from hessdist.config.loader import load_job
from hessdist.errors import InputError, ResultError
from hessdist.optimizers.ensemble import on_sphere
from hessdist.optimizers.training import minibatches
from hessdist.parallel.ranks import Ranks
from hessdist.results.units import Measurements
from hessdist.service.console import Console
from hessdist.service.study import study
from hessdist.spectrum.densities import SpectralDensity
from hessdist.workload.checkpoints import read_state
from hessdist.workload.models import mlp
from hessdist.workload.named_losses import LOSSES

OPERATORS = ("hessian", "gauss_newton", "empirical_fisher", "residual")


def problem(hidden: tuple[int, ...] = (5,), spread: float = 1.0) -> Problem:
    """The job's samples, and a network of its kind."""
    generator = torch.Generator().manual_seed(0)
    inputs = spread * torch.randn(60, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (60,), generator=generator)
    inputs[:, 0] += labels
    model = mlp([6, *hidden, 3], "tanh").double()
    return Problem(model, LOSSES["cross_entropy"], Samples(inputs, labels))


def at_step(folder: Path, step: int) -> Problem:
    there = problem()
    there.model.load_state_dict(read_state(folder / "checkpoints" / f"step-{step:08d}.pt"))
    return there


def section(folder: Path, name: str) -> Measurements:
    return hessdist.open_run(folder / "results" / "run.h5").studies[name]


def descended(there: Problem, theta: torch.Tensor, rate: float, tolerance: float, most: int) -> int:
    """Gradient descent by hand, the network left where it ends; its steps."""
    vector_to_parameters(theta.clone(), there.model.parameters())  # it takes its memory
    optimizer = torch.optim.SGD(there.model.parameters(), lr=rate)
    for step in range(most + 1):
        optimizer.zero_grad()
        there.loss(there.model(there.dataset.tensors[0]), there.dataset.tensors[1]).backward()
        norm = torch.cat([p.grad.reshape(-1) for p in there.model.parameters()]).norm()
        if norm <= tolerance or step == most:
            return step
        optimizer.step()
    raise AssertionError


# -- whole spectra ---------------------------------------------------------------------------


def test_exact_spectra_against_dense_ones(studied: Path) -> None:
    found, there = section(studied, "exact"), at_step(studied, 20)
    assert list(found["step"]) == [20]
    assert list(found["operator"]) == ["hessian", "gauss_newton"]
    for row, operator in enumerate(found["operator"]):
        matrix = dense(there, operator).detach().numpy() / 60
        values, vectors = np.linalg.eigh(matrix)
        assert found["eigenvalues"][0, row] == pytest.approx(values, abs=1e-13)
        run = hessdist.open_run(studied / "results" / "run.h5")
        stored = run.study_array("exact", "eigenvectors", 20)
        assert stored.shape == (2, 53, 53)
        apart = np.abs(np.diff(values, prepend=-9, append=9))
        single = np.minimum(apart[1:], apart[:-1]) > 1e-4
        overlaps = np.abs(np.einsum("ij,ji->i", stored[row], vectors))
        assert overlaps[single] == pytest.approx(np.ones(single.sum()), abs=1e-5)
        corner = matrix[:5, :5]
        assert found["picture"][0, row, 0, 0] == pytest.approx(
            corner.ravel()[np.abs(corner).argmax()]
        )
    assert (found["asymmetry"] < 1e-12).all()


def test_densities_against_dense_ones(studied: Path) -> None:
    found, there = section(studied, "density"), at_step(studied, 20)
    assert list(found["block"]) == ["fc1 + fc2", "fc2"]
    assert found["size"][0].tolist() == [[53, 18]] * 4
    for row, operator in enumerate(OPERATORS):
        whole = dense(there, operator).detach().numpy() / 60
        for column, part in enumerate((slice(0, 53), slice(35, 53))):
            at = (0, row, column)
            values = np.linalg.eigvalsh(whole[part, part])
            scale = np.abs(values).max()
            for name, exact in (
                ("trace", values.sum()),
                ("direct_trace", values.sum()),
                ("frobenius_norm", np.sqrt((values**2).sum())),
                ("log_determinant", np.log(np.maximum(values + found["shift"][at], 1e-300)).sum()),
                ("count", ((values > 0.1) & (values < 0.5)).sum()),
            ):
                error = abs(found[name][at] - exact)
                if name == "log_determinant" and scale < 1e-12:
                    continue  # S of the last layer is zero
                assert error <= 7 * found[f"{name}_error"][at] + 1e-9, f"{operator} {name}"
            nodes = found["nodes"][at][np.isfinite(found["nodes"][at])]
            assert nodes.min() >= values[0] - 1e-12
            assert nodes.max() <= values[-1] + 1e-12
            density = SpectralDensity(len(values), found["nodes"][at], found["weights"][at])
            assert density.trace().value == pytest.approx(found["trace"][at], abs=1e-12)


def test_densities_use_the_stored_pairs_of_the_same_matrix(
    studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(studied, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    words = ["study.density.blocks=[]", 'study.density.operators=["hessian", "gauss_newton"]']

    def done(*more: str) -> tuple[Measurements, str]:
        lines: list[str] = []
        job = load_job(Path("job.toml"), [*words, *more])
        with Console(enabled=False) as console:
            monkeypatch.setattr(console, "line", lines.append)
            study(*job, Ranks(), console, only=["density"], overwrite=True)
        return section(folder, "density"), " ".join(lines)

    found, said = done()
    assert found["known_pairs"].tolist() == [[[7], [0]]]  # of H, and of G, which has none
    assert "with 7 eigenpairs of the sweep" in said
    values = np.linalg.eigvalsh(dense(at_step(folder, 20), "hessian").detach().numpy() / 60)
    nodes, weights = found["nodes"][0, 0, 0], found["weights"][0, 0, 0]
    for value in (*values[:3], *values[-4:]):
        near = np.abs(nodes - value).argmin(1)
        assert nodes[range(6), near] == pytest.approx(np.full(6, value), rel=1e-9)
        assert weights[range(6), near] == pytest.approx(np.full(6, 1 / 53), rel=1e-9)
    assert weights.sum(1) == pytest.approx(np.ones(6))
    for name, exact in (("trace", values.sum()), ("frobenius_norm", np.linalg.norm(values))):
        assert abs(found[name][0, 0, 0] - exact) <= 6 * found[f"{name}_error"][0, 0, 0]
    # A vector that is none of the matrix: nothing is used, and that is said.
    (part,) = (folder / "results" / "run.checkpoints").glob("step-00000020.*.h5")
    monkeypatch.setattr("hessdist.studies.known_pairs.defect", lambda shell, known: 9.0)
    found, said = done("study.density.seed=1")
    assert not found["known_pairs"].any()
    assert "uses no stored eigenpairs: a product differs from them by 9 times" in said
    part.unlink()
    found, said = done("study.density.seed=2")
    assert not found["known_pairs"].any()
    assert "no stored eigenpairs are used" in said


# -- the experiments -------------------------------------------------------------------------


def test_architectures_against_networks_by_hand(studied: Path) -> None:
    found = section(studied, "architectures")
    assert list(found["architecture"]) == ["2", "3-2"]
    assert found["parameters"].tolist() == [23, 38]
    for row, hidden in enumerate(((2,), (3, 2))):
        size = int(found["parameters"][row])
        starts = on_sphere(range(3), size, 0.3 * size**0.5, 0)
        for network, start in enumerate(starts):
            there = problem(hidden)
            steps = descended(there, start, 0.1, 0.1, 100)
            assert found["steps"][row, network] == steps
            assert found["reached"][row, network] == (steps < 100)
            after = dense(there, "hessian").detach().numpy() / 60
            vector_to_parameters(start, there.model.parameters())
            before = dense(there, "hessian").detach().numpy() / 60
            for stage, matrix in enumerate((before, after)):
                values = found["eigenvalues"][row, network, stage]
                assert values[:size] == pytest.approx(np.linalg.eigvalsh(matrix), abs=1e-10)
                assert np.isnan(values[size:]).all()
                if network == 0:
                    shown = found["picture"][row, stage, :size, :size]
                    if size <= 30:
                        assert shown == pytest.approx(matrix, abs=1e-6)


def test_many_starts_against_networks_by_hand(studied: Path) -> None:
    many, spreads = section(studied, "initialisations"), section(studied, "spreads")
    starts = on_sphere(range(7), 53, 0.3 * 53**0.5, 0)
    for network, start in enumerate(starts):
        there = problem()
        assert many["steps"][network] == descended(there, start, 0.1, 0.1, 100)
        values = np.linalg.eigvalsh(dense(there, "hessian").detach().numpy() / 60)
        assert many["eigenvalues"][network] == pytest.approx(values[::-1][:4], abs=1e-10)
        assert many["smallest"][network] == pytest.approx(values[0], abs=1e-10)
    for row, spread in enumerate((0.5, 1.5)):
        for network, start in enumerate(starts[:4]):
            there = problem(spread=spread)
            descended(there, start, 0.1, 0.0, 20)
            values = np.linalg.eigvalsh(dense(there, "hessian").detach().numpy() / 60)
            found = spreads["eigenvalues"][row, network]
            assert found == pytest.approx(values[::-1][:2], abs=1e-10)
    assert not spreads["reached"].any()
    assert (spreads["steps"] == 20).all()
    norms = np.linalg.norm(spreads["gradient_norm"])
    assert np.isfinite(norms)
    assert norms > 0


def test_lines_between_networks_by_hand(studied: Path) -> None:
    found = section(studied, "interpolation")
    assert list(found["step"]) == [0, 10, 20]
    assert list(found["fraction"]) == [0, 0.25, 0.5, 0.75, 1]

    def path(start: int, shuffling: int | None) -> list[torch.Tensor]:
        torch.manual_seed(start)
        there = problem()
        theta = parameters_to_vector(there.model.parameters()).detach()
        torch.manual_seed(start)
        fresh = parameters_to_vector(mlp([6, 5, 3], "tanh").parameters()).detach().double()
        vector_to_parameters(fresh, there.model.parameters())
        del theta
        optimizer = torch.optim.SGD(there.model.parameters(), lr=0.1)
        inputs, labels = there.dataset.tensors
        draw = minibatches(60, 60 if shuffling is None else 16, shuffling or 0)
        points = []
        for step in range(21):
            if step % 10 == 0:
                points.append(parameters_to_vector(there.model.parameters()).detach().clone())
            picked = next(draw)
            optimizer.zero_grad()
            there.loss(there.model(inputs[picked]), labels[picked]).backward()
            optimizer.step()
        return points

    pairs = ((path(0, None), path(0, 0)), (path(0, 0), path(1, 1)))
    for row, (first, second) in enumerate(pairs):
        for column in range(3):
            apart = (second[column] - first[column]).numpy()
            assert found["distance"][row, column] == pytest.approx(np.linalg.norm(apart), abs=1e-10)
            there = problem()
            vector_to_parameters(first[column], there.model.parameters())
            losses = [loss_along(there, fraction * apart) for fraction in found["fraction"]]
            assert found["loss"][row, column] == pytest.approx(losses, abs=1e-10)
    assert found["distance"][0, 0] == 0


def test_a_hundred_networks_have_the_hessians_of_torch(studied: Path) -> None:
    """The vmapped path of figure 6 beside torch.func.hessian of one network."""
    many = section(studied, "initialisations")
    there = problem()
    descended(there, on_sphere([3], 53, 0.3 * 53**0.5, 0)[0], 0.1, 0.1, 100)
    theta = parameters_to_vector(there.model.parameters()).detach()

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces, begin = {}, 0
        for name, parameter in there.model.named_parameters():
            pieces[name] = flat[begin : begin + parameter.numel()].view_as(parameter)
            begin += parameter.numel()
        outputs = torch.func.functional_call(there.model, pieces, (there.dataset.tensors[0],))
        return there.loss(outputs, there.dataset.tensors[1])

    exact = torch.linalg.eigvalsh(hessian(loss)(theta))
    assert many["eigenvalues"][3, 0] == pytest.approx(float(exact[-1]), abs=1e-10)


# -- files -----------------------------------------------------------------------------------


def test_arrays_kept_apart_are_linked_packed_and_missed(studied: Path, tmp_path: Path) -> None:
    shutil.copytree(studied, tmp_path, dirs_exist_ok=True)
    run = hessdist.open_run(tmp_path / "results" / "run.h5")
    vectors = run.study_array("exact", "eigenvectors", 20)
    assert "eigenvectors" not in run.studies["exact"]
    with h5py.File(run.path) as file:
        link = file["studies/exact/checkpoints"].get("step-00000020", getlink=True)
        assert isinstance(link, h5py.ExternalLink)
    for words in ((), ("--without-eigenvectors",)):
        packed = tmp_path / "one.h5"
        packed.unlink(missing_ok=True)
        done = completed(tmp_path, "pack", "results/run.h5", "-o", "one.h5", *words)
        assert done.returncode == 0, done.stderr
        alone = hessdist.open_run(packed)
        assert alone.studies.keys() == run.studies.keys()
        if words:
            with pytest.raises(ResultError, match="no array 'eigenvectors'"):
                alone.study_array("exact", "eigenvectors", 20)
        else:
            assert np.array_equal(alone.study_array("exact", "eigenvectors", 20), vectors)
    folder = hessdist.open_run(tmp_path / "results" / "run.checkpoints")
    assert np.array_equal(folder.study_array("exact", "eigenvectors", 20), vectors)
    (part,) = (tmp_path / "results" / "run.checkpoints").glob("study-exact.*.h5")
    part.unlink()
    with pytest.raises(ResultError, match="no array 'eigenvectors'"):
        run.study_array("exact", "eigenvectors", 20)


def test_whole_spectra_need_no_sweep_and_follow_the_checkpoint(tmp_path: Path, run: Run) -> None:
    prepare(tmp_path)
    words = ("job.toml", "--only", "exact", "--set", "study.exact.steps=[]")
    assert run("train", "job.toml").returncode == 0
    done = run("study", *words)
    assert done.returncode == 0, done.stderr
    assert "(2 units done, 0 done before)" in done.stdout
    assert "53 eigenvalues: 0.00 GiB a rank at most, about" in done.stdout
    result = hessdist.open_run(tmp_path / "results" / "run.h5")
    assert len(result) == 0
    assert list(result.studies["exact"]["step"]) == [0, 20]
    # Another checkpoint of the step: done again.
    there = tmp_path / "checkpoints"
    shutil.copy(there / "step-00000000.pt", there / "step-00000020.pt")
    done = run("study", *words)
    assert "(1 units done, 1 done before)" in done.stdout, done.stderr
    values = hessdist.open_run(tmp_path / "results" / "run.h5").studies["exact"]["eigenvalues"]
    assert values[0] == pytest.approx(values[1], abs=1e-14)


# -- what users get wrong --------------------------------------------------------------------

LENET = [
    'model.factory="lenet"',
    "model.arguments={image_size=8}",
    'data.dataset="digits"',
    "data.samples=9",
]
BAD = [
    ("exact", LENET, r"325,514 parameters takes 2368\.4 GiB on .* GiB are free"),
    ("density", ["study.density.probes=0"], "study.density.probes: Input should be greater"),
    ("density", ["study.density.interval=[2.0, 1.0]"], "interval is empty"),
    ("density", ['study.density.blocks=[["fc9"]]'], "study.density.blocks: no trainable"),
    ("density", ["study.density.steps=[7]"], "has no step 7"),
    ("architectures", LENET, "varies the hidden widths of an mlp"),
    ("architectures", ["study.architectures.hidden=[]"], "hidden is empty"),
    ("initialisations", ["model.arguments.widths=[6, 300, 3]"], "the model has 3,003"),
    ("spreads", ['study.spreads.argument="width"'], "width"),
    ("architectures", ["loss.l2=0.1"], "trains without a penalty, and loss.l2 is 0.1"),
    ("interpolation", ["study.interpolation.every=7"], "not a multiple of every = 7"),
]


@pytest.mark.parametrize(("only", "settings", "message"), BAD)
def test_bad_input_is_named(
    studied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    only: str,
    settings: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(studied)
    monkeypatch.syspath_prepend(studied)
    out = f'output.path="{tmp_path}/run.h5"'
    with Console(enabled=False) as console, pytest.raises(InputError, match=message):
        study(*load_job(Path("job.toml"), [out, *settings]), Ranks(), console, only=[only])
    assert not (tmp_path / "run.h5").exists()


def test_networks_that_do_not_arrive_and_intervals_without_eigenvalues_are_said(
    tmp_path: Path, run: Run
) -> None:
    prepare(tmp_path)
    assert run("train", "job.toml").returncode == 0
    words = (
        "--only",
        "initialisations,density",
        "--set",
        "study.initialisations.learning_rate=1e200",
    )
    words += ("--set", "study.density.interval=[50.0, 60.0]", "--set", "study.density.shift=1e-9")
    done = run("study", "job.toml", "--only", "initialisations,density", *words)
    assert done.returncode == 0, done.stderr
    assert "0 of 7 networks reached the gradient norm" in done.stdout
    assert "no eigenvalue seen in [50, 60]; they reach from" in done.stdout
    assert "no log-determinant with shift 1e-09" in done.stdout
    found = section(tmp_path, "initialisations")
    assert not found["reached"].any()


@pytest.mark.slow
def test_a_signal_stops_training(tmp_path: Path) -> None:
    prepare(tmp_path)
    text = (
        JOB + "[study.initialisations]\nnetworks = 50\nmax_steps = 100000000\ntolerance = 1e-30\n"
    )
    (tmp_path / "job.toml").write_text(text, encoding="utf-8")
    with started(tmp_path, "study", "job.toml", ranks=2) as process:
        until(lambda: (tmp_path / "results" / "run.checkpoints").exists())
        time.sleep(3)  # it trains for ever
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=30) == 75
