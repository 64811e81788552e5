"""Arrays in short: digests to compare bits with, and numbers that another CPU comes near to."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

SHORT = 200  # characters of texts that are kept as they are


def digest(data: bytes) -> str:
    """The first 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def summary(values: Any) -> dict[str, Any]:
    """Describe an array of numbers, truth values or texts.

    Args:
        values: The array.

    Returns:
        `bits`, a digest of its bytes, and `texts`, `ints` or `numbers`.
    """
    array = np.asarray(values)
    if array.dtype.kind in "OSU":
        texts = [t.decode() if isinstance(t, bytes) else str(t) for t in array.ravel()]
        joined = "|".join(texts)
        return {"texts": joined if len(joined) <= SHORT else digest(joined.encode())}
    found: dict[str, Any] = {"bits": digest(np.ascontiguousarray(array).tobytes())}
    if array.dtype.kind in "biu" and array.size <= 20:
        return found | {"ints": array.astype(int).ravel().tolist()}
    flat = array.astype(np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    if finite.size < flat.size:
        found["not_finite"] = int(flat.size - finite.size)
    if finite.size:
        found["numbers"] = [
            float(f"{value:.7g}")
            for value in (finite.min(), finite.max(), finite.mean(), np.abs(finite).mean())
        ]
    return found


def bare(values: Any) -> dict[str, Any]:
    """The same of values that may have units or gaps, as matplotlib has them."""
    return summary(np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan))
