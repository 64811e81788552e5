#!/bin/bash
# Many checkpoints: an array whose tasks share one result, each on checkpoints of its own.
#
#     sbatch slurm/spectrum_array.sh jobs/lenet_mnist.toml
#
# A task takes the next checkpoint that nobody works on, until there is none. Four tasks run at a time.
# `hessdist submit JOB --dry-run` writes such a script for your job.
#SBATCH --job-name=hessdist
#SBATCH --array=0-15%4
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
set -uo pipefail

job=${1:?usage: sbatch slurm/spectrum_array.sh JOB.toml}
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# Slurm signals this shell alone, 120 s ahead of the limit; srun hands the signal on to the ranks,
# which stop at the next product and end with status 75.
signalled='' ranks=''
trap 'signalled=yes; kill -s USR1 "$ranks" 2>/dev/null' USR1 TERM

# `--mpi=pmix` is what Open MPI needs; another MPI may want pmi2 (see `srun --mpi=list`).
srun --mpi=pmix --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=60 \
    "${HESSDIST:-.venv/bin/hessdist}" spectrum "$job" --share &
ranks=$!
wait "$ranks"
status=$?
while [ -n "$signalled" ]; do # a signal ends the wait, and not the ranks
    signalled=
    wait "$ranks"
    status=$?
done

if [ "$status" -eq 75 ]; then # stopped with work left
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
