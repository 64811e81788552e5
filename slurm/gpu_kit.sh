#!/bin/bash
# A folder with everything that a bare machine with a GPU, Python 3.12 and PyTorch lacks, and one script to run there.
#
#     bash slurm/gpu_kit.sh [--mnist FOLDER] KIT
#
# It is made on a machine without a GPU, where pip and a compiler work, from the repository's root. `--help` has the rest.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: gpu_kit.sh [--mnist FOLDER] KIT

Makes the folder KIT, of less than 60 MiB. Copy it to a machine that has Python 3.12, PyTorch, NumPy 2 and h5py, and start

    bash KIT/run_all.sh

there: nothing is downloaded, nothing is installed outside of PREFIX, and it ends within eight minutes.

  KIT             the folder, which is made anew
  --mnist FOLDER  folder with MNIST/raw/*.gz, as torchvision has it; default: $HESSDIST_DATA; without, images are random

variables:
  PYTHON   a Python of the machine's version, with pip and venv (python3.12)
  PREFIX   where PETSc is built here and unpacked there: the same path on both machines (/tmp/hessdist-kit)
  PETSC    version of PETSc, SLEPc, petsc4py and slepc4py (3.26.1)
  BLAS     a libopenblas.so.0 with LAPACK; default: the one that the linker knows
  JOBS     processes of make (2)

What is in PREFIX already, from an earlier run, is not built again. The C library of the machine must not be older than the
one here.
TEXT
}

fail() {
    echo "gpu_kit.sh: $1" >&2
    exit 2
}

mnist=${HESSDIST_DATA:-} words=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --mnist) mnist=${2:?--mnist wants a folder} && shift ;;
        -*) fail "unknown option $1 (see --help)" ;;
        *) words+=("$1") ;;
    esac
    shift
done
[ ${#words[@]} -eq 1 ] || fail "give the folder of the kit (see --help)"
kit=${words[0]}
python=${PYTHON:-python3.12} prefix=${PREFIX:-/tmp/hessdist-kit} petsc=${PETSC:-3.26.1} jobs=${JOBS:-2}

# -- what is there ---------------------------------------------------------------------------

# A library by its name, such as libopenblas.so.0: the file itself.
library() { ldconfig -p | sed -n "s/^[[:space:]]*$1 .*=> //p" | head -n 1; }

[ -f slurm/gpu_kit/run_all.sh ] || fail "start it from the repository's root"
case $prefix in /*) ;; *) fail "PREFIX is $prefix: give a path from the root, which both machines have" ;; esac
"$python" -c '' 2>/dev/null || fail "there is no $python: name a Python of the machine's version in PYTHON"
for tool in cc make git tar xz strip; do
    command -v "$tool" >/dev/null || fail "$tool is missing: install it first"
done
blas=${BLAS:-$(library libopenblas.so.0)}
[ -f "$blas" ] || fail "there is no libopenblas.so.0 (Debian: libopenblas0-pthread): name one in BLAS"
if [ -n "$mnist" ] && [ ! -d "$mnist/MNIST/raw" ]; then fail "$mnist has no MNIST/raw: name another folder by --mnist"; fi

# -- the stack -------------------------------------------------------------------------------

# Packages of Python that PyTorch does not bring.
packages=(scipy pydantic typer rich tomlkit threadpoolctl safetensors pytest pytest-timeout pytest-isolate-mpi)

pip() { env PIP_NO_CACHE_DIR=1 "$prefix/env/bin/python" -m pip --disable-pip-version-check "$@"; }

# OpenBLAS for all processors, with the run-time libraries of Fortran that it takes.
copy_blas() {
    local name file
    mkdir -p "$prefix/lib"
    cp -L "$blas" "$prefix/lib/libopenblas.so.0"
    ln -sf libopenblas.so.0 "$prefix/lib/libopenblas.so"
    for name in libgfortran.so.5 libquadmath.so.0; do
        file=$(library "$name")
        [ -z "$file" ] || cp -L "$file" "$prefix/lib/$name"
    done
}

build() {
    local package site
    site=$("$prefix/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    export PATH=$prefix/env/bin:$PATH LD_LIBRARY_PATH=$prefix/lib MPICC=$prefix/env/bin/mpicc
    export LDFLAGS="-Wl,-rpath,$prefix/lib"
    export PETSC_CONFIGURE_OPTIONS="--with-fc=0 --with-cxx=0 --with-cudac=0 --with-debugging=0 --with-x=0 \
--with-make-np=$jobs --with-blaslapack-lib=[-L$prefix/lib,-lopenblas]"
    unset PETSC_DIR PETSC_ARCH SLEPC_DIR PYTHONPATH
    for package in petsc petsc4py slepc slepc4py; do
        if ! pip show -q "$package" 2>/dev/null; then
            echo "gpu_kit.sh: building $package $petsc"
            case $package in
                *4py) # single files of 700,000 lines, whose optimisation takes 2 GiB and minutes
                    CFLAGS=-O0 pip install -q --no-deps --no-build-isolation "$package==$petsc" ;;
                *) pip install -q --no-deps "$package==$petsc" ;;
            esac
        fi
        case $package in # without these, and in isolation, pip builds each again, for itself
            petsc) export PETSC_DIR=$site/petsc ;;
            slepc) export SLEPC_DIR=$site/slepc ;;
        esac
    done
}

"$python" -m venv "$prefix/env"
copy_blas
pip install -q setuptools cython numpy # for the build alone
pip install -q --no-deps mpich mpi4py # an MPI of its own, since the machine's mpi4py may be of any
(build)
pip install -q --only-binary :all: "${packages[@]}"
version=$("$prefix/env/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# -- the folder ------------------------------------------------------------------------------

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stack=$work/stack
mkdir -p "$stack/env/bin" "$stack/env/lib"
# At their own paths: PETSc knows where MPI lies, and petsc4py where PETSc does. No Python goes along.
cp -a "$prefix/lib" "$stack/lib"
cp -a "$prefix/env/lib"/libmpi.so* "$prefix/env/lib/mpich" "$stack/env/lib/"
cp -a "$prefix/env/bin"/{mpirun,mpiexec,mpiexec.hydra} "$prefix/env/bin"/hydra_* "$stack/env/bin/"
packed=env/lib/python$version/site-packages
mkdir -p "$stack/$packed"
unwanted=() # what the build alone takes, or the machine has
for name in pip setuptools _distutils_hack distutils numpy cython Cython pyximport mpich {petsc,slepc}{,4py}/{include,share}; do
    unwanted+=("--exclude=./$name" "--exclude=./${name}[-.]*")
done
tar -C "$prefix/$packed" --anchored "${unwanted[@]}" \
    --no-anchored --exclude='__pycache__' --exclude='tests' --exclude='*.a' -cf - . |
    tar -C "$stack/$packed" -xf -
# Only what was built here, and MPI: libraries of wheels whose headers were edited do not survive it.
find "$stack/lib" "$stack/env/lib"/libmpi.so.12 "$stack/$packed"/{petsc,slepc}* -name '*.so*' -type f \
    -exec strip --strip-unneeded {} + 2>/dev/null || true # some are texts for the linker
rm -rf "$kit"
mkdir -p "$kit"
XZ_OPT="-4 -T0" tar -C "$stack" -cJf "$kit/stack.tar.xz" .
git archive --format=tar.gz -o "$kit/hessdist.tar.gz" HEAD hessdist tests jobs pyproject.toml
cp slurm/gpu_kit/run_all.sh "$kit/"
if [ -n "$mnist" ]; then
    mkdir -p "$kit/MNIST/raw"
    cp -L "$mnist"/MNIST/raw/train-*.gz "$kit/MNIST/raw/"
    chmod u+w "$kit/MNIST/raw"/*
fi
cat > "$kit/kit.env" <<TEXT
prefix=$prefix
python=$version
made=$(git rev-parse --short HEAD)-$(date +%Y%m%dT%H%M%S)
TEXT
size=$(du -sm "$kit" | cut -f 1)
echo "gpu_kit.sh: $kit has $size MiB; there: bash $(basename "$kit")/run_all.sh"
[ "$size" -lt 60 ] || fail "$kit has $size MiB, and 60 is the limit: leave MNIST out"
