"""A long sweep of small checkpoints: memory and open files of every rank over its time.

    python tests/benchmarks/soak.py [--minutes 60] [--ranks 2]

It trains an MLP on scikit-learn's digits with a checkpoint at every step, sweeps them with journal
and metrics, looks at the ranks every few seconds, and stops the sweep when the time is up.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOB = """
name = "soak"
[model]
factory = "mlp"
arguments = {{ widths = [64, 32, 10], activation = "tanh" }}
[data]
dataset = "digits"
samples = 300
[training]
optimizer = "sgd"
learning_rate = 0.05
steps = {steps}
checkpoint_every = 1
[checkpoints]
directory = "checkpoints"
[spectrum]
largest = 5
smallest = 2
[output]
path = "results/soak.h5"
[service]
journal = true
metrics = "metrics.jsonl"
"""

WARM_UP = 0.2  # share of the time in which memory may still settle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = int(options.minutes * 400)  # more than can be solved in the time
        (Path(folder) / "job.toml").write_text(JOB.format(steps=steps), encoding="utf-8")
        words = [sys.executable, "-m", "hessdist"]
        subprocess.run([*words, "train", "job.toml"], cwd=folder, check=True, capture_output=True)
        looks = _sweep(folder, words, options.ranks, options.minutes * 60)
        done = len(list((Path(folder) / "results" / "soak.checkpoints").glob("*.h5")))
    print(f"{options.minutes:g} minutes, {options.ranks} ranks, {done} checkpoints solved")
    print("rank | resident MiB at 20 % | in the middle | at the end | open files: least, most")
    for rank in range(options.ranks):
        memory = [look[rank][0] for look in looks]
        files = [look[rank][1] for look in looks]
        first, middle, last = (_around(memory, at) for at in (WARM_UP, 0.6, 1.0))
        print(f"{rank:4} | {first:.1f} | {middle:.1f} | {last:.1f} | {min(files)}, {max(files)}")


def _around(values: list[float], share: float) -> float:
    at = int(share * (len(values) - 1))
    return statistics.median(values[max(0, at - 5) : at + 5])


def _sweep(
    folder: str, words: list[str], ranks: int, seconds: float
) -> list[list[tuple[float, int]]]:
    looks = []
    with subprocess.Popen(
        ["mpirun", "-n", str(ranks), *words, "spectrum", "job.toml"], cwd=folder,
        stdout=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        end = time.monotonic() + seconds
        time.sleep(10)
        while time.monotonic() < end and process.poll() is None:
            looks.append([_look(pid) for pid in _ranks(process.pid)])
            time.sleep(5)
        process.send_signal(signal.SIGUSR1)
    print(f"the sweep ended with status {process.returncode}")
    return [look for look in looks if len(look) == ranks]


def _ranks(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == session:
            continue
        try:
            if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[3]) == session:
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def _look(pid: int) -> tuple[float, int]:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


if __name__ == "__main__":
    main()
