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

signal=USR2 threads=12 mpi=pmix this=$SLURM_JOB_ID
program=(/home/me/hessdist/.venv/bin/hessdist spectrum 'my jobs/resnet.toml' --set spectrum.largest=50 -eps_ncv 150)

export OMP_NUM_THREADS=$threads
told=$(mktemp) && export HESSDIST_SIGNAL_FILE=$told

# Slurm signals this shell alone ahead of the time limit; srun hands the signal on to the ranks.
# Bash 5.2 may abort when a signal comes while it reads a $(command): none is read until the end.
named='' ended='' early='' woken='' ranks=''
stop_ranks() {
    woken=yes
    if [ -s "$told" ]; then # all ranks listen: they stop at the next product
        kill -s "$signal" "$ranks"
    elif [ -n "$ranks" ]; then # they do not yet, and have nothing to lose
        early=yes
        kill -s TERM "$ranks"
        sleep 1
        kill -s KILL "$ranks"
    fi 2>/dev/null
}
trap 'named=yes; stop_ranks' "$signal"
trap 'ended=yes; stop_ranks' TERM

# Whether the job is to start again: after the signal, its time limit or a preemption, and not after
# scancel. Slurm itself requeues a job whose preemption has the mode REQUEUE.
starts_again() {
    local job='' preempted='' over=''
    [ "$status" -eq 75 ] || [ "$status" -gt 128 ] || return
    job=$(scontrol -o show job "$this")
    [[ $job =~ \ PreemptTime=([^ ]*) ]] && preempted=${BASH_REMATCH[1]#None}
    [[ $job =~ \ EndTime=([^ ]*) ]] && over=${BASH_REMATCH[1]}
    case $job in
    *" Reason=TimeLimit "*) true ;;
    *" JobState=RUNNING "* | *" JobState=SIGNALING "*)
        [ -n "$named$preempted" ] || stopped_by_signal ;;
    *) [ -n "$preempted" ] && [ "$preempted" = "$over" ] ;; # not ended by a scancel before
    esac
}

# Whether the ranks have had the signal from elsewhere, such as `scancel --signal`.
stopped_by_signal() {
    [ "$status" -eq $((128 + $(kill -l "$signal"))) ] ||
        { [ "$status" -eq 75 ] && [ -z "$ended" ] && ! grep -qx SIGTERM "$told"; }
}

printf '%(%FT%T%z)T job %s, start %s on %s\n' \
    -1 "$this" "$((${SLURM_RESTART_COUNT:-0} + 1))" "$SLURM_JOB_NODELIST"

if [ -z "$named$ended" ]; then
    srun ${mpi:+"--mpi=$mpi"} --export=ALL --cpus-per-task="$threads" --kill-on-bad-exit=0 \
        --wait=60 "${program[@]}" &
    ranks=$!
    [ -z "$named$ended" ] || stop_ranks # a signal may have come since the last look
    woken=yes
fi
status=75 # of ranks that were not started
while [ -n "$woken" ] && [ -n "$ranks" ]; do # a signal ends the wait, and not the ranks
    woken=''
    wait "$ranks"
    status=$?
done
trap '' "$signal" TERM # nothing is left to stop
[ -z "$early" ] || status=75

printf '%(%FT%T%z)T job %s ends with status %s\n' -1 "$this" "$status"
if starts_again; then
    rm -f "$told"
    scontrol requeue "$this"
fi
rm -f "$told"
exit "$status"
