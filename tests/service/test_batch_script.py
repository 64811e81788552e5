"""What the batch script does with signals and statuses; srun and scontrol are stand-ins."""

from __future__ import annotations

import os
import random
import re
import signal
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hessdist.errors import InputError
from hessdist.service.slurm import Batch, batch_script, check, name_of

RUNNING = "JobState=RUNNING Reason=None PreemptTime=None EndTime=2026-11-28T13:05:22"
PREEMPTED = "JobState=RUNNING Reason=None PreemptTime=2026-11-28T12:05:22 EndTime=2026-11-28T12:06"
CANCELLED = "JobState=COMPLETING Reason=None PreemptTime=None EndTime=2026-11-28T12:05:22"
CANCELLED_IN_GRACE = CANCELLED.replace("PreemptTime=None", "PreemptTime=2026-11-28T12:05:20")
KILLED_BY_PREEMPTION = CANCELLED.replace("PreemptTime=None", "PreemptTime=2026-11-28T12:05:22")
REQUEUED_BY_SLURM = "JobState=COMPLETING Reason=None EndTime=2026-11-28T12:05:22"
OVERTIME = CANCELLED.replace("Reason=None", "Reason=TimeLimit")

SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "requeue $2"; else echo "JobId=7 $ACCOUNT Comment=x"; fi
"""
READY = 'echo ready >> "$HESSDIST_SIGNAL_FILE"\n'
WORKS = "for i in {1..200}; do sleep 0.05; done\n"


def batch(**values: object) -> Batch:
    given_values = {"job": Path("job.toml"), "name": "x", "command": "hessdist", "log": Path("x")}
    return Batch(**{**given_values, **values})  # type: ignore[arg-type]


def start(
    folder: Path, srun: str, account: str = RUNNING, text: str | None = None
) -> subprocess.Popen[str]:
    """Start the script with an srun of this text and Slurm's account of the job."""
    folder.mkdir(exist_ok=True)
    for name, program in (("srun", f"#!/bin/bash\n{srun}"), ("scontrol", SCONTROL)):
        (folder / name).write_text(program)
        (folder / name).chmod(stat.S_IRWXU)
    (folder / "script.sh").write_text(batch_script(batch()) if text is None else text, "utf-8")
    env = {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "ACCOUNT": account,
        "TMPDIR": str(folder), "SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6",
        "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NODELIST": "node1",
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", "script.sh"], cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_hear_hangups,
    )  # fmt: skip


def _hear_hangups() -> None:
    """Bash has no trap for a signal that is ignored when it starts, as under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def until_said(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"it never said {word}")


def is_requeued(process: subprocess.Popen[str], status: int) -> bool:
    out, err = process.communicate(timeout=20)
    assert process.returncode == status, (out, err)
    return "requeue 7" in out.splitlines()


@pytest.mark.parametrize(
    ("status", "account", "again"),
    [
        (75, RUNNING, True),
        (75, PREEMPTED, True),
        (75, CANCELLED, False),
        (75, CANCELLED_IN_GRACE, False),
        (75, KILLED_BY_PREEMPTION, True),
        (75, REQUEUED_BY_SLURM, False),
        (75, OVERTIME, True),
        (75, "", False),  # Slurm does not answer
        (138, RUNNING.replace("RUNNING", "SIGNALING"), True),
        (138, RUNNING, True),  # USR1, before the program listened
        (143, RUNNING, False),
        (143, PREEMPTED, True),
        (143, CANCELLED, False),
        (137, OVERTIME, True),
        (139, RUNNING, False),  # a crash
        *((status, account, False) for status in (0, 1, 2, 3) for account in (RUNNING, OVERTIME)),
    ],
)
def test_what_starts_again(tmp_path: Path, status: int, account: str, again: bool) -> None:
    assert is_requeued(start(tmp_path, f"exit {status}", account), status) is again
    assert not list(tmp_path.glob("tmp.*"))  # the file of signals is removed


@pytest.mark.parametrize(("account", "again"), [(RUNNING, False), (PREEMPTED, True)])
def test_a_term_that_only_the_ranks_got_is_a_preemption_or_a_cancellation(
    tmp_path: Path, account: str, again: bool
) -> None:
    srun = f'{READY}echo SIGTERM >> "$HESSDIST_SIGNAL_FILE"; exit 75'
    assert is_requeued(start(tmp_path, srun, account), 75) is again


@pytest.mark.parametrize(("name", "this"), [("USR1", "7"), ("USR2", "7"), ("HUP", "6_3")])
def test_the_signal_reaches_ranks_that_are_ready(tmp_path: Path, name: str, this: str) -> None:
    srun = f'trap "echo ranks get {name}; exit 75" {name}\n{READY}echo "srun $*"\n{WORKS}'
    text = batch_script(batch(signal=name, array="" if this == "7" else "0-7"))
    process = start(tmp_path, srun, text=text)
    until_said(process, "srun --mpi=pmix")
    process.send_signal(signal.Signals[f"SIG{name}"])
    out, err = process.communicate(timeout=20)
    assert process.returncode == 75, err
    assert f"ranks get {name}" in out
    assert f"requeue {this}" in out.splitlines()


def test_without_a_process_manager_srun_uses_the_sites(tmp_path: Path) -> None:
    process = start(tmp_path, 'echo "srun $1"', text=batch_script(batch(mpi="")))
    assert "srun --export=ALL" in process.communicate(timeout=20)[0].splitlines()


@pytest.mark.parametrize(("account", "again"), [(CANCELLED, False), (RUNNING, False),
                                                (OVERTIME, True), (PREEMPTED, True)])  # fmt: skip
@pytest.mark.parametrize("ready", [True, False])
def test_term_stops_the_ranks_and_a_cancelled_job_stays_cancelled(
    tmp_path: Path, account: str, again: bool, ready: bool
) -> None:
    srun = f'trap "exit 75" USR1\n{READY if ready else ""}echo srun\n{WORKS}'
    process = start(tmp_path, srun, account)
    until_said(process, "srun")
    process.terminate()
    assert is_requeued(process, 75) is again


def test_ranks_that_are_not_ready_and_hear_nothing_are_ended(tmp_path: Path) -> None:
    process = start(tmp_path, f"trap '' TERM USR1\necho srun\n{WORKS}")
    until_said(process, "srun")
    process.send_signal(signal.SIGUSR1)
    assert is_requeued(process, 75)


def test_a_signal_before_srun_starts_nothing(tmp_path: Path) -> None:
    text = batch_script(batch()).replace(
        "\nprintf", '\nkill -s USR1 "$$"\nprintf', 1
    )  # fmt: skip
    process = start(tmp_path, "touch started", text=text)
    assert is_requeued(process, 75)
    assert not (tmp_path / "started").exists()


def test_no_command_is_substituted_while_the_script_listens() -> None:
    """Bash 5.2 aborts when a signal comes while it reads `$(command)`: 7 of 1,500 scripts did."""
    head, *listening = re.split(r"^trap .*$", batch_script(batch()), flags=re.MULTILINE)
    functions = r"^(?:starts_again|stopped_by_signal)\(\) {\n.*?^}$"
    apart = re.compile(rf"{functions}|^#[^\n]*", re.MULTILINE | re.DOTALL)
    assert "$(mktemp)" in head
    *listening, over = listening
    assert "$(kill" in "".join(listening), "the functions that run once nothing is heard"
    for part in listening:
        assert not re.search(r"\$\((?!\()|`|[<>]\(", apart.sub("", part))
    assert "starts_again; then" in over


def test_a_signal_at_any_moment_of_the_start_is_not_lost(tmp_path: Path) -> None:
    rng = random.Random(19)
    listens = 'trap "exit 75" USR1'
    srun = f"sleep 0.2\n{listens}\nsleep 0.2\n{READY}{WORKS}"
    processes = []
    for number in range(12):
        processes.append(start(tmp_path / str(number), srun))
        wait_for_trap(processes[-1].pid)
    for process in processes:
        time.sleep(rng.uniform(0, 0.08))
        process.send_signal(signal.SIGUSR1)
    for process in processes:
        assert is_requeued(process, 75)


def wait_for_trap(pid: int) -> None:
    """Wait until the shell has read its first lines, which takes it some milliseconds."""
    while True:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
        if int(caught, 16) >> (signal.SIGUSR1 - 1) & 1:
            return
        time.sleep(0.001)


# -- names -----------------------------------------------------------------------------------

PIECES = (
    "a", "run", "/", "..", " ", "\n", "\t", "'", '"', "`touch canary`", "$(touch canary)", "${IFS}",
    "; touch canary;", "&", "|", ">canary", "%", "%j", "%%", "-", "--", "#", "\\", "!", "*", "?",
    "~", "é", "日本", "\u2028", "\x1b[31m", "\x00", "\udcff", "=", ",", ":", "[0-3]", "{a,b}",
    "\n#SBATCH --wrap=true", "%n$s",
)  # fmt: skip
names = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)
words = st.lists(names.filter(lambda name: "\x00" not in name), max_size=3)


@settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(name=names, job=names, log=names, arguments=words, option=names, comment=names)
def test_no_name_is_executed_and_all_words_arrive(
    tmp_path: Path, name: str, job: str, log: str, arguments: Sequence[str], option: str,
    comment: str,
) -> None:  # fmt: skip
    for one in (
        batch(name=name_of(name), job=Path(job), arguments=arguments),
        batch(name=name_of(name), log=Path(log)),
        batch(name=name),
        batch(partition=option),
        batch(directives=[option]),
        batch(directives=[f"--comment={comment}"]),
    ):
        if is_accepted(one):
            runs_as_it_is(tmp_path, one)


def is_accepted(one: Batch) -> bool:
    try:
        check(one)
    except InputError as error:
        message = str(error)
    else:
        return True
    assert message.isprintable()
    return False


def runs_as_it_is(folder: Path, one: Batch) -> None:
    text = batch_script(one)
    lines = [line[8:] for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert [as_sbatch_reads(line) for line in lines][-len(one.directives) or len(lines) :] == list(
        one.directives
    )
    assert f"--job-name={one.name}" in map(as_sbatch_reads, lines)
    assert f"--output={one.log}" in map(as_sbatch_reads, lines)
    assert sum(line.startswith("#SBATCH") for line in text.split("\n")) == len(lines)
    process = start(folder, 'printf "%s\\0" "$@" > words', text=text)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, ""), (out, err)
    job = f"./{one.job}" if str(one.job).startswith("-") else str(one.job)
    found = (folder / "words").read_text("utf-8").split("\0")[:-1]
    assert found[found.index("hessdist") :] == ["hessdist", "spectrum", job, *one.arguments]
    assert {path.name for path in folder.iterdir()} == {"srun", "scontrol", "script.sh", "words"}


def as_sbatch_reads(line: str) -> str:
    """The one word of a line as sbatch's own parser takes it: quotes go, # begins a comment."""
    word, quote = "", ""
    for letter in line:
        assert letter != "\\"
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
            continue
        assert quote or (letter != "#" and not letter.isspace())
        word += letter
    assert not quote
    return word
