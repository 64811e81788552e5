"""Labels, and names of files."""

from __future__ import annotations

from hessdist.present.labels import MATRICES, SYMBOLS, file_part, file_parts, label


def test_names_without_a_label_are_shown_as_they_are() -> None:
    assert label(MATRICES, "gauss_newton") == "Gauss-Newton matrix"
    assert label(MATRICES, "of_ones_own") == "of_ones_own"
    assert set(SYMBOLS) == set(MATRICES)


def test_blocks_of_any_name_have_files_of_their_own() -> None:
    name = " + ".join(f"layer{i}.0.convolution.weight" for i in range(20))
    parts = file_parts([name, "fc1"], "block")
    assert parts == ["block-1", "block-2"]
    assert file_parts(["a/b", "a b"], "block") == ["block-1", "block-2"]
    assert file_parts(["fc2 + fc3", "all"], "block") == ["fc2-fc3", "all"]
    assert file_parts(["../λ", "all"], "block") == ["block-1", "block-2"]
    assert file_part("Gauss-Newton matrix") == "gauss-newton-matrix"
