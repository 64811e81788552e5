"""Options of SLEPc's eigensolver that do not fit the problem solved here.

The matrix is symmetric, known by its products alone, and the pairs wanted are those at the two ends
of its spectrum, as the job says. Options that ask SLEPc for another problem, for interior
eigenvalues, or for a factorisation end in a segmentation fault (SLEPc 3.18), in an error deep
inside, or in a spectrum with gaps: they are refused by name before the solve. Others are overruled
here or looked at by no method for such a problem: they are said to have no effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hessdist.errors import InputError

_RITZ = "pairs at the ends of a spectrum are extracted by Ritz"
_SLICING = "spectrum slicing takes a factorisation, and the matrix is known by its products alone"
_PROBLEM = "the matrix is symmetric, and the problem a standard one"
_REGION = "a region would hide eigenvalues at the ends"

REFUSED = {
    **dict.fromkeys(
        (
            "eps_harmonic",
            "eps_harmonic_relative",
            "eps_harmonic_right",
            "eps_harmonic_largest",
            "eps_refined",
            "eps_refined_harmonic",
        ),
        _RITZ,
    ),
    **dict.fromkeys(
        (
            "eps_all",
            "eps_interval",
            "eps_krylovschur_partitions",
            "eps_krylovschur_detect_zeros",
            "eps_krylovschur_subintervals",
        ),
        _SLICING,
    ),
    **dict.fromkeys(
        (
            "eps_gen_hermitian",
            "eps_gen_indefinite",
            "eps_gen_non_hermitian",
            "eps_pos_gen_non_hermitian",
            "eps_non_hermitian",
            "eps_bse",
            "eps_hamiltonian",
            "eps_two_sided",
        ),
        _PROBLEM,
    ),
    **dict.fromkeys(
        (
            "rg_type",
            "rg_complement",
            "rg_scale",
            "rg_interval_endpoints",
            "rg_ellipse_center",
            "rg_ellipse_radius",
            "rg_polygon_vertices",
            "rg_polygon_verticesi",
            "rg_ring_center",
            "rg_ring_radius",
        ),
        _REGION,
    ),
    "st_shift": "the ends of the spectrum are those of the matrix itself",
}
"""Why an option is refused, by its name."""

WITHOUT_EFFECT = {
    **dict.fromkeys(
        (
            "eps_largest_magnitude",
            "eps_smallest_magnitude",
            "eps_largest_real",
            "eps_smallest_real",
            "eps_largest_imaginary",
            "eps_smallest_imaginary",
            "eps_target_magnitude",
            "eps_target_real",
            "eps_target",
            "eps_nev",
        ),
        "the job says which eigenvalues are wanted (spectrum.largest, spectrum.smallest)",
    ),
    **dict.fromkeys(
        ("eps_conv_abs", "eps_conv_norm"),
        "a pair converges by its relative residual (spectrum.tolerance)",
    ),
    **dict.fromkeys(
        ("eps_balance", "eps_balance_its", "eps_balance_cutoff", "eps_purify"),
        "it is for other problems than a symmetric one",
    ),
}
"""Why an option has no effect, by its name."""

_TRANSFORMATIONS = ("shift", "precond")


def refuse_unfit(given: Any) -> None:
    """Refuse options that do not fit, before the solver sees them. Not collective.

    Args:
        given: `PETSc.Options()`.

    Raises:
        InputError: The first of them, with the reason.
    """
    for name, reason in REFUSED.items():
        if given.hasName(name) and not _is_off(given.getString(name, "")):
            raise InputError(f"-{name} does not fit: {reason}", f"leave -{name} out")
    kind = given.getString("st_type", _TRANSFORMATIONS[0])
    if kind not in _TRANSFORMATIONS:
        raise InputError(
            f"-st_type {kind} does not fit: the ends of the spectrum are those of the matrix "
            "itself, which is known by its products alone",
            "leave -st_type out",
        )


def ineffective(words: Iterable[str]) -> list[str]:
    """What there is to say of options of a command line that have no effect.

    Args:
        words: Names of options, with their dash.

    Returns:
        A sentence for each of them.
    """
    return [
        f"PETSc option {word} has no effect: {WITHOUT_EFFECT[word[1:]]}"
        for word in words
        if word[1:] in WITHOUT_EFFECT
    ]


def _is_off(value: str) -> bool:
    return value.lower() in ("0", "no", "false", "off")
