"""Forecast the ranks that a solve needs, by the memory of a rank and the number of parameters.

python tests/benchmarks/what_fits.py

LA(20) and SA(3), and LA(5) and SA(1). Nothing is run: these are the formulas by which a solve is
planned (`spectrum/memory_plan.py`, `spread/memory.py`), with a fifth of the memory left for
activations and the process.
"""

from __future__ import annotations

from itertools import count

from hessdist.errors import InputError
from hessdist.spectrum.memory_plan import Vectors, fewest_vectors, plan
from hessdist.spread.memory import Sizes, product_bytes, proof_bytes

MODELS = {  # d, and the entries of the largest tensor
    "1 M": (10**6, 10**6 // 4),
    "25 M": (25 * 10**6, 25 * 10**5),
    "GPT-2": (124_439_808, 38_597_376),
    "1.3 B": (1_316_000_000, 103_000_000),
    "7 B": (6_740_000_000, 131_000_000),
    "70 B": (70_000_000_000, 1_050_000_000),
}
MEMORY = (8, 16, 80, 192)  # GiB of a rank


def ranks_needed(sizes: Sizes, memory: float, wanted: int, scalar: int, smallest: bool) -> str:
    """Return the number of ranks that hold the parameters, the product and the basis.

    Both are powers of two; parameters are spread over as few ranks as will do.
    """
    for power in count():
        ranks = 2**power
        if ranks > 2**20:
            return "-"
        for shards in (2**p for p in range(power + 1)):
            held = max(product_bytes(sizes, shards), proof_bytes(sizes, shards))
            vectors = Vectors(sizes.parameters, ranks, scalar, 4, 0)
            try:
                found = plan(vectors, wanted, "sketched", {"product": int(held)}, 0.8 * memory)
            except InputError:
                continue
            if smallest or found.most >= 3 * wanted:
                return f"{ranks}" + (f" / {shards}" if shards > 1 else "")
    raise AssertionError


def main() -> None:
    for scalar, name in ((8, "float64"), (4, "float32")):
        for wanted, pairs in ((23, "LA(20) and SA(3)"), (6, "LA(5) and SA(1)")):
            least = fewest_vectors(wanted, 10**6)
            print(f"\n{pairs}, PETSc in {name}: ranks / shards; with only {least} vectors")
            print("d      | " + " | ".join(f"{f'{memory} GiB a rank':>24}" for memory in MEMORY))
            for model, sizes in MODELS.items():
                cells = [
                    "; ".join(
                        ranks_needed(Sizes(*sizes), memory * 2**30, wanted, scalar, smallest)
                        for smallest in (False, True)
                    )
                    for memory in MEMORY
                ]
                print(f"{model:6} | " + " | ".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
