"""Results on a laptop: packed, compared, from a folder without an index, damaged, older."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Run
from written import write_run

import hessdist
from hessdist.errors import OutputError, ResultError
from hessdist.results.compare import compare
from hessdist.results.pack import pack
from hessdist.results.schema import TABLES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run.h5", steps=4, size=50)


def same_tables(one: hessdist.Run, other: hessdist.Run) -> None:
    assert np.array_equal(one.steps, other.steps)
    for field in TABLES:
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f"), field.name
    assert one.parameters == other.parameters
    assert one.job == other.job


def same_vectors(one: hessdist.Run, other: hessdist.Run) -> None:
    for step in map(int, one.steps):
        for name in ("eigenvectors_largest", "eigenvectors_smallest", "gradient"):
            assert np.array_equal(getattr(one[step], name), getattr(other[step], name))


# -- packed ----------------------------------------------------------------------------------


def test_a_packed_run_needs_nothing_else(path: Path, tmp_path: Path) -> None:
    run, one = hessdist.open_run(path), tmp_path / "away" / "one.h5"
    pack(run, one)
    packed = hessdist.open_run(one)
    same_tables(run, packed)
    same_vectors(run, packed)
    shutil.rmtree(path.with_suffix(".checkpoints"))
    assert packed[20].eigenvector("smallest", 2).shape == (50,)
    with h5py.File(one) as file:
        groups: list[h5py.Group] = [file]
        file.visititems(lambda _, found: groups.append(found) if hasattr(found, "keys") else None)
        links = [group.get(name, getlink=True) for group in groups for name in group]
        assert len(links) > 40
        assert all(isinstance(link, h5py.HardLink) for link in links)


def test_a_packed_run_without_eigenvectors(path: Path, tmp_path: Path, run: Run) -> None:
    done = run("pack", "run.h5", "-o", "bare.h5", "--without-eigenvectors")
    assert done.returncode == 0, done.stderr
    bare = hessdist.open_run(tmp_path / "bare.h5")
    same_tables(hessdist.open_run(path), bare)
    with pytest.raises(ResultError, match="was not stored"):
        _ = bare[0].eigenvectors_largest
    assert not bare[0].has_eigenvectors


def test_studies_are_packed_and_packed_again(studied: Path, tmp_path: Path) -> None:
    run = hessdist.open_run(studied / "results" / "run.h5")
    pack(run, tmp_path / "one.h5")
    pack(hessdist.open_run(tmp_path / "one.h5"), tmp_path / "two.h5")
    again = hessdist.open_run(tmp_path / "two.h5")
    same_vectors(run, again)
    assert list(run.studies) == list(again.studies)
    for name, section in run.studies.items():
        for table, values in section.items():
            theirs = again.studies[name][table]
            assert np.array_equal(values, theirs, equal_nan=values.dtype.kind == "f")
    assert again[20].pairs_digest == run[20].pairs_digest


@pytest.mark.parametrize("eigenvectors", [True, False])
def test_what_a_checkpoint_says_of_its_numbers_is_packed(
    path: Path, tmp_path: Path, eigenvectors: bool
) -> None:
    said = {
        "residuals": "sketched",
        "residuals_standard_error": 0.02,
        "copies": 3,
        "product_error": 1e-4,
        "a later attribute": "x",
    }
    part = min(path.with_suffix(".checkpoints").glob("step-*.h5"))
    with h5py.File(part, "r+") as file:
        file.attrs.update(said)
        step = int(file.attrs["step"])
    pack(hessdist.open_run(path), tmp_path / "one.h5", eigenvectors)
    pack(hessdist.open_run(tmp_path / "one.h5"), tmp_path / "two.h5", eigenvectors)
    with hessdist.open_run(tmp_path / "two.h5")[step].opened() as packed:
        assert {name: packed.attrs[name] for name in said} == said
        assert "job" not in packed.attrs
    assert hessdist.open_run(tmp_path / "two.h5")[step].product_error == 1e-4


def test_xarray_reads_a_packed_run(path: Path, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pack(hessdist.open_run(path), tmp_path / "one.h5")
    tables = xarray.open_dataset(tmp_path / "one.h5", engine="h5netcdf")
    assert tables["eigenvalues_largest"].dims == ("step", "largest")
    group = "checkpoints/step-00000010"
    vectors = xarray.open_dataset(tmp_path / "one.h5", engine="h5netcdf", group=group)
    assert vectors["eigenvectors_largest"].sizes == {"largest": 5, "parameter": 50}


def test_a_run_is_not_packed_over_itself(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is read by this command"):
        pack(hessdist.open_run(path), path)
    assert path.read_bytes() == before


def test_a_missing_checkpoint_leaves_no_half_packed_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "run.checkpoints" / "step-00000020.0123456789ab.h5").unlink()
    with pytest.raises(ResultError, match="step 20 is missing or damaged"):
        pack(hessdist.open_run(path), tmp_path / "one.h5")
    assert not (tmp_path / "one.h5").exists()


# -- a folder without an index ---------------------------------------------------------------


def test_a_folder_of_checkpoints_is_a_run(path: Path, tmp_path: Path) -> None:
    run, folder = hessdist.open_run(path), tmp_path / "elsewhere"
    shutil.move(tmp_path / "run.checkpoints", folder)
    found = hessdist.open_run(folder)
    same_tables(run, found)
    assert found[30].eigenvectors_largest.shape == (5, 50)
    assert found.damaged == {}


def test_studies_of_a_folder(studied: Path) -> None:
    run = hessdist.open_run(studied / "results" / "run.h5")
    found = hessdist.open_run(studied / "results" / "run.checkpoints")
    assert found.studies.keys() == run.studies.keys()
    one, other = (r.studies["step_sizes"]["scanned_loss"] for r in (run, found))
    assert np.array_equal(one, other, equal_nan=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: part.write_bytes(part.read_bytes()[:-300]),
        lambda part: part.write_bytes(b""),
        lambda part: part.write_bytes(b"no HDF5 at all" * 100),
        lambda part: part.write_bytes(part.read_bytes()[:-9] + b"damaged!!"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_left_out(
    path: Path, tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    part = tmp_path / "run.checkpoints" / "step-00000020.0123456789ab.h5"
    damage(part)
    found = hessdist.open_run(tmp_path / "run.checkpoints")
    assert list(found.steps) == [0, 10, 30]
    assert list(found.damaged) == [part.name]
    assert part.name in caplog.text
    whole = hessdist.open_run(path)
    assert list(whole.steps) == [0, 10, 20, 30]  # the index has its tables
    assert found[30].loss == whole[30].loss


def test_a_folder_of_two_jobs(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run.checkpoints"
    part = folder / "step-00000020.0123456789ab.h5"
    shutil.copy(part, folder / "step-00000020.ba9876543210.h5")
    with pytest.raises(ResultError, match="several jobs"):
        hessdist.open_run(folder)
    assert list(hessdist.open_run(folder, fingerprint="ba9876543210").steps) == [20]


def test_what_is_no_result_is_said(path: Path, tmp_path: Path) -> None:
    path.unlink()
    with pytest.raises(ResultError, match="name the folder of its checkpoints' files"):
        hessdist.open_run(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultError, match="has no file of a checkpoint"):
        hessdist.open_run(tmp_path / "empty")
    with h5py.File(tmp_path / "run.checkpoints" / "step-00000010.0123456789ab.h5", "r+") as file:
        file.attrs["schema_version"] = 99
    assert "schema version 99" in str(
        hessdist.open_run(tmp_path / "run.checkpoints").damaged.values()
    )


def test_a_result_of_an_earlier_version(path: Path) -> None:
    """Tables that it did not write are missing values, and what it did is read."""
    with h5py.File(path, "r+") as file:
        del file["gradient_norm"], file["converged_smallest"], file["products"]
        del file.attrs["fingerprint"]
    run = hessdist.open_run(path)
    assert np.isnan(run.gradient_norm).all()
    assert not run.converged_smallest.any()
    assert run.converged_smallest.shape == (4, 3)
    assert run.eigenvalues_largest.shape == (4, 5)
    assert run.fingerprint == ""


# -- reading parts, and tables for others ------------------------------------------------------


def test_a_part_of_an_eigenvector(studied: Path) -> None:
    result = hessdist.open_run(studied / "results" / "run.h5")[20]
    whole = result.eigenvectors_smallest[1]
    pieces = [result.part("smallest", 2, tensor.name) for tensor in result.run.parameters]
    assert [piece.shape for piece in pieces] == [(5, 6), (5,), (3, 5), (3,)]
    assert np.array_equal(np.concatenate([piece.ravel() for piece in pieces]), whole)
    with pytest.raises(KeyError, match=r"no parameter 'fc3\.weight'; there are fc1\.weight"):
        result.part("smallest", 2, "fc3.weight")


def test_pandas(path: Path) -> None:
    pytest.importorskip("pandas")
    run = hessdist.open_run(path)
    frame = run.to_pandas()
    assert len(frame) == 4 * 8
    largest = frame[frame["end"] == "largest"].pivot(
        index="step", columns="rank", values="eigenvalue"
    )
    assert np.array_equal(largest.to_numpy(), run.eigenvalues_largest)
    assert set(frame.columns) >= {"residual", "converged", "loss", "gradient_norm"}


def test_a_summary_reads_no_eigenvectors(tmp_path: Path) -> None:
    """Ten gigabytes of them take no time: they are not looked at (and here not even written)."""
    path = write_run(tmp_path / "run.h5", steps=3, size=50)
    for part in (tmp_path / "run.checkpoints").glob("step-*.h5"):
        with part.open("r+b") as file:
            file.truncate(part.stat().st_size // 2)
    run = hessdist.open_run(path)
    assert run.eigenvalues_largest.shape == (3, 5)
    assert np.isfinite(run.to_xarray()["loss"]).all()


# -- two runs --------------------------------------------------------------------------------


def test_two_runs_side_by_side(tmp_path: Path, run: Run) -> None:
    one = hessdist.open_run(write_run(tmp_path / "a.h5", steps=4, size=50))
    write_run(tmp_path / "b.h5", steps=6, size=50, largest=3, seed=1)
    other = hessdist.open_run(tmp_path / "b.h5")
    found = compare(one, other)
    assert list(found.steps) == [0, 10, 20, 30]
    assert found.largest.shape == (4, 2, 3)
    assert np.array_equal(found.largest[:, 0], one.eigenvalues_largest[:, :3])
    assert np.array_equal(found.smallest[:, 1], other.eigenvalues_smallest[:4])
    mine, theirs = one[20].eigenvectors_largest[:3], other[20].eigenvectors_largest
    mine, theirs = (np.linalg.qr(v.T.astype(float))[0] for v in (mine, theirs))
    cosines = np.linalg.svd(mine.T @ theirs, compute_uv=False)
    assert found.angles_largest[2] == pytest.approx(np.arccos(cosines), abs=1e-6)
    assert compare(one, one).angles_smallest == pytest.approx(np.zeros((4, 3)), abs=1e-6)
    done = run("compare", "a.h5", "b.h5")
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]) == 4


def test_two_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    one = hessdist.open_run(write_run(tmp_path / "a.h5", steps=1, size=50))
    other = hessdist.open_run(write_run(tmp_path / "b.h5", steps=2, size=60))
    assert np.isnan(compare(one, other).angles_largest).all()
    assert any("50 parameters here, 60 there" in remark for remark in compare(one, other).remarks)
    other.steps += 5
    with pytest.raises(ResultError, match="no step in common"):
        compare(one, other)
