"""hessdist for Spack.

Put this folder into a repository of packages as py_hessdist (before Spack 1.0: py-hessdist), and
take the source that is there:

    spack develop --path $PWD py-hessdist@0.1.0
    spack install py-hessdist

The tests read it; nobody has built it yet.
"""

from spack.package import *


class PyHessdist(PythonPackage):
    """Extreme eigenpairs of a neural network's Hessian over its whole training set."""

    license("MIT")

    version("0.1.0")

    variant("mpi", default=True, description="Solve, besides reading and drawing results")
    variant("language", default=False, description="Language models and data sets of tokens")
    variant("report", default=False, description="Pages with figures that can be turned")
    variant("xarray", default=False, description="Results as xarray's data sets")
    variant("single", default=False, description="PETSc in single precision: half the memory")
    variant(
        "int64", default=False, description="64-bit integers in PETSc: 2^31 parameters and more"
    )
    variant("cuda", default=False, description="GPUs")

    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-hatchling@1.18:", type="build")
    with default_args(type="run"):
        depends_on("py-numpy@1.24:")
        depends_on("py-h5py@3.7:")
        depends_on("py-matplotlib@3.8:")
        depends_on("py-pydantic@2.9:")
        depends_on("py-rich@13.8:")
        depends_on("py-scipy@1.10:")
        depends_on("py-tomlkit@0.13.3:")
        depends_on("py-typer@0.29:")
        with when("+mpi"):
            depends_on("py-mpi4py@3.1.4:")
            depends_on("py-petsc4py@3.18:")
            depends_on("py-slepc4py@3.18:")
            depends_on("py-torch@2.6:")
            depends_on("py-safetensors@0.4:")
            depends_on("py-scikit-learn@1.4:")
            depends_on("py-threadpoolctl@3.2:")
            depends_on("petsc~complex")
            depends_on("petsc~double", when="+single")
            depends_on("petsc+double", when="~single")
            depends_on("petsc+int64", when="+int64")
            depends_on("petsc+cuda", when="+cuda")
            depends_on("py-torch+cuda", when="+cuda")
        with when("+language"):
            depends_on("py-transformers@5:")
            depends_on("py-tokenizers@0.22:")
            depends_on("py-safetensors@0.4:")
            depends_on("py-peft@0.18:")
            depends_on("py-pyarrow@17:")
        with when("+report"):
            depends_on("py-plotly@5.20:")
        with when("+xarray"):
            depends_on("py-xarray@2024.1:")
            depends_on("py-h5netcdf@1.3:")

    conflicts("+single", when="~mpi")
    conflicts("+int64", when="~mpi")
    conflicts("+cuda", when="~mpi")
