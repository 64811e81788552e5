"""Real processes: what a user gets wrong is one line with exit status 2, and costs no result."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import DIGITS_JOB, Run
from service.sweeps import completed

import hessdist
from hessdist.spectrum.petsc import scalar_problem
from hessdist.workload.checkpoints import write_checkpoint
from hessdist.workload.models import mlp

LAST = Path("checkpoints") / "step-00000040.pt"

# The data set is the user's own: importing scikit-learn for digits would take most of a process.
JOB = DIGITS_JOB.replace('dataset = "digits"', 'dataset = "ours:images"')

OURS = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from hessdist.workload.datasets import ImageDataset

def images():
    labels = np.arange(120) % 10
    noise = np.random.default_rng(0).integers(0, 120, (120, 1, 8, 8))
    patterns = np.random.default_rng(1).integers(0, 120, (10, 1, 8, 8))
    return ImageDataset((noise + patterns[labels]).astype(np.uint8), labels)

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, images):
        return self.fc2(self.change(torch.tanh(self.fc1(images.flatten(1)))))

    def change(self, hidden):
        return hidden

class Dropping(Plain):
    def change(self, hidden):
        return F.dropout(hidden, 0.1, training=True)

class Normalising(Plain):
    def change(self, hidden):
        return F.batch_norm(hidden, None, None, training=True)

def fragile(model, batch):
    inputs, labels = batch
    value = F.cross_entropy(model(inputs), labels, reduction="sum")
    if (inputs == images()[99][0].double()).flatten(1).all(1).any():
        value = value * float("nan")
    return value, len(labels)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job, its three checkpoints and its result; made once."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    (folder / "ours.py").write_text(OURS, encoding="utf-8")
    for command in ("train", "spectrum"):
        done = completed(folder, command, "job.toml")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished folder, which is where `run` runs."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    """Every result, and a digest of its bytes."""
    files = (path for path in (folder / "results").rglob("*.h5") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def the_line(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    """The one line on standard error with which a command ended."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("hessdist: ")
    assert line.isprintable()
    return line


# -- what a user can get wrong ---------------------------------------------------------------


def nothing(folder: Path) -> None:
    """The folder is as it shall be."""


def edit_job(old: str, new: str) -> Callable[[Path], None]:
    assert old in JOB

    def prepare(folder: Path) -> None:
        (folder / "job.toml").write_text(JOB.replace(old, new, 1), encoding="utf-8")

    return prepare


def truncated_mnist(folder: Path) -> None:
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = gzip.compress(struct.pack(">HBBIII", 0, 8, 3, 9, 28, 28) + os.urandom(9 * 784))
    (raw / "train-images-idx3-ubyte.gz").write_bytes(images[: len(images) // 2])


def fewer_classes(folder: Path) -> None:
    """A checkpoint that fits a model of five outputs; the first labels are 0, 1, 2."""
    for step in (0, 20, 40):
        write_checkpoint(folder / "checkpoints", step, mlp([64, 8, 5], "tanh").double())


def truncated_checkpoint(folder: Path) -> None:
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:3000])


def checkpoint_with_nan(folder: Path) -> None:
    state = torch.load(folder / LAST, weights_only=True)
    state["fc2.weight"][3, 4] = torch.nan
    torch.save(state, folder / LAST)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("crater",)


def checkpoint_with_code(folder: Path) -> None:
    (folder / LAST).write_bytes(pickle.dumps({"fc1.weight": Bomb()}))


def regular_file(folder: Path) -> None:
    (folder / "file").write_text("mine", encoding="utf-8")


def foreign_result(folder: Path) -> None:
    (folder / "foreign.h5").write_bytes(b"something else")


class Case(NamedTuple):
    """A thing to get wrong: the words after `spectrum job.toml`, and what the line says."""

    words: Sequence[str]
    says: Sequence[str]
    prepare: Callable[[Path], None] = nothing


def override(*settings: str, overwrite: bool = True) -> list[str]:
    """Overrides; of a job with other numbers, so that the earlier result has to be given up."""
    words = [word for setting in settings for word in ("--set", setting)]
    return [*words, "--overwrite"] if overwrite else words


CASES = {
    "malformed TOML": Case(
        [], ["job.toml is not TOML", "line"], edit_job("largest = 4", "largest = ")
    ),
    "misspelt key": Case(
        [], ["'spectrum.larges'", "'largest'"], edit_job("largest = 4", "larges = 4")
    ),
    "tolerance 0": Case(override("spectrum.tolerance=0"), ["spectrum.tolerance", "greater than 0"]),
    "factory that does not import": Case(
        override("model.factory=nowhere:build"),
        ["model.factory", "'nowhere:build' does not import"],
    ),
    "data folder without the files": Case(
        override("data.dataset=mnist"), ["train-images-idx3-ubyte", "HESSDIST_DATA"]
    ),
    "truncated data file": Case(
        override("data.dataset=mnist", "data.root=data"),
        ["data/MNIST/raw/train-images-idx3-ubyte.gz cannot be read", "fetch it again"],
        truncated_mnist,
    ),
    "labels out of range": Case(
        override("model.arguments.widths=[64, 8, 5]"),
        ["labels are", "outputs 0 ... 4"],
        fewer_classes,
    ),
    "no sample": Case(
        override("data.fraction=1e-9"), ["no sample is left"], edit_job("samples = 100", "")
    ),
    "missing checkpoint folder": Case(
        override("checkpoints.directory=absent", overwrite=False),
        ["checkpoint folder absent does not exist", "hessdist train"],
    ),
    "truncated checkpoint": Case(
        [], [f"checkpoint {LAST} is truncated or damaged"], truncated_checkpoint
    ),
    "code in a checkpoint": Case([], [f"checkpoint {LAST} carries more"], checkpoint_with_code),
    "checkpoint with NaN": Case(
        [], [f"checkpoint {LAST} is not finite", "fc2.weight"], checkpoint_with_nan
    ),
    "checkpoint of another model": Case(
        override("model.arguments.widths=[64, 9, 10]"),
        ["another model", "fc1.weight is (8, 64) there and (9, 64) in the model"],
    ),
    "more eigenpairs than parameters": Case(
        override("spectrum.largest=700"), ["largest = 700", "610"]
    ),
    "output below a file": Case(
        override("output.path=file/x.h5", overwrite=False),
        ["file/x.checkpoints", "cannot be written", "output.path"],
        regular_file,
    ),
    "result of another job": Case(
        override("spectrum.largest=3", overwrite=False),
        ["results/digits.h5 is the result of another job", "spectrum.largest: 4", "--overwrite"],
    ),
    "another file in the place of the result": Case(
        override("output.path=foreign.h5", overwrite=False),
        ["foreign.h5 exists and is no result of hessdist", "move it away"],
        foreign_result,
    ),
    "dropout": Case(
        override("model={factory='ours:Dropping'}"),
        ["two passes over the same samples differ", "dropout"],
    ),
    "batch norm in training mode": Case(
        override("model={factory='ours:Normalising'}"),
        ["depends on the other samples of its batch", "batch norm"],
    ),
    "unknown option": Case(["--frobnicate"], ["--frobnicate"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_with_one_line_and_leaves_the_earlier_result(
    run: Run, folder: Path, name: str
) -> None:
    case = CASES[name]
    case.prepare(folder)
    before = digests(folder)
    assert len(before) == 4
    (folder / "empty").mkdir()
    done = run("spectrum", "job.toml", *case.words, env={"HESSDIST_DATA": str(folder / "empty")})
    line = the_line(done)
    assert [part for part in case.says if part not in line] == []
    assert digests(folder) == before
    assert not (folder / "crater").exists()


def test_another_jobs_result_is_replaced_on_request_and_only_by_a_complete_one(
    run: Run, folder: Path
) -> None:
    path, words = folder / "results" / "digits.h5", ["--set", "spectrum.largest=3", "--overwrite"]
    old, whole = hessdist.open_run(path), (folder / LAST).read_bytes()
    before = digests(folder)
    checkpoint_with_nan(folder)
    assert "is not finite" in the_line(run("spectrum", "job.toml", *words))
    assert before.items() <= digests(folder).items()
    (folder / LAST).write_bytes(whole)
    done = run("spectrum", "job.toml", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "(1 solved, 2 done before)" in done.stdout
    new = hessdist.open_run(path)
    assert new.fingerprint != old.fingerprint
    assert new.eigenvalues_largest.shape == (3, 3)
    assert new.eigenvalues_largest == pytest.approx(old.eigenvalues_largest[:, :3], rel=1e-5)
    assert new[40].eigenvectors_largest.shape == (3, 610)
    assert len(digests(folder)) == len(before)  # nothing of the old job is left behind


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["spectrum", "absent.toml"], "job file absent.toml cannot be read"),
        (["train", "absent.toml"], "job file absent.toml cannot be read"),
        (["show", "absent.h5"], "result absent.h5 does not exist"),
        (["spectrum"], "JOB"),
        (["solve", "job.toml"], "'solve'"),
        (["show", "absent.h5", "-eps_ncv", "8"], "-eps_ncv"),
    ],
)
def test_commands_that_cannot_start_say_so_in_one_line(
    run: Run, words: list[str], says: str
) -> None:
    assert says in the_line(run(*words))


def test_a_damaged_result_is_not_shown(run: Run, folder: Path) -> None:
    path = folder / "results" / "digits.h5"
    path.write_bytes(path.read_bytes()[:2000])
    line = the_line(run("show", "results/digits.h5"))
    assert "results/digits.h5 is no HDF5 file, or damaged" in line


# -- libraries that are missing --------------------------------------------------------------

HIDE = """
import os
from importlib.machinery import PathFinder

hidden, find = os.environ["HIDDEN"], PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] == hidden else find(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
"""


def with_path(folder: Path, **variables: str) -> dict[str, str]:
    """The environment with a folder in front of Python's path."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), **variables}


@pytest.mark.parametrize("library", ["petsc4py", "slepc4py", "mpi4py", "torch"])
def test_a_library_that_is_missing_is_named_with_the_remedy(
    run: Run, folder: Path, library: str
) -> None:
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    before = digests(folder)
    line = the_line(
        run("spectrum", "job.toml", env=with_path(folder / "site", HIDDEN=library)), status=2
    )
    assert library in line
    assert "install" in line
    assert digests(folder) == before


def test_a_petsc_that_does_not_load_is_named_with_what_it_says(run: Run, folder: Path) -> None:
    package = folder / "site" / "petsc4py"
    package.mkdir(parents=True)
    says = "libpetsc.so.3.18: cannot open shared object file"
    (package / "__init__.py").write_text(f"raise ImportError({says!r})\n", encoding="utf-8")
    line = the_line(run("spectrum", "job.toml", env=with_path(folder / "site")))
    assert says in line
    assert "hessdist doctor" in line


@pytest.mark.parametrize(
    ("scalar", "integer", "says"),
    [
        (np.float64, np.int32, ""),
        (np.float32, np.int64, ""),
        (np.complex128, np.int32, "complex128 scalars"),
        (np.complex64, np.int64, "complex64 scalars"),
        (np.longdouble, np.int32, "scalars"),
        (np.float64, np.int16, "int16 integers"),
    ],
)
def test_petsc_has_to_be_built_with_real_scalars(scalar: Any, integer: Any, says: str) -> None:
    problem = scalar_problem(scalar, integer)
    assert says in problem
    assert bool(problem) == bool(says)


# -- what goes right -------------------------------------------------------------------------


def test_a_finished_run_is_shown_and_drawn(run: Run, folder: Path) -> None:
    result = hessdist.open_run(folder / "results" / "digits.h5")
    assert result.steps.tolist() == [0, 20, 40]
    assert result.converged_largest.all()
    assert result.converged_smallest.all()
    shown = run("show", "results/digits.h5")
    assert (shown.returncode, shown.stderr) == (0, "")
    first, _, *rows = shown.stdout.splitlines()
    assert "3 checkpoints, 610 parameters, 100 samples" in first
    for row, step, largest in zip(
        rows, result.steps, result.eigenvalues_largest[:, 0], strict=True
    ):
        assert row.split()[0] == str(step)
        assert f"{largest:.5g}" in row.split()
        assert "4/4" in row
    drawn = run("plot", "results/digits.h5", "-o", "pictures")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    names = [f"pictures/digits-progression.{kind}" for kind in ("png", "pdf")]
    assert drawn.stdout.splitlines() == [f"figure: {name}" for name in names]
    assert all((folder / name).stat().st_size > 5000 for name in names)


def test_what_is_done_is_not_done_again(run: Run, folder: Path) -> None:
    before = digests(folder)
    done = run("spectrum", "job.toml", "--set", "compute.batch_size=50", "--set", "name=renamed")
    assert (done.returncode, done.stderr) == (0, "")
    for step in (0, 20, 40):
        assert f"step {step}: already done" in done.stdout
    assert "(0 solved, 3 done before)" in done.stdout
    parts = {path: digest for path, digest in before.items() if ".checkpoints" in path}
    assert parts.items() <= digests(folder).items()
    lines = done.stdout.splitlines()
    assert lines[1] == "result: results/digits.h5"
    assert lines[-1].startswith("result: results/digits.h5")


def test_a_changed_checkpoint_is_done_again_and_a_lost_index_rebuilt(
    run: Run, folder: Path
) -> None:
    path = folder / "results" / "digits.h5"
    before = hessdist.open_run(path)
    path.unlink()
    shutil.copy(folder / LAST, folder / "checkpoints" / "step-00000020.pt")
    done = run("spectrum", "job.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 0: already done" in done.stdout
    assert "step 40: already done" in done.stdout
    assert "(1 solved, 2 done before)" in done.stdout
    after = hessdist.open_run(path)
    assert after.loss[0] == before.loss[0]
    assert after.loss[1] == pytest.approx(before.loss[2], rel=1e-12)
    assert after.eigenvalues_largest[1] == pytest.approx(before.eigenvalues_largest[2], rel=1e-5)


def test_the_numbers_do_not_depend_on_the_batch_size(run: Run, folder: Path) -> None:
    words = ["--set", "output.path=small.h5", "--set", "compute.batch_size=7"]
    done = run("spectrum", "job.toml", *words)
    assert (done.returncode, done.stderr) == (0, "")
    small, large = (hessdist.open_run(folder / name) for name in ("small.h5", "results/digits.h5"))
    assert small.loss == pytest.approx(large.loss, rel=1e-12)
    assert small.gradient_norm == pytest.approx(large.gradient_norm, rel=1e-10)
    assert small.eigenvalues_largest == pytest.approx(large.eigenvalues_largest, rel=1e-5)
    assert small.eigenvalues_smallest == pytest.approx(large.eigenvalues_smallest, rel=1e-5)


@pytest.mark.slow
def test_pairs_that_do_not_converge_are_stored_marked_and_done_again_with_more_work(
    run: Run, folder: Path
) -> None:
    words = ["--set", "output.path=short.h5"]
    done = run("spectrum", "job.toml", *words, "-eps_max_it", "1", "-eps_ncv", "8", "-eps_view")
    assert (done.returncode, done.stderr) == (3, "")
    assert "number of column vectors (ncv): 8" in done.stdout  # PETSc's options pass through
    assert "unconverged pairs at steps 0, 20, 40" in done.stdout
    assert "-eps_max_it" in done.stdout.splitlines()[-1]
    short, whole = (hessdist.open_run(folder / name) for name in ("short.h5", "results/digits.h5"))
    assert short.eigenvalues_largest.shape == (3, 4)
    assert not short.converged_largest.all(axis=1).any()
    assert np.isfinite(short.eigenvalues_largest).all()
    assert (short.residuals_largest[~short.converged_largest] > 1e-3).all()
    assert short.products.tolist() == [8, 8, 8]
    # A Ritz value lies between the true ends.
    assert (short.eigenvalues_largest[:, 0] <= whole.eigenvalues_largest[:, 0] + 1e-9).all()
    # Doing as the line says mends it.
    again = run("spectrum", "job.toml", *words)
    assert (again.returncode, again.stderr) == (0, "")
    assert hessdist.open_run(folder / "short.h5").converged_largest.all()


def test_a_loss_that_is_not_finite_names_rank_and_batch(run: Run, folder: Path) -> None:
    words = ["--set", "loss.factory=ours:fragile", "--overwrite"]
    before = digests(folder)
    line = the_line(run("spectrum", "job.toml", *words), status=1)
    assert "rank 0: the loss of batch 3 is not finite" in line
    assert digests(folder) == before
