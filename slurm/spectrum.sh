#!/bin/bash
# The extreme eigenpairs of every checkpoint of a job, on several nodes with GPUs.
#
#     sbatch slurm/spectrum.sh jobs/lenet_mnist.toml
#
# One task a GPU; a task takes the GPU of its node-local index. Submitted again, it goes on: checkpoints whose result is
# complete are skipped.
#SBATCH --job-name=hessdist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
set -euo pipefail

job=${1:?usage: sbatch slurm/spectrum.sh JOB.toml}
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# `--mpi=pmix` is what Open MPI needs; another MPI may want pmi2 (see `srun --mpi=list`).
srun --mpi=pmix "${HESSDIST:-.venv/bin/hessdist}" spectrum "$job"
