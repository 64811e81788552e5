"""The results in docs/results: small, and without paths of the machine that made them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents.claims import RESULTS

import hessdist

STORED = sorted(RESULTS.glob("*.h5"))
_ABSOLUTE = re.compile(rb"""["']/(?:tmp|home|root|work|scratch|mnt|data|Users)/""")


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_result_opens_and_names_no_path_of_a_machine(path: Path) -> None:
    assert hessdist.open_run(path).job
    assert not _ABSOLUTE.findall(path.read_bytes())
    assert path.stat().st_size < 1_000_000
