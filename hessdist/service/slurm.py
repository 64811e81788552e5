"""Slurm: the text of a batch script, and its submission.

The script asks Slurm for a signal ahead of the time limit and passes it to the ranks. They stop at
the next product and end with status 75, and the script then puts itself back into the queue, unless
somebody has cancelled the job.
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
    mpi: str = "pmix"  # of srun's --mpi; empty: what the site has set
    directives: Sequence[str] = ()  # more words for #SBATCH, such as "--constraint=a100"
    arguments: Sequence[str] = ()  # more words for `hessdist spectrum`

    @property
    def ranks(self) -> int:
        """MPI ranks of a task of the array."""
        return self.nodes * self.tasks_per_node


def batch_script(batch: Batch) -> str:
    """Write the text of a batch script. This is a pure function.

    Args:
        batch: The resources and the command, as `check` accepts them.

    Returns:
        The text.
    """
    share = ["--share"] if batch.array else []
    job = str(batch.job)
    if job.startswith("-"):  # it would be read as an option
        job = f"./{job}"
    this = "$SLURM_JOB_ID"
    if batch.array:
        this = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    words = [batch.command, "spectrum", job, *share, *batch.arguments]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {_quoted(word)}" for word in _directives(batch)),
        "set -uo pipefail",
        "",
        f"signal={batch.signal} threads={batch.cpus_per_task} mpi={batch.mpi} this={this}",
        f"program=({shlex.join(words)})",
    ]
    return "\n".join(lines) + _BODY


def _quoted(word: str) -> str:
    """Quote a word of an #SBATCH line as sbatch reads it, which is not quite as bash does."""
    return word if re.fullmatch(r"[\w%+,./:=@\[\]-]+", word) else f'"{word}"'


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


_BODY = r"""

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
"""


def process_manager(library: str) -> str:
    """Choose how srun tells the ranks of an MPI of each other. This is a pure function.

    Args:
        library: What the MPI says of itself, such as "Open MPI v4.1.4" or "MPICH Version: 4.3".

    Returns:
        The value of srun's --mpi. MPICH and the MPIs that are made from it abort with pmix. Empty
        for an MPI that belongs to its site, such as Cray's, and srun then uses the site's default.
    """
    if not library or library.startswith("Open MPI"):
        return "pmix"
    return "pmi2" if library.startswith(("MPICH", "MVAPICH", "Intel")) else ""


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


def name_of(name: str) -> str:
    """Make a name for Slurm, and for a log file, of the name of a job.

    Args:
        name: Any text.

    Returns:
        The name with "-" for everything but letters, digits and "_.+=@,-".
    """
    return re.sub(r"[^\w.+=@,-]+", "-", name).strip("-.")[:50] or "hessdist"


def check(batch: Batch) -> None:
    """Refuse values that sbatch would refuse, or understand differently.

    Args:
        batch: The values.

    Raises:
        InputError: A value is wrong.
    """
    for word in (str(batch.job), batch.command, *batch.arguments, *_directives(batch)):
        if not word.isprintable():
            raise InputError(
                f"{word!r} has a character that cannot be printed",
                "take it out, or rename the file",
            )
    if not re.fullmatch(r"[0-9]+|[0-9]+:[0-9]{2}(:[0-9]{2})?|[0-9]+-[0-9]+(:[0-9]{2}){0,2}",
                        batch.time):  # fmt: skip
        raise InputError(
            f"--time {batch.time} is not a time", "write minutes, H:MM:SS or D-HH:MM:SS"
        )
    one = r"[0-9]+(-[0-9]+(:[0-9]+)?)?"
    if batch.array and not re.fullmatch(rf"{one}(,{one})*(%[1-9][0-9]*)?", batch.array):
        raise InputError(
            f"--array {batch.array} is not a range",
            "write a number of tasks, or a range such as 0-7%2",
        )
    _check_names(batch)
    _check_log(str(batch.log))
    for word in batch.directives:
        _check_directive(word)


def _check_names(batch: Batch) -> None:
    values = {
        "the name": batch.name, "--partition": batch.partition, "--account": batch.account,
        "--qos": batch.qos, "--mem": batch.memory,
    }  # fmt: skip
    for option, value in values.items():
        if re.search(r"\s", value):
            raise InputError(f"'{value}' has a space in it", "use a name without spaces for Slurm")
        if value and not re.fullmatch(r"\w[\w.,:@+=-]*", value):
            raise InputError(
                f"{option} {value!r} is not a name for Slurm", "use letters, digits and _.,:@+=-"
            )


def _check_log(log: str) -> None:
    if re.search(r"[\"\\]", log):
        raise InputError(
            f"--log {log} has a quotation mark or a backslash", "choose another name for the log"
        )
    if re.search(r"%(?!%|[0-9]*[AaJjNnstuxb])", log.replace("%%", "")):
        raise InputError(
            f"--log {log} has a pattern that Slurm does not know", "write %% for a percent sign"
        )
    if log == "." or log.endswith(".."):
        raise InputError(f"--log {log} is a folder", "name a file")


def _check_directive(word: str) -> None:
    remedy = "write it as --sbatch=--name=value"
    if not re.match(r"-[A-Za-z]|--[a-z]", word):
        raise InputError(f"--sbatch {word!r} is not an option of sbatch", remedy)
    if re.search(r"[\"\\]", word):
        raise InputError(f"--sbatch {word} has a quotation mark or a backslash", remedy)
    if re.match(r"[^=]*\s", word):
        raise InputError(f"--sbatch {word!r} has a space before its value", remedy)


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
            [program, "--parsable"], input=script, env=environment, capture_output=True,
            encoding="utf-8", errors="replace", timeout=timeout, check=False,
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
