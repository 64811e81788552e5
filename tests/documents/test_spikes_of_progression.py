"""The spikes that docs/studies/negative-curvature.md tells of, in the run that is stored."""

from __future__ import annotations

from conftest import ROOT
from documents.claims import RESULTS

import hessdist


def test_both_ends_jump_with_the_loss() -> None:
    page = (ROOT / "docs" / "studies" / "negative-curvature.md").read_text(encoding="utf-8")
    run = hessdist.open_run(RESULTS / "spikes-cifar10.h5")
    largest, smallest = run.eigenvalues_largest[:, 0], run.eigenvalues_smallest[:, 0]
    at = {int(step): row for row, step in enumerate(run.steps)}
    assert run.converged_largest.all()
    assert run.converged_smallest.all()
    before, spike, after = (at[step] for step in (0, 10, 20))
    assert f"λ₁ is {largest[spike]:.1f}, beside {largest[before]:.1f} ten" in page
    assert f"and {largest[after]:.1f} ten steps after" in page
    assert largest[spike] > 4 * max(largest[before], largest[after])
    assert run.loss[spike] > max(run.loss[before], run.loss[after])
    before, spike, after = (at[step] for step in (150, 160, 170))
    values = tuple(f"{smallest[row]:.1f}".replace("-", "−") for row in (spike, before, after))
    assert "λ_d is {}, beside {} and {}".format(*values) in page.replace("\n", " ")
    assert run.loss[spike] > max(run.loss[before], run.loss[after])
