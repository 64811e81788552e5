"""Two groups of one rank beside one group of two, on many checkpoints of a small model.

    python tests/benchmarks/groups.py JOB [--turns 3] [--set section.key=value]

The sweeps take turns; each is timed from its first product to its result, start-up left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    overrides = [word for value in options.overrides for word in ("--set", value)]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.turns):
        for groups, found in seconds.items():
            found.append(_sweep(options.job, groups, overrides))
    print("groups | seconds (least to most)")
    for groups, found in seconds.items():
        print(f"{groups:6} | {_median(found):.1f} ({min(found):.1f} to {max(found):.1f})")
    ratio = statistics.median(one / two for one, two in zip(*seconds.values(), strict=True))
    print(f"two ranks as two groups are {ratio:.2f} times as fast as one group of two")


def _sweep(job: Path, groups: int, overrides: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        words = [sys.executable, "-m", "hessdist", "spectrum", str(job), *overrides]
        words += ["--set", f"output.path={folder}/run.h5", "--metrics", str(metrics)]
        subprocess.run(
            ["mpirun", "-n", "2", *words, "--groups", str(groups)], check=True,
            stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        times = [datetime.fromisoformat(line["time"]) for line in lines]
        return (max(times) - min(times)).total_seconds()


def _median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
