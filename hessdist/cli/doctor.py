"""The checks of `hessdist doctor`: what is installed, what is wrong, and how to fix it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hessdist.cli import mismatches
from hessdist.errors import DependencyError, HessdistError, InputError
from hessdist.parallel.ranks import Ranks, check_launcher, import_mpi, launched_rank
from hessdist.spectrum import petsc

_PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}
"""What a module's package is called where the names differ."""


@dataclass(frozen=True)
class Component:
    """A component that hessdist depends on."""

    what: str
    found: str
    remedy: str = ""  # empty if nothing is wrong


def examine() -> list[Component]:
    """Check everything that hessdist depends on. Collective under a launcher.

    Returns:
        The components, each after those that it depends on.
    """
    from hessdist import __version__

    components = [
        Component("hessdist", __version__),
        Component("Python", f"{sys.version.split()[0]} ({sys.executable})"),
    ]
    for check in (_torch, _mpi, _slurm, _gpus, _petsc, _hdf5, _threads, _memory):
        # What is missing is said once, also where several checks take it.
        components += [part for part in _guarded(check) if part not in components]
    libraries = (
        "numpy", "h5py", "scipy", "sklearn", "matplotlib", "xarray", "h5netcdf", "safetensors",
    )  # fmt: skip
    for name in libraries:
        components += _guarded(lambda name=name: [_library(name)])  # type: ignore[misc]
    return components


def _guarded(check: Callable[[], list[Component]]) -> list[Component]:
    own = check.__name__.strip("_")
    try:
        return check()
    except HessdistError as error:
        return [Component(own, error.what, mismatches.numpy_remedy(error.what) or error.remedy)]
    except ImportError as error:
        name = (error.name or own).split(".")[0]
        remedy = mismatches.numpy_remedy(str(error)) or f"pip install {_PACKAGES.get(name, name)}"
        return [Component(name, f"missing ({error})", remedy)]
    except (AttributeError, RuntimeError, ValueError) as error:
        remedy = mismatches.numpy_remedy(str(error))
        if not remedy:
            raise
        return [Component(own, f"cannot be imported ({error})", remedy)]


def _library(name: str) -> Component:
    module = importlib.import_module(name)
    return Component(name, str(getattr(module, "__version__", None) or metadata.version(name)))


def _torch() -> list[Component]:
    import numpy as np
    import torch

    torch.from_numpy(np.zeros(1))  # refused where PyTorch is built for another NumPy
    components = [Component("torch", torch.__version__)]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        hidden = built and Path("/dev/nvidia0").exists()
        remedy = "check the driver (nvidia-smi)" if hidden else ""
        return [*components, Component("GPUs", "PyTorch finds none", remedy)]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [*components, Component("GPUs", f"{len(names)}: {', '.join(sorted(set(names)))}")]


def _mpi() -> list[Component]:
    import mpi4py

    MPI = import_mpi()  # noqa: N806 (the module's own name)
    ranks = Ranks(MPI.COMM_WORLD)
    library = MPI.Get_library_version().split("\n")[0].strip("\0")
    components = [Component("mpi4py", mpi4py.__version__), Component("MPI", library)]
    remedy = ""
    try:
        check_launcher(os.environ, ranks.size)
    except InputError as error:
        remedy = str(error)
    return [
        *components,
        Component("ranks", f"{ranks.size}, {ranks.node()[1]} on this node", remedy),
    ]


def _slurm() -> list[Component]:
    """Say with which word srun starts ranks of this MPI, on the rank that speaks."""
    # Outside of an allocation a missing mpi4py would be named here a second time.
    if launched_rank() != 0 or "SLURM_JOB_ID" not in os.environ:
        return []
    found = mismatches.slurm_launch(import_mpi().Get_library_version(), os.environ)
    return [] if found is None else [Component("srun", *found)]


def _gpus() -> list[Component]:
    """Say what is doubtful where there is a GPU: memory in MPI, and TF32."""
    import torch

    from hessdist.parallel.gpu_aware import mpi_takes_device_memory
    from hessdist.parallel.host import exact_kernels

    remedy = mismatches.tf32_remedy(os.environ)
    if not torch.cuda.is_available():
        return [Component("TF32", "switched on by a variable", remedy)] if remedy else []
    import_mpi()
    moved = mismatches.gpu_memory_of_mpi(mpi_takes_device_memory(), os.environ)
    with exact_kernels():
        error = mismatches.product_error()
    if error > 1e-5:
        remedy = "hessdist cannot switch it off here: use float64 (compute.dtype), or the CPU"
    found = f"off in products of hessdist, whose float32 has an error of {error:.0e}"
    return [Component("GPU memory", *moved), Component("TF32", found, remedy)]


def _petsc() -> list[Component]:
    petsc.require()
    import_mpi()  # reports an MPI that cannot start, before PETSc starts it
    import petsc4py
    import slepc4py

    _require_one_mpi(Path(petsc4py.__file__).parent)

    PETSc, _ = petsc.initialise()  # noqa: N806 (the module's own name)
    types = f"{PETSc.ScalarType.__name__} scalars, {PETSc.IntType.__name__} integers"
    components = [
        Component("PETSc", f"{'.'.join(map(str, PETSc.Sys.getVersion()))}, {types}"),
        Component("petsc4py", f"{petsc4py.__version__} ({petsc4py.get_config()['PETSC_DIR']})"),
    ]
    if petsc.scalar_bytes() == 4:
        components.append(_single_precision())
    same = petsc4py.__version__.split(".")[:2] == slepc4py.__version__.split(".")[:2]
    remedy = "" if same else "install slepc4py of PETSc's version"
    return [*components, Component("slepc4py", slepc4py.__version__, remedy)]


def _single_precision() -> Component:
    """Say what a PETSc in single precision means."""
    return Component(
        "precision",
        "single: the basis takes half the memory, and residuals end at 1e-6 to 2e-6 of the largest "
        "|λ|, as with float32 products; use float64 PETSc for tighter tolerances",
    )


def _require_one_mpi(package: Path) -> None:
    """Check, before PETSc starts, that it is linked with the MPI of mpi4py."""
    for extension in sorted(package.glob("lib/**/PETSc*.so"))[:1]:
        ours, other = mismatches.foreign_mpi(extension)
        if other:
            raise DependencyError(
                f"PETSc is linked with {other}, and mpi4py with {ours}: ranks of the one are not "
                "known to the other",
                "install both for one MPI; mpi4py's wheel takes the one that MPI4PY_LIBMPI names",
            )


def _hdf5() -> list[Component]:
    import h5py

    parallel = "with MPI" if h5py.get_config().mpi else "serial"
    return [
        Component("HDF5", f"{h5py.version.hdf5_version}, {parallel}"),
        Component("HDF5 locks", *mismatches.file_locks(Path.cwd(), os.environ)),
    ]


def _threads() -> list[Component]:
    cores = len(os.sched_getaffinity(0))
    given = os.environ.get("OMP_NUM_THREADS")
    found = f"{cores}, OMP_NUM_THREADS {given or 'not set'}"
    try:
        _, here, share = Ranks().node()
    except InputError:  # a launcher that MPI does not know, of which `_mpi` speaks
        return [Component("cores", found)]
    remedy = mismatches.thread_surplus(given, share, here, os.cpu_count() or cores)
    return [Component("cores", found, remedy)]


def _memory() -> list[Component]:
    """Say how many parameters a rank takes as a whole."""
    from hessdist.parallel.ranks import choose_device
    from hessdist.parallel.room import memory_of_rank
    from hessdist.spectrum.memory_plan import basis_sizes
    from hessdist.spread.memory import most_parameters

    try:
        ranks = Ranks()
    except InputError:  # a launcher that MPI does not know, of which `_mpi` speaks
        return []
    memory = memory_of_rank(ranks, choose_device("auto", ranks.node()[0]))
    vectors = basis_sizes(23, sys.maxsize)[1]  # of LA(20) and SA(3)
    most = most_parameters(ranks.size, vectors, memory)
    return [
        Component(
            "memory",
            f"{memory / 2**30:.3g} GiB a rank: about {most:.2g} parameters for LA(20) and SA(3) on "
            f"{ranks.size} rank{'s' * (ranks.size > 1)}; compute.shards spreads more",
        )
    ]
