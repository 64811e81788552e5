"""The section "loss_model": its densities and indices against the laws, by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import hessdist
from hessdist.studies.random_matrices.figures import densities, index
from hessdist.studies.random_matrices.settings import LossModelSection
from hessdist.theory.laws import MarchenkoPastur
from hessdist.theory.loss_model import LossModel


def test_densities_and_indices(studied: Path) -> None:
    section = hessdist.open_run(studied / "results" / "run.h5").studies["loss_model"]
    assert list(section["model"]) == ["wigner", "relu"]
    points, density = section["points"], section["density"]
    for i, rectified in enumerate((False, True)):
        for j, ratio in enumerate(section["ratio"]):
            for k, energy in enumerate(section["energy"]):
                law = LossModel(energy, ratio, rectified).law
                assert density[i, j, k] == pytest.approx(law.density(points[i, j, k]), abs=1e-10)
                here, heights = points[i, j, k], density[i, j, k]
                mass = (np.diff(here) * (heights[1:] + heights[:-1])).sum() / 2
                assert mass == pytest.approx(1, abs=0.02)
                assert points[i, j, k, 0] < law.ends[0] < law.ends[1] < points[i, j, k, -1]
            for energy, alpha in zip(
                section["index_energy"][i, j], section["index"][i, j], strict=True
            ):
                # By samples: a finite matrix has this share of negative eigenvalues, to 1 / n.
                drawn = LossModel(energy, ratio, rectified).sample(400, np.random.default_rng(0))
                assert alpha == pytest.approx(np.mean(drawn < 0), abs=0.01)
    assert density[0, 0, 0] == pytest.approx(
        MarchenkoPastur(section["ratio"][0]).density(points[0, 0, 0]), abs=1e-12
    )
    assert section["critical_energy_located"] == pytest.approx(section["critical_energy"], rel=1e-6)
    near = section["index"][..., 0] / section["index_law"][..., 0]
    assert near == pytest.approx(np.ones_like(near), rel=5e-3)


def test_the_figures(studied: Path) -> None:
    section = hessdist.open_run(studied / "results" / "run.h5").studies["loss_model"]
    shown = densities(section, "title").axes
    assert len(shown) == 2
    assert len(shown[0].lines) == len(section["energy"]) + 1
    left, right = index(section, "title").axes[:2]
    assert left.lines[0].get_ydata()[-1] == section["index"][0, 0, -1]
    assert len(right.lines) == 2


@pytest.mark.parametrize(
    "wrong", [{"ratios": [1.0]}, {"ratios": []}, {"energies": [-0.1]}, {"models": ["goe"]}]
)
def test_what_is_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        LossModelSection.model_validate(wrong)
