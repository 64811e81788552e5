"""The reference problem on this stack, in one line: products, residual, errors, memory.

HESSDIST_DATA=... python tests/stacks/reference.py RANKS
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import hessdist

JOB = """
name = "reference"
[model]
factory = "lenet"
[data]
dataset = "mnist"
root = "{root}"
samples = 512
subset = "first"
[checkpoints]
directory = "{checkpoints}"
[spectrum]
largest = 20
smallest = 3
tolerance = 1e-3
[output]
path = "reference.h5"
"""


def main() -> None:
    ranks = int(sys.argv[1])
    data = os.environ.get("HESSDIST_DATA", "")
    reference = Path(data).resolve().parent / "reference" / "lenet-mnist-512"
    if not data or not reference.is_dir():
        print("reference not run: no reference/lenet-mnist-512 beside the folder of HESSDIST_DATA")
        return
    expected = json.loads((reference / "expected.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-50.pt").symlink_to(reference / "step-50.pt")
        job = JOB.format(root=data, checkpoints=folder / "checkpoints")
        (folder / "job.toml").write_text(job, encoding="utf-8")
        words = [sys.executable, "-m", "hessdist", "spectrum", "job.toml", *sys.argv[2:]]
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        subprocess.run([*launcher, *words], cwd=folder, stdout=sys.stderr, check=True)
        here = hessdist.open_run(folder / "reference.h5")[50]
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # MiB, of the largest
    found = np.concatenate([here.eigenvalues_largest, here.eigenvalues_smallest])
    known = np.concatenate([expected["eigenvalues_largest"], expected["eigenvalues_smallest"]])
    residuals = np.concatenate([here.residuals_largest, here.residuals_smallest])
    print(
        f"reference on {ranks}: {here.products} products, worst residual {residuals.max():.2g}, "
        f"eigenvalues to {np.abs(found / known - 1).max():.2g}, {memory:.0f} MiB a rank"
    )


if __name__ == "__main__":
    main()
