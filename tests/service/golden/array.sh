#!/bin/bash
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --array=0-7%4
#SBATCH --time=1:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sweep-%A_%a.log
set -uo pipefail

export OMP_NUM_THREADS=1
echo "$(date -Is) job ${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}, start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST"

# Slurm signals this shell alone; srun hands the signal on to the ranks, which stop at the next
# product.
signalled='' ranks=''
trap 'signalled=yes; kill -s USR1 "$ranks" 2>/dev/null' USR1 TERM

srun --mpi=pmix --cpus-per-task=1 --kill-on-bad-exit=0 --wait=60 \
    /home/me/hessdist/.venv/bin/hessdist spectrum jobs/lenet_mnist.toml --share &
ranks=$!
wait "$ranks"
status=$?
while [ -n "$signalled" ]; do # a signal ends the wait, and not the ranks
    signalled=
    wait "$ranks"
    status=$?
done

echo "$(date -Is) job ${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} ends with status $status"
if [ "$status" -eq 75 ]; then # stopped with work left
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
