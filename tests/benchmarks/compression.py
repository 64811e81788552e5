"""Which compression suits eigenvectors: size and time of one checkpoint's, by filter.

python tests/benchmarks/compression.py RUN.h5 STEP
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import h5py

import hessdist

FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzf": {"compression": "lzf"},
    "shuffle, lzf": {"shuffle": True, "compression": "lzf"},
    "gzip 1": {"compression": "gzip", "compression_opts": 1},
    "shuffle, gzip 1": {"shuffle": True, "compression": "gzip", "compression_opts": 1},
    "shuffle, gzip 4": {"shuffle": True, "compression": "gzip", "compression_opts": 4},
    "shuffle, gzip 9": {"shuffle": True, "compression": "gzip", "compression_opts": 9},
}


def main(path: str, step: int) -> None:
    vectors = hessdist.open_run(path)[step].eigenvectors_largest[:5]
    print(f"{len(vectors)} eigenvectors of {vectors.shape[1]:,} parameters")
    chunk = (1, min(vectors.shape[1], 1 << 18))
    for name, options in FILTERS.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file.h5"
            start = time.perf_counter()
            with h5py.File(file, "w") as opened:
                opened.create_dataset("v", data=vectors, chunks=chunk, **options)
            written = time.perf_counter()
            with h5py.File(file, "r") as opened:
                opened["v"][()]
            read = time.perf_counter() - written
            share = file.stat().st_size / vectors.nbytes
            print(f"{name:16} {share:6.1%}, written {written - start:6.2f} s, read {read:5.2f} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
