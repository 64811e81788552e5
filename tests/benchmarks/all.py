"""Every benchmark, and its output into docs/benchmarks, which docs/performance.md shows.

    python tests/benchmarks/all.py [--only NAME ...]

It takes MNIST (HESSDIST_DATA, with the reference checkpoint beside it), the checkpoints of
jobs/lenet_mnist.toml and jobs/demo.toml (`hessdist train`), and the peers' environment. What is
there already is written anew, once its benchmark has ended well.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FIGURES = ROOT / "docs" / "benchmarks"
HERE = "tests/benchmarks"
BENCH = (
    "hessdist bench jobs/lenet_mnist.toml --set checkpoints.directory=$REFERENCE "
    "--set data.subset=first --repeat 3 --json $FOLDER/"
)
FEW = "--set data.fraction=0.00853333333"  # 512 samples
RANKS = (1, 2, 4, 3)
TEN = "[{}]".format(",".join(map(str, range(200, 301, 10))))

# In each, $REFERENCE is the folder of the reference checkpoint, $FOLDER one for files.
BENCHMARKS = {
    "peers-512": f"python {HERE}/peers/compare.py --samples 512 --repeat 3",
    "peers-3000": f"python {HERE}/peers/compare.py --samples 3000 --repeat 1 "
    "--only hessdist hessian-eigenthings",
    "peers-language": f"python {HERE}/peers/language.py",
    "solve-512": f"{BENCH}512.json {FEW}",
    "solve-3000": f"{BENCH}3000.json",
    "ranks-3000": f"OMP_NUM_THREADS=1 mpirun -n 2 {BENCH}two.json",
    "cost-model": " && ".join([
        *(
            f"OMP_NUM_THREADS=1 mpirun -n {p} --oversubscribe {BENCH}{p}.json {FEW} "
            "--set spectrum.largest=5 --set spectrum.smallest=2 > $FOLDER/log 2>&1"
            for p in RANKS
        ),
        f"python {HERE}/cost_model.py $FOLDER/1.json $FOLDER/2.json $FOLDER/4.json "
        "--check $FOLDER/3.json --cores 2",
    ]),
    "memory": " && ".join(
        f"OMP_NUM_THREADS=1 mpirun -n {p} --oversubscribe python {HERE}/memory.py "
        f"jobs/lenet_mnist.toml --set data.fraction=0.0002 {more}"
        for p, more in (
            (1, ""),
            (2, ""),
            (4, ""),
            (1, "--set spectrum.residuals=recorded"),
            (1, "--set compute.memory_gib=1.5"),
        )
    ),
    "what-fits": f"python {HERE}/what_fits.py",
    "blocks": f"OMP_NUM_THREADS=1 python {HERE}/blocks.py",
    "clusters": f"python {HERE}/clusters.py --lenet5 64",
    "precision": f"OMP_NUM_THREADS=1 python {HERE}/precision.py --samples 128",
    "both-ends": f"python {HERE}/both_ends.py",
    "one-end": f"python {HERE}/one_end.py jobs/negative_curvature_lenet5.toml",
    "late-training": f"python {HERE}/late_training.py jobs/lenet_mnist.toml",
    "warm-start": f"hessdist train jobs/demo.toml --set training.steps=300 --set "
    f"training.checkpoint_steps={TEN} --set checkpoints.directory=$FOLDER/ten > $FOLDER/log && "
    f"python {HERE}/warm_start.py jobs/demo.toml --set checkpoints.directory=$FOLDER/ten",
    "groups": "hessdist train jobs/demo.toml --set checkpoints.directory=$FOLDER/demo "
    f"> $FOLDER/log && python {HERE}/groups.py jobs/demo.toml "
    "--set checkpoints.directory=$FOLDER/demo",
    "journal": f"python {HERE}/journal.py jobs/lenet_mnist.toml {FEW} "
    "--set checkpoints.directory=$REFERENCE --set data.subset=first",
    "line-search": f"python {HERE}/line_search.py 512",
    "exact": f"python {HERE}/exact.py 1000 5000 15000 && "
    f"OMP_NUM_THREADS=1 mpirun -n 2 python {HERE}/exact.py 1000 5000 15000 && "
    f"OMP_NUM_THREADS=1 mpirun -n 2 python {HERE}/exact.py --solver scalapack 1000 5000",
    "slq": f"python {HERE}/slq.py",
    "product": f"python {HERE}/product.py",
    "gpu": f"python {HERE}/gpu.py",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args()
    data = os.environ.get("HESSDIST_DATA")
    if not data:
        sys.exit("set HESSDIST_DATA to the folder with MNIST")
    reference = Path(data).resolve().parent / "reference" / "lenet-mnist-512"
    failed = []
    for name in options.only:
        command = BENCHMARKS[name]
        print(f"-- {name}: {command}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            variables = {"REFERENCE": str(reference), "FOLDER": folder}
            done = subprocess.run(
                ["bash", "-c", command], cwd=ROOT, env={**os.environ, **variables},
                stdout=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        print(done.stdout, flush=True)
        if done.returncode:
            failed.append(name)
            continue
        shown = done.stdout.replace(str(reference), "$REFERENCE").replace(folder, "$FOLDER")
        (FIGURES / f"{name}.txt").write_text(f"$ {command}\n\n{shown}", encoding="utf-8")
    if failed:
        sys.exit(f"these did not end well: {', '.join(failed)}")


if __name__ == "__main__":
    main()
