#!/bin/bash
#SBATCH --job-name=resnet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-task=1
#SBATCH --partition=gpu
#SBATCH --account=p1234
#SBATCH --qos=long
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.log
#SBATCH --constraint=a100
set -uo pipefail

export OMP_NUM_THREADS=12
echo "$(date -Is) job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST"

# Slurm signals this shell alone; srun hands the signal on to the ranks, which stop at the next
# product.
signalled='' ranks=''
trap 'signalled=yes; kill -s USR2 "$ranks" 2>/dev/null' USR2 TERM

srun --mpi=pmix --cpus-per-task=12 --kill-on-bad-exit=0 --wait=60 \
    /home/me/hessdist/.venv/bin/hessdist spectrum 'my jobs/resnet.toml' --set spectrum.largest=50 -eps_ncv 150 &
ranks=$!
wait "$ranks"
status=$?
while [ -n "$signalled" ]; do # a signal ends the wait, and not the ranks
    signalled=
    wait "$ranks"
    status=$?
done

echo "$(date -Is) job $SLURM_JOB_ID ends with status $status"
if [ "$status" -eq 75 ]; then # stopped with work left
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
