"""Options of SLEPc's eigensolver that do not fit the problem solved here.

The matrix is symmetric and known only by its products, and the job sets the wanted pairs at both
ends of the spectrum. Options for another problem, for interior eigenvalues, or for a factorisation
cause a segmentation fault (SLEPc 3.18), an error deep inside SLEPc, or a spectrum with gaps: they
are refused before the solve. Other options are overridden here, or no method for such a problem
uses them: the user is warned that they have no effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hessdist.errors import InputError


def _each(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


REFUSED = {
    **_each(
        "eps_harmonic eps_harmonic_relative eps_harmonic_right eps_harmonic_largest eps_refined "
        "eps_refined_harmonic",
        "pairs at the ends of a spectrum are extracted by Ritz",
    ),
    **_each(
        "eps_all eps_interval eps_krylovschur_partitions eps_krylovschur_detect_zeros "
        "eps_krylovschur_subintervals",
        "spectrum slicing takes a factorisation, and only products of the matrix are known",
    ),
    **_each(
        "eps_gen_hermitian eps_gen_indefinite eps_gen_non_hermitian eps_pos_gen_non_hermitian "
        "eps_non_hermitian eps_bse eps_hamiltonian eps_two_sided",
        "the matrix is symmetric, and the problem a standard one",
    ),
    **_each(
        "rg_type rg_complement rg_scale rg_interval_endpoints rg_ellipse_center rg_ellipse_radius "
        "rg_polygon_vertices rg_polygon_verticesi rg_ring_center rg_ring_radius",
        "a region would hide eigenvalues at the ends",
    ),
    "st_shift": "the ends of the spectrum are those of the matrix itself",
}
"""The names of refused options, each with the reason."""

WITHOUT_EFFECT = {
    **_each(
        "eps_largest_magnitude eps_smallest_magnitude eps_largest_real eps_smallest_real "
        "eps_largest_imaginary eps_smallest_imaginary eps_target_magnitude eps_target_real "
        "eps_target eps_nev",
        "the job sets which eigenvalues are wanted (spectrum.largest, spectrum.smallest)",
    ),
    **_each(
        "eps_conv_abs eps_conv_norm",
        "a pair converges by its relative residual (spectrum.tolerance)",
    ),
    **_each(
        "eps_balance eps_balance_its eps_balance_cutoff eps_purify",
        "it is for other problems than a symmetric one",
    ),
}
"""The names of options without effect, each with the reason."""


def refuse_unfit(given: Any) -> None:
    """Refuse options that do not fit, before the solver sees them. Not collective.

    Args:
        given: `PETSc.Options()`.

    Raises:
        InputError: The first of them, with the reason.
    """
    for name, reason in REFUSED.items():
        if given.hasName(name) and not _is_off(given.getString(name, "")):
            raise InputError(f"-{name} does not fit: {reason}", f"leave out -{name}")
    kind = given.getString("st_type", "shift")
    if kind not in ("shift", "precond"):
        raise InputError(
            f"-st_type {kind} does not fit: the ends of the spectrum are those of the matrix "
            "itself, of which only products are known",
            "leave out -st_type",
        )


def ineffective(words: Iterable[str]) -> list[str]:
    """Find the options of a command line that have no effect.

    Args:
        words: The names of options, each with its dash.

    Returns:
        A sentence for each option without effect.
    """
    return [
        f"PETSc option {word} has no effect: {WITHOUT_EFFECT[word[1:]]}"
        for word in words
        if word[1:] in WITHOUT_EFFECT
    ]


def _is_off(value: str) -> bool:
    return value.lower() in ("0", "no", "false", "off")
