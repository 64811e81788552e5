"""Parts that are right alone and wrong together: MPI libraries, launchers, threads, NumPy, locks.

Each function looks at one such pair, and returns what is found in a line, with its remedy. An empty
remedy says that nothing is wrong.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from hessdist.results.opening import NO_LOCKS

# Loads mpi4py, and then a library, in a process that starts no MPI, and prints the files of MPI
# libraries that are there after each. The linker takes a library of the same name only once, so
# what the second line has more than the first is another MPI.
_LOAD = """
import ctypes, sys
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
def show():
    print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line}))
show()
ctypes.CDLL(sys.argv[1])
show()
"""


def foreign_mpi(extension: Path) -> tuple[str, str]:
    """Find the MPI library that an extension module brings beside the one of mpi4py.

    Not collective. Nothing is loaded into this process.

    Args:
        extension: The module's file, such as petsc4py's.

    Returns:
        The files of mpi4py's library and of the other one; both empty where there is one library
        only, or where it cannot be found out.
    """
    words = [sys.executable, "-c", _LOAD, str(extension)]
    try:
        done = subprocess.run(  # noqa: S603 (our own words)
            words, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) != 2:
        return "", ""
    before, after = map(_mpi_libraries, lines)
    others = after - before
    return (min(before), min(others)) if before and others else ("", "")


def _mpi_libraries(line: str) -> set[str]:
    """The MPI libraries themselves among files, without those for C++ and Fortran."""
    own = re.compile(r"libmpi(ch|_abi|_cray|_gnu_\w+|_intel\w*|_nvidia\w*|_mt)?\.so[.\d]*$")
    return {word for word in line.split() if own.match(Path(word).name)}


def slurm_launch(library: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Say with which word srun starts ranks of this MPI. Not collective.

    Args:
        library: What the MPI library says of itself.
        environment: The environment variables.

    Returns:
        What `srun --mpi=list` has, and the remedy where this MPI can use none of it; None outside
        of an allocation, or where there is no srun.
    """
    srun = shutil.which("srun", path=environment.get("PATH"))
    if "SLURM_JOB_ID" not in environment or srun is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 (the srun of the PATH, as a user would start it)
            [srun, "--mpi=list"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    kinds = re.findall(r"\b(?:pmix|pmi2|cray_shasta)\b", done.stdout + done.stderr)
    found = ", ".join(dict.fromkeys(kinds)) or "none"
    said = library.lower()
    if "open mpi" in said:
        usable = ["pmix"] if _major(library) >= 5 else ["pmix", "pmi2"]
    elif "cray" in said:
        usable = ["cray_shasta", "pmi2"]
    else:
        usable = ["pmi2", "pmix"]
    chosen = next((kind for kind in usable if kind in kinds), "")
    if chosen:
        return f"srun --mpi=list has {found}; for this MPI: srun --mpi={chosen}", ""
    return (
        f"srun --mpi=list has {found}: under srun, every rank would be alone",
        f"start ranks by mpirun, or ask for Slurm's plugin {usable[0]}",
    )


def _major(library: str) -> int:
    """The first number of a version in a text; 0 where there is none."""
    found = re.search(r"v?(\d+)\.\d+", library)
    return int(found.group(1)) if found else 0


def thread_surplus(threads: str | None, share: int, ranks_here: int, node_cores: int) -> str:
    """Say how to have no more threads than cores. Not collective.

    Args:
        threads: OMP_NUM_THREADS, if it is set.
        share: Threads that are this rank's share of the cores on which it may run.
        ranks_here: Ranks on this node.
        node_cores: Cores of the node.

    Returns:
        The remedy; empty where threads do not exceed cores.
    """
    if ranks_here > node_cores:
        return f"start at most {node_cores} ranks on a node: here they take turns on its cores"
    first = (threads or "").split(",")[0].strip()
    if first.isdigit() and int(first) > share:
        return (
            f"set OMP_NUM_THREADS={share}, or leave it out: {first} threads of a rank take turns "
            f"on {share} core{'s' * (share > 1)}; or give ranks more (srun --cpus-per-task)"
        )
    return ""


def numpy_remedy(said: str) -> str:
    """Recognise a module that is built for another major version of NumPy, by its error.

    Args:
        said: The text of the error.

    Returns:
        The remedy; empty where the error is another.
    """
    signs = (
        "compiled using NumPy 1", "numpy.core.multiarray failed to import", "_ARRAY_API not found",
        "compiled against ABI version", "compiled against API version", "numpy.dtype size changed",
        "numpy.ndarray size changed", "Numpy is not available", "numpy._core",
    )  # fmt: skip
    if not any(sign in said for sign in signs):
        return ""
    major = int(np.__version__.split(".")[0])
    other = "'numpy<2'" if major >= 2 else "'numpy>=2'"
    return (
        f"it is built for another NumPy than {np.__version__}: install a build for NumPy {major}"
        f", or pip install {other}"
    )


def file_locks(folder: Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """Say whether HDF5 locks files, and whether the file system has locks. Not collective.

    Args:
        folder: A folder in which results are written.
        environment: The environment variables.

    Returns:
        What is found, and the remedy where files cannot be opened.
    """
    value = environment.get("HDF5_USE_FILE_LOCKING", "")
    off = value.upper() in ("FALSE", "0")
    try:
        with TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locks = True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return "this folder cannot be written to, so that locks are not tried", ""
        locks = False
    where = f"on {_file_system(folder)}"
    if locks and off:
        return (
            f"off by HDF5_USE_FILE_LOCKING={value}, though files can be locked {where}: nothing "
            "keeps a reader from a file that is being written",
            "",
        )
    if locks or off:
        return f"{'off' if off else 'on'}, {where}", ""
    if value.upper() == "BEST_EFFORT":
        return f"as far as they go {where}, which has none", ""
    return (
        f"on, and files cannot be locked {where}: HDF5 opens no file there",
        "set HDF5_USE_FILE_LOCKING=FALSE, or use another file system (Lustre: mounted with flock)",
    )


def _file_system(folder: Path) -> str:
    """The type of the file system of a folder, as the kernel names it."""
    here = str(folder.resolve())
    best, kind = "", "an unknown file system"
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return kind
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        place = words[1].replace("\\040", " ").rstrip("/")
        if (here == place or here.startswith(place + "/")) and len(place) >= len(best):
            best, kind = place, words[2]
    return kind


def tf32_remedy(environment: Mapping[str, str]) -> str:
    """Say how to have float32 where a variable switches TF32 on. Not collective.

    Args:
        environment: The environment variables.

    Returns:
        The remedy; empty where no variable does.
    """
    name = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
    if environment.get(name, "0").strip() in ("", "0"):
        return ""
    return f"unset {name}: it rounds the factors of your own training's products to 10 bits"


def product_error() -> float:
    """Return the relative error of a float32 matrix product on the GPU, as it is switched now."""
    import torch

    one, other = torch.rand(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = one.double() @ other.double()
    found = (one.cuda() @ other.cuda()).cpu().double()
    return float((found - exact).norm() / exact.norm())


def gpu_memory_of_mpi(takes: bool, environment: Mapping[str, str]) -> tuple[str, str]:
    """Say whether MPI moves the GPU's memory, and what it means. Not collective.

    Args:
        takes: Whether the library is taken to do so (`gpu_aware.mpi_takes_device_memory`).
        environment: The environment variables.

    Returns:
        What is found, and the remedy where the answer is forced.
    """
    forced = environment.get("HESSDIST_GPU_AWARE_MPI", "")
    if forced == "1":
        return (
            "yes, because HESSDIST_GPU_AWARE_MPI=1 says so",
            "unset HESSDIST_GPU_AWARE_MPI if ranks end by a segmentation fault",
        )
    if takes:
        return "yes: vectors go from GPU to GPU", ""
    switch = "MPICH_GPU_SUPPORT_ENABLED=1 (Cray), MV2_USE_CUDA=1 (MVAPICH2)"
    return f"no: vectors go through host memory, which takes time; {switch} or an MPI with CUDA", ""
