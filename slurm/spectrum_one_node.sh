#!/bin/bash
# The extreme eigenpairs of every checkpoint of a job, on the cores of one node.
#
#     sbatch slurm/spectrum_one_node.sh jobs/lenet_mnist.toml
#
# Eight ranks of four cores each; more ranks hold more of the samples, more cores make each one quicker.
# `hessdist submit JOB --dry-run` writes such a script for your job.
#SBATCH --job-name=hessdist
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

job=${1:?usage: sbatch slurm/spectrum_one_node.sh JOB.toml}
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# Slurm signals this shell alone, 120 s ahead of the limit; srun hands the signal on to the ranks,
# which stop at the next product and end with status 75.
signalled='' ranks=''
trap 'signalled=yes; kill -s USR1 "$ranks" 2>/dev/null' USR1 TERM

# `--mpi=pmix` is what Open MPI needs; another MPI may want pmi2 (see `srun --mpi=list`).
srun --mpi=pmix --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=60 \
    "${HESSDIST:-.venv/bin/hessdist}" spectrum "$job" --journal &
ranks=$!
wait "$ranks"
status=$?
while [ -n "$signalled" ]; do # a signal ends the wait, and not the ranks
    signalled=
    wait "$ranks"
    status=$?
done

if [ "$status" -eq 75 ]; then # stopped with work left
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
