#!/bin/bash
# PETSc, petsc4py, SLEPc and slepc4py with CUDA, from source archives, on a node with GPUs and no network.
#
#     sbatch slurm/build_petsc_cuda.sh ARCHIVES PREFIX
#
# Not yet run with CUDA by the authors, who have no GPU: tests/test_slurm_scripts.py runs what can run without one. Submit
# it, or start it with bash, from the repository's root. `--help` has the rest.
#SBATCH --job-name=build-petsc-cuda
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: build_petsc_cuda.sh [--dry-run] [--no-check] ARCHIVES PREFIX

Builds PETSc, petsc4py, SLEPc and slepc4py with CUDA and real scalars, and runs `python -m pytest -m gpu` with them.
Nothing is downloaded.

  ARCHIVES    folder with petsc-3.X.Y.tar.gz and slepc-3.X.Z.tar.gz, of one minor version X, 20 or later
  PREFIX      folder to install into; the sources are unpacked in PREFIX/build
  --dry-run   print the commands and run none
  --no-check  leave the GPU checks out

variables:
  PETSC_ARCHIVE, SLEPC_ARCHIVE   file names in ARCHIVES, where there are several
  PRECISION   double (default) or single
  INDICES     32 (default) or 64 bits: 64 for 2^31 parameters and more
  CUDA_ARCH   compute capability without its dot, such as 80 or 90; default: that of the first GPU here
  MPICC, MPICXX  MPI's compilers (mpicc, mpicxx), of the MPI that mpi4py is built with
  MPIFC       MPI's Fortran compiler; default: none is used
  PYTHON      default: .venv/bin/python if it is there, else python3; it needs numpy, Cython, setuptools, mpi4py
  JOBS        processes of make; default: the cores that this process may use
  PETSC_CONFIGURE_OPTIONS   more words for PETSc's configure, such as --with-blaslapack-dir=...
TEXT
}

fail() {
    echo "build_petsc_cuda.sh: $1" >&2
    exit 2
}

dry_run="" check=yes words=()
for word in "$@"; do
    case $word in
        -h | --help) usage && exit 0 ;;
        --dry-run) dry_run=yes ;;
        --no-check) check="" ;;
        -*) fail "unknown option $word (see --help)" ;;
        *) words+=("$word") ;;
    esac
done
[ ${#words[@]} -eq 2 ] || fail "give the folder of the archives and the prefix (see --help)"
archives=${words[0]} prefix=${words[1]}
root=$PWD
precision=${PRECISION:-double} indices=${INDICES:-32}
cc=${MPICC:-mpicc} cxx=${MPICXX:-mpicxx}
jobs=${JOBS:-$(nproc)}
python=${PYTHON:-}
if [ -z "$python" ]; then
    if [ -x .venv/bin/python ]; then python=$root/.venv/bin/python; else python=python3; fi
elif [[ $python == */* ]]; then
    python=$(realpath -s "$python") # still found from the folders of the sources
fi

# -- what is there ---------------------------------------------------------------------------

# The archive of a package: the one that is named, or the only one there is.
archive_of() { # petsc PETSC_ARCHIVE
    local name=$1 variable=$2 found=()
    if [ -n "${!variable:-}" ]; then
        [ -f "$archives/${!variable}" ] || fail "$variable names ${!variable}, and $archives has no such file"
        echo "$archives/${!variable}"
        return
    fi
    shopt -s nullglob
    found=("$archives/$name"-3.*.tar.gz)
    [ ${#found[@]} -gt 0 ] || fail "$archives has no $name-3.X.Y.tar.gz: fetch it where there is a network and copy it there"
    [ ${#found[@]} -eq 1 ] || fail "$archives has ${#found[@]} archives of $name: name one in $variable"
    echo "${found[0]}"
}

minor_of() { basename "$1" | sed -nE 's/^[a-z]+-3\.([0-9]+)(\..*)?\.tar\.gz$/\1/p'; }

[ -d "$archives" ] || fail "the folder of archives $archives does not exist"
petsc_archive=$(archive_of petsc PETSC_ARCHIVE)
slepc_archive=$(archive_of slepc SLEPC_ARCHIVE)
petsc_minor=$(minor_of "$petsc_archive") slepc_minor=$(minor_of "$slepc_archive")
if [ -z "$petsc_minor" ] || [ "$petsc_minor" != "$slepc_minor" ]; then
    fail "$(basename "$petsc_archive") and $(basename "$slepc_archive") are not of one minor version: fetch SLEPc of PETSc's"
fi
[ "$petsc_minor" -ge 20 ] || fail "PETSc 3.$petsc_minor is too old: SLEPc keeps a dense basis on a GPU from 3.20 on"
case $precision in single | double) ;; *) fail "PRECISION is $precision: use single or double" ;; esac
case $indices in 32 | 64) ;; *) fail "INDICES is $indices: use 32 or 64" ;; esac
arch=${CUDA_ARCH:-}
if [ -z "$arch" ] && command -v nvidia-smi >/dev/null; then
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n '1s/\.//p') || arch=""
fi
[[ $arch =~ ^[0-9]+[a-z]?$ ]] || fail "no compute capability (${arch:-no GPU here}): set CUDA_ARCH, such as CUDA_ARCH=90 for an H100"
if [ -z "$dry_run" ]; then
    for tool in "$cc" "$cxx" nvcc make "$python"; do
        command -v "$tool" >/dev/null || fail "$tool is not on the PATH: load the modules of MPI and CUDA"
    done
    for module in numpy Cython setuptools mpi4py; do
        "$python" -c "import $module" 2>/dev/null || fail "$python cannot import $module: install it there first"
    done
fi

# -- the build -------------------------------------------------------------------------------

run() {
    printf '+ %s\n' "$*"
    [ -n "$dry_run" ] || "$@"
}

enter() {
    printf '+ cd %s\n' "$1"
    [ -n "$dry_run" ] || cd "$1"
}

[ -n "$dry_run" ] || mkdir -p "$prefix/build"
archives=$(realpath -m "$archives") prefix=$(realpath -m "$prefix")
petsc_archive=$archives/$(basename "$petsc_archive") slepc_archive=$archives/$(basename "$slepc_archive")
petsc=$prefix/petsc slepc=$prefix/slepc
petsc_source=$prefix/build/$(basename "$petsc_archive" .tar.gz)
slepc_source=$prefix/build/$(basename "$slepc_archive" .tar.gz)
unset PETSC_DIR PETSC_ARCH SLEPC_DIR PYTHONPATH
build="arch-hessdist-cuda"

options=(
    "--prefix=$petsc"
    "--with-cc=$cc" "--with-cxx=$cxx" "--with-fc=${MPIFC:-0}"
    --with-debugging=0
    --with-scalar-type=real "--with-precision=$precision"
    "--with-64-bit-indices=$((indices == 64))"
    --with-cuda=1 "--with-cuda-arch=$arch"
    --with-petsc4py=1 "--with-python-exec=$python"
)
read -ra more <<<"${PETSC_CONFIGURE_OPTIONS:-}"

run tar -xzf "$petsc_archive" -C "$prefix/build"
enter "$petsc_source"
run "$python" ./configure "PETSC_ARCH=$build" "${options[@]}" ${more[@]+"${more[@]}"}
run make "PETSC_DIR=$petsc_source" "PETSC_ARCH=$build" "MAKE_NP=$jobs" all
run make "PETSC_DIR=$petsc_source" "PETSC_ARCH=$build" install

run tar -xzf "$slepc_archive" -C "$prefix/build"
enter "$slepc_source"
# SLEPc's configure imports petsc4py.
export PETSC_DIR=$petsc PYTHONPATH=$petsc/lib
run "$python" ./configure "--prefix=$slepc" --with-slepc4py=1
run make "SLEPC_DIR=$slepc_source" "PETSC_DIR=$petsc" "MAKE_NP=$jobs" all
run make "SLEPC_DIR=$slepc_source" "PETSC_DIR=$petsc" install

# -- what to use -----------------------------------------------------------------------------

cat <<TEXT

To use it, in each shell and batch script:

    export PYTHONPATH=$petsc/lib:$slepc/lib

or once for the Python $python, in place of another petsc4py:

    printf '%s\n' $petsc/lib $slepc/lib > "\$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/petsc.pth"

Where MPI takes no device memory, PETSc wants to be told as well, or it ends the run:

    export PETSC_OPTIONS="-use_gpu_aware_mpi 0"

TEXT

if [ -n "$check" ]; then
    enter "$root"
    export PYTHONPATH=$petsc/lib:$slepc/lib
    run "$python" -m pytest -m gpu
fi
