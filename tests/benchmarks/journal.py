"""What the product journal costs, and what a replayed product costs beside a computed one.

    python tests/benchmarks/journal.py JOB [--set section.key=value]

A solve with the journal is ended by its first restart's products, and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--stop-after", type=int, default=40, help="products")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    overrides = [word for value in options.overrides for word in ("--set", value)]
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.jsonl"
        words = [sys.executable, "-m", "hessdist", "spectrum", str(options.job), *overrides]
        words += ["--set", f"output.path={folder}/run.h5", "--metrics", str(metrics), "--journal"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
            while not metrics.exists() or _count(metrics) < options.stop_after:
                time.sleep(0.05)
            first.send_signal(signal.SIGTERM)
        stopped = first.returncode
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.rank-*"))
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ)
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    # The first of each run pays for fresh memory.
    computed = [_product(line) for line in lines if not line["replayed"] and line["product"] > 2]
    replayed = [_product(line) for line in lines if line["replayed"] and line["product"] > 2]
    print(f"stopped after {options.stop_after} products with status {stopped}, started again")
    print(f"journal: {size / 2**20:.0f} MiB")
    for name, seconds in (("computed", computed), ("replayed", replayed)):
        print(
            f"{name}: {len(seconds)} products, {statistics.median(seconds):.4f} s "
            f"({min(seconds):.4f} to {max(seconds):.4f})"
        )
    ratio = statistics.median(replayed) / statistics.median(computed)
    print(f"a replayed product costs {ratio:.1%} of a computed one")


def _product(line: dict[str, float]) -> float:
    return line["product_seconds"] + line["journal_seconds"]


def _count(path: Path) -> int:
    return path.read_text().count("\n")


if __name__ == "__main__":
    main()
