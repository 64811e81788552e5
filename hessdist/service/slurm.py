"""Slurm: the text of a batch script, and its submission.

The script asks Slurm for a signal ahead of the time limit and passes it to the ranks. They stop at
the next product and end with status 75, and the script then puts itself back into the queue.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hessdist.errors import DependencyError, InputError


@dataclass(frozen=True)
class Batch:
    """The values of a batch script."""

    job: Path  # the job file
    name: str
    command: str  # the program, such as /home/me/hessdist/.venv/bin/hessdist
    log: Path  # where output goes, with Slurm's % patterns
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_task: int = 0
    time: str = "1:00:00"
    array: str = ""  # of --array
    signal: str = "USR1"
    ahead: int = 120  # seconds between the signal and the time limit
    partition: str = ""
    account: str = ""
    qos: str = ""
    memory: str = ""  # of --mem
    directives: Sequence[str] = ()  # more words for #SBATCH, such as "--constraint=a100"
    arguments: Sequence[str] = ()  # more words for `hessdist spectrum`

    @property
    def ranks(self) -> int:
        """MPI ranks of a task of the array."""
        return self.nodes * self.tasks_per_node


def batch_script(batch: Batch) -> str:
    """Write the text of a batch script. This is a pure function.

    Args:
        batch: The resources and the command.

    Returns:
        The text.
    """
    share = ["--share"] if batch.array else []
    words = [batch.command, "spectrum", str(batch.job), *share, *batch.arguments]
    this = "$SLURM_JOB_ID"
    if batch.array:
        this = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    lines = ["#!/bin/bash", *(f"#SBATCH {word}" for word in _directives(batch))]
    return "\n".join(lines) + _BODY.format(
        command=shlex.join(words), signal=batch.signal, this=this, threads=batch.cpus_per_task
    )


def _directives(batch: Batch) -> list[str]:
    optional = {
        "gpus-per-task": batch.gpus_per_task or "",
        "mem": batch.memory,
        "partition": batch.partition,
        "account": batch.account,
        "qos": batch.qos,
        "array": batch.array,
    }
    return [
        f"--job-name={batch.name}",
        f"--nodes={batch.nodes}",
        f"--ntasks-per-node={batch.tasks_per_node}",
        f"--cpus-per-task={batch.cpus_per_task}",
        *(f"--{name}={value}" for name, value in optional.items() if value),
        f"--time={batch.time}",
        f"--signal=B:{batch.signal}@{batch.ahead}",
        "--requeue",
        "--open-mode=append",
        f"--output={batch.log}",
        *batch.directives,
    ]


_BODY = """
set -uo pipefail

export OMP_NUM_THREADS={threads}
echo "$(date -Is) job {this}, start $((${{SLURM_RESTART_COUNT:-0}} + 1)) on $SLURM_JOB_NODELIST"

# Slurm signals this shell alone; srun hands the signal on to the ranks, which stop at the next
# product.
signalled='' ranks=''
trap 'signalled=yes; kill -s {signal} "$ranks" 2>/dev/null' {signal} TERM

srun --mpi=pmix --cpus-per-task={threads} --kill-on-bad-exit=0 --wait=60 \\
    {command} &
ranks=$!
wait "$ranks"
status=$?
while [ -n "$signalled" ]; do # a signal ends the wait, and not the ranks
    signalled=
    wait "$ranks"
    status=$?
done

echo "$(date -Is) job {this} ends with status $status"
if [ "$status" -eq 75 ]; then # stopped with work left
    scontrol requeue "{this}"
fi
exit "$status"
"""


def in_words(batch: Batch) -> str:
    """Describe in one line what will be submitted."""
    parts = [
        f"{batch.name}: {batch.ranks} ranks on {batch.nodes} node{'s' * (batch.nodes > 1)}",
        f"{batch.cpus_per_task} cores a rank",
        f"{batch.gpus_per_task} GPUs a rank" if batch.gpus_per_task else "no GPUs",
        f"{batch.time}, signal {batch.signal} {batch.ahead} s ahead of it",
        f"array {batch.array}" if batch.array else "",
        f"log {batch.log}",
    ]
    return ", ".join(filter(None, parts))


def check(batch: Batch) -> None:
    """Refuse values that sbatch would refuse, or understand differently.

    Args:
        batch: The values.

    Raises:
        InputError: A value is wrong.
    """
    if not re.fullmatch(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", batch.time):
        raise InputError(
            f"--time {batch.time} is not a time", "write minutes, H:MM:SS or D-HH:MM:SS"
        )
    one = r"\d+(-\d+(:\d+)?)?"
    if batch.array and not re.fullmatch(rf"{one}(,{one})*(%[1-9]\d*)?", batch.array):
        raise InputError(
            f"--array {batch.array} is not a range",
            "write a number of tasks, or a range such as 0-7%2",
        )
    for word in (batch.name, batch.partition, batch.account, batch.qos, batch.memory):
        if re.search(r"\s", word):
            raise InputError(f"'{word}' has a space in it", "use a name without spaces for Slurm")


def submit(script: str, timeout: float = 60) -> str:
    """Submit a script with sbatch.

    Args:
        script: The text of the script.
        timeout: Seconds to wait for an answer of sbatch.

    Returns:
        The number of the Slurm job.

    Raises:
        DependencyError: This machine has no Slurm.
        InputError: Slurm refuses the script, or does not answer.
    """
    program = shutil.which("sbatch")
    if program is None:
        raise DependencyError(
            "there is no sbatch on this machine", "submit from a login node, or use --dry-run"
        )
    # Within a Slurm job, the variables of that job must not reach the new one.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SBATCH_")
    }
    try:
        done = subprocess.run(  # noqa: S603 - no word of the command is the user's
            [program, "--parsable"], input=script, env=environment, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"sbatch has not answered for {timeout:g} s", "check whether `sinfo` answers"
        ) from error
    if done.returncode:
        raise InputError(
            f"sbatch refuses the job: {' '.join(done.stderr.split())}",
            "correct the options; --dry-run shows the script",
        )
    return done.stdout.strip().split(";")[0]
