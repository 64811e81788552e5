"""Opening, reporting and drawing a long run: 200 checkpoints x 50 pairs x 3.3 M parameters.

    python tests/benchmarks/reading.py [CHECKPOINTS [PARAMETERS]]

Its eigenvectors are 132 GB that are never written: HDF5 keeps what is not written as a note of its
shape, so the files have their true structure and take no space. Each measurement is a process of
its own; its peak of memory counts everything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from written import write_run

LARGEST, SMALLEST = 40, 10

MEASURED = {
    "import numpy, h5py": "import numpy, h5py",
    "open_run and its tables": "run = hessdist.open_run(path)",
    "open_run of the folder": "run = hessdist.open_run(path.with_suffix('.checkpoints'))",
    "one part of an eigenvector": "hessdist.open_run(path)[990].part('largest', 7, 'layer.weight')",
    "report": "from hessdist.studies.shows import write_page; "
    "write_page(hessdist.open_run(path), 'a long run', path.with_suffix('.html'))",
    "plot (PNG and PDF)": "from hessdist.present.look import Look; "
    "from hessdist.present.progression import progression; "
    "Look().save(progression(hessdist.open_run(path)), path.parent, 'figure')",
}

PROCESS = """
import resource, time
from pathlib import Path
import h5py, numpy
import hessdist
import hessdist.results.reader
path = Path({path!r})
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def grow(path: Path, size: int) -> None:
    """Give the checkpoints of a small run the vectors of a large one, without writing them."""
    for part in path.with_suffix(".checkpoints").glob("step-*.h5"):
        with h5py.File(part, "r+") as file:
            for end, count in (("largest", LARGEST), ("smallest", SMALLEST)):
                file.create_dataset(f"eigenvectors_{end}", (count, size), "f4")
            del file["parameters/shape"], file["gradient"]
            file["parameters/shape"] = [str(size)]
            file.create_dataset("gradient", (size,), "f8")


def main(checkpoints: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_run(
            Path(folder) / "run.h5", steps=checkpoints, largest=LARGEST, smallest=SMALLEST,
            eigenvectors=False,
        )  # fmt: skip
        for part in path.with_suffix(".checkpoints").glob("step-*.h5"):
            whole = part.read_bytes()
            part.write_bytes(whole[512:])  # unsealed, since it is changed
        grow(path, size)
        print(f"{checkpoints} checkpoints x {LARGEST + SMALLEST} pairs x {size:,} parameters")
        for name, statement in MEASURED.items():
            text = PROCESS.format(path=str(path), statement=statement)
            done = subprocess.run(
                [sys.executable, "-c", text], capture_output=True, text=True, check=True,
                env=os.environ,
            )  # fmt: skip
            seconds, memory = map(float, done.stdout.split())
            print(f"{name:28} {seconds:7.3f} s, peak {memory:5.0f} MiB")
        html = path.with_suffix(".html").stat().st_size
        print(f"the report is {html / 2**20:.2f} MiB")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*(given + [200, 3_274_634][len(given) :]))
