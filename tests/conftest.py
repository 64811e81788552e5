"""What the tests share: how ranks are started, where data is, small problems."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import one_start
import pytest
import ready

# Open MPI: as root it must be told twice, and three ranks on two cores are asked for on purpose.
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
os.environ.setdefault("OMPI_MCA_rmaps_base_oversubscribe", "1")
os.environ.setdefault("OMPI_MCA_hwloc_base_binding_policy", "none")
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
os.environ.setdefault("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe")  # Open MPI 5
os.environ.setdefault("PRTE_MCA_hwloc_default_binding_policy", "none")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
HESSDIST = [sys.executable, "-m", "hessdist"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.hookimpl(trylast=True)  # after pytest-isolate-mpi, so as to be asked before it
def pytest_configure(config: pytest.Config) -> None:
    """Let all tests of one number of ranks share one `mpirun`."""
    one_start.register(config)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none of them is alone at the end."""
    longest = ("service/test_slurm", "test_reference", "studies/test_study", "service", "zoo")

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return next((i for i, one in enumerate(longest) if name.startswith(one)), len(longest))

    items.sort(key=place)


@cache
def _is_open_mpi() -> bool:
    """Whether the mpirun is Open MPI's. Hydra's ranks need open files that a fork lacks."""
    words = ["mpirun", "--version"]
    return "Open MPI" in subprocess.run(words, capture_output=True, text=True, check=False).stdout


def hessdist_words(env: Mapping[str, str], ranks: int = 0) -> list[str]:
    """The words that start hessdist in a third of the time (`ready.py`), in this environment.

    Where variables differ that can matter to imports, or it cannot be a rank, it starts as usual.
    """
    if ranks and not _is_open_mpi():
        return HESSDIST
    socket, known = _ready_server()
    changed = {name for name, _ in {*env.items()} ^ {*known.items()}}
    # The last three are set by libraries that the tests import.
    harmless = ("HESSDIST_", "PYTEST_", "KMP_", "OPENBLAS_", "TORCHINDUCTOR_")
    if all(name.startswith(harmless) for name in changed):
        return [sys.executable, "-S", "-E", ready.__file__, socket]
    return HESSDIST


@cache
def _ready_server() -> tuple[str, dict[str, str]]:
    """Start the server of `ready.py`, which ends with this process.

    Returns:
        Its socket, and its environment.
    """
    folder = tempfile.mkdtemp(prefix="ready")
    atexit.register(shutil.rmtree, folder)
    socket, environment = f"{folder}/socket", dict(os.environ)
    server = subprocess.Popen(
        [sys.executable, ready.__file__, "--serve", socket],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return socket, environment


@pytest.fixture(autouse=True, scope="module")
def _forget_modules_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the users' modules that a test module has written, since others use their names."""
    yield
    base = tmp_path_factory.getbasetemp()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and Path(file).is_relative_to(base):
            del sys.modules[name]
    sys.path[:] = [entry for entry in sys.path if not Path(entry).is_relative_to(base)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command line as users do, in a folder of the test's own, on some ranks."""

    def start(
        *words: str, ranks: int = 0, timeout: float = 120, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        launcher = ["mpirun", "-n", str(ranks)] if ranks else []
        environment = {**os.environ, **(env or {})}
        return subprocess.run(
            [*launcher, *hessdist_words(environment, ranks), *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return start


@pytest.fixture
def data_root() -> Path:
    """The folder with MNIST and CIFAR-10; the test is skipped where there is none."""
    named = os.environ.get("HESSDIST_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("HESSDIST_DATA names no folder with MNIST and CIFAR-10")
    return Path(named)


DIGITS_JOB = """
name = "digits"

[model]
factory = "mlp"
arguments = { widths = [64, 8, 10], activation = "tanh" }

[data]
dataset = "digits"
samples = 100
subset = "first"

[training]
optimizer = "sgd"
learning_rate = 0.5
steps = 40
checkpoint_steps = [0, 20, 40]

[checkpoints]
directory = "checkpoints"

[spectrum]
largest = 4
smallest = 2

[compute]
dtype = "float64"
batch_size = 32

[output]
path = "results/digits.h5"
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A small job on scikit-learn's digits, 610 parameters."""
    path = tmp_path / "job.toml"
    path.write_text(DIGITS_JOB, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job, its result and all its studies; not to be changed.

    Processes that run tests beside each other share it: the first makes it, the others wait.
    """
    from service.sweeps import completed
    from studied import prepare

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "studied"
    with (folder.parent / "studied.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            folder.mkdir()
            prepare(folder)
            for command in ("train", "spectrum", "study"):
                done = completed(folder, command, "job.toml", timeout=240)
                assert done.returncode == 0, done.stderr
            (folder / "done").touch()
    return folder
