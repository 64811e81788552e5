#!/bin/bash
# What is measured first on a machine with a GPU, in an order in which an early end leaves most: run_all.sh --help.
set -uo pipefail

usage() {
    cat <<'TEXT'
usage: run_all.sh [--device cuda|cpu] [--small] [--seconds N] [--python PYTHON] [--out FOLDER]

Unpacks the kit to the path that it was built for, and runs, each with a time limit of its own: doctor; the tests of a GPU;
LeNet over 60,000 images; a solve over 3,000 with the CPU's float64 beside it; products of GPTs of 10 and 124 million
parameters; the same in TF32 and bfloat16. A part that fails does not keep the others from running.

  --device    cuda (default), or cpu to rehearse
  --small     sizes with which all parts end in a minute or two on two cores
  --seconds   when to end, counted from the start (480)
  --python    the Python that has PyTorch (python3)
  --out       the folder of the figures (figures)
TEXT
}

fail() {
    echo "run_all.sh: $1" >&2
    exit 2
}

device=cuda small="" seconds=480 program=python3 out=figures
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage && exit 0 ;;
        --small) small=yes ;;
        --device | --seconds | --python | --out)
            [ $# -gt 1 ] || fail "$1 wants a value (see --help)"
            case $1 in
                --device) device=$2 ;;
                --seconds) seconds=$2 ;;
                --python) program=$2 ;;
                --out) out=$2 ;;
            esac
            shift ;;
        *) fail "unknown word $1 (see --help)" ;;
    esac
    shift
done
case $device in cuda | cpu) ;; *) fail "--device is $device: use cuda or cpu" ;; esac
[[ $seconds =~ ^[0-9]+$ ]] || fail "--seconds is $seconds: give a whole number"

# -- the kit ---------------------------------------------------------------------------------

kit=$(cd "$(dirname "$0")" && pwd)
value() { sed -n "s/^$1=//p" "$kit/kit.env"; }
[ -f "$kit/kit.env" ] || fail "there is no kit.env beside it: start the copy that is in a kit (slurm/gpu_kit.sh)"
prefix=$(value prefix) version=$(value python) made=$(value made)
here=$("$program" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || fail "there is no Python $program: name one by --python"
[ "$here" = "$version" ] || fail "$program is Python $here, and the kit is built for $version: name another by --python"
"$program" -c 'import torch, numpy, h5py' > /dev/null || fail "$program lacks PyTorch, NumPy or h5py: name another by --python"
mkdir -p "$out" || fail "the folder $out cannot be made"
out=$(cd "$out" && pwd)
if [ "$(cat "$prefix/made" 2>/dev/null)" != "$made" ]; then
    if [ -e "$prefix/env/bin/python" ]; then fail "$prefix is the place in which a kit was built: rehearse where it is not"; fi
    if ! { mkdir -p "$prefix" && tar -C "$prefix" -xJf "$kit/stack.tar.xz" &&
        tar -C "$prefix" -xzf "$kit/hessdist.tar.gz"; }; then fail "the kit cannot be unpacked to $prefix"; fi
    echo "$made" > "$prefix/made"
fi
cd "$prefix" || exit 2
export PATH=$prefix/env/bin:$PATH
export LD_LIBRARY_PATH=$prefix/lib:$prefix/env/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PYTHONPATH=$prefix:$prefix/env/lib/python$version/site-packages
export MPI4PY_LIBMPI=$prefix/env/lib/libmpi.so.12 # PETSc's, and not another of the machine
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HESSDIST_DATA=$kit
[ -d "$kit/MNIST" ] || unset HESSDIST_DATA

# -- the parts -------------------------------------------------------------------------------

failed=0
say() { echo "$*" | tee -a "$out/summary.txt"; }

# Run a part within its limit, and what it prints into a file: part NAME LIMIT WORD...
part() {
    local name=$1 limit=$2 begin=$SECONDS status
    shift 2
    if [ $((seconds - SECONDS)) -lt "$limit" ]; then limit=$((seconds - SECONDS)); fi
    if [ "$limit" -lt 5 ]; then
        say "== $name: NOT RUN, the $seconds seconds are over"
        failed=1
        return
    fi
    timeout -k 5 "$limit" "$program" "$@" > "$out/$name.txt" 2>&1
    status=$?
    case $status in
        0) say "== $name: done in $((SECONDS - begin)) s" ;;
        124 | 137) say "== $name: ENDED at its limit of $limit s" && failed=1 ;;
        *) say "== $name: FAILED with status $status after $((SECONDS - begin)) s" && failed=1 ;;
    esac
    tail -n 30 "$out/$name.txt" | tee -a "$out/summary.txt"
}

if [ -n "$small" ]; then
    lenet=(--samples 64 --batch-size 32 --repeat 1 --oracle-samples 16) solve=(--samples 20 --passes 1 --tolerance 1e-1)
    gpt=(--sizes tiny --batch-tokens 64 --repeat 1)
else
    lenet=(--samples 60000 --repeat 5 --oracle-samples 500) solve=(--samples 3000)
    gpt=(--sizes 10M 124M)
fi
bench=tests/benchmarks
: > "$out/summary.txt"
say "kit $made, $(uname -n), $(date -u +%Y-%m-%dT%H:%M:%SZ), $(getconf _NPROCESSORS_ONLN) cores"
if command -v nvidia-smi >/dev/null; then say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader)"; fi
part doctor 40 -m hessdist doctor
failed=0 # it names packages as well that nothing here takes
part tests 150 -m pytest -p no:cacheprovider -m "gpu and not slow" --timeout 100 tests/gpu
part lenet 90 "$bench/gpu.py" --device "$device" "${lenet[@]}" --json "$out/lenet.json"
part solve 150 "$bench/gpu_solve.py" --device "$device" "${solve[@]}" --json "$out/solve.json"
part gpt 60 "$bench/gpu_gpt.py" --device "$device" "${gpt[@]}" --json "$out/gpt.json"
for numbers in tf32 bfloat16; do
    part "lenet-$numbers" 45 "$bench/gpu.py" --device "$device" "${lenet[@]}" --numbers "$numbers" --json "$out/lenet-$numbers.json"
done
part gpt-numbers 90 "$bench/gpu_gpt.py" --device "$device" "${gpt[@]}" --numbers tf32 bfloat16 --json "$out/gpt-numbers.json"
say "ended after $SECONDS s of $seconds"
exit $failed
