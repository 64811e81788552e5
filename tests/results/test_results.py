from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

import hessdist
from hessdist.errors import OutputError, ResultError
from hessdist.results import seal
from hessdist.results.deferred import DeferredErrors
from hessdist.results.reader import ParameterTensor, PartState, part_state
from hessdist.results.schema import SCHEMA_VERSION, TABLES, VECTORS
from hessdist.results.writer import (
    CheckpointFile,
    RunDescription,
    check_writable,
    part_path,
    parts_folder,
    replacing,
    write_index,
)

STEPS = (0, 50, 500)
K, M, D = 4, 2, 15
FINGERPRINT, DIGEST = "0123456789ab", "d" * 64
Numbers = Mapping[str, NDArray[Any]]

DESCRIPTION = RunDescription(
    job='name = "made up"\n',
    fingerprint=FINGERPRINT,
    num_parameters=D,
    num_samples=100,
    ranks=2,
    versions={"torch": "2.6", "petsc": "3.18", "slepc": "3.18", "mpi": "Open MPI", "hdf5": "1.10"},
    parameter_names=["fc.weight", "fc.bias", "scale"],
    parameter_shapes=[(4, 3), (2,), ()],
    parameter_offsets=[0, 12, 14, 15],
)


def numbers(step: int) -> Numbers:
    """Made-up results of a checkpoint; at step 500 a pair is missing and one not converged."""
    draw = np.random.default_rng(step)
    made: dict[str, Any] = {
        "loss": np.float64(draw.uniform(0, 2)),
        "gradient_norm": np.float64(draw.uniform(0, 1)),
        "eigenvalues_largest": np.sort(draw.uniform(0, 9, K))[::-1],
        "residuals_largest": draw.uniform(0, 1e-3, K),
        "converged_largest": np.ones(K, bool),
        "eigenvalues_smallest": np.sort(draw.uniform(-3, 0, M)),
        "residuals_smallest": draw.uniform(0, 1e-3, M),
        "converged_smallest": np.ones(M, bool),
        "products": np.int64(50 + step),
        "seconds": np.float64(1.5),
        "stability_bound": np.float64(draw.uniform(1, 9)),
        "eigenvectors_largest": draw.standard_normal((K, D)).astype("f4"),
        "eigenvectors_smallest": draw.standard_normal((M, D)).astype("f4"),
        "gradient": draw.standard_normal(D),
    }
    if step == 500:
        made["converged_largest"][-1] = made["converged_smallest"][-1] = False
        made["eigenvalues_smallest"][-1] = made["residuals_smallest"][-1] = np.nan
    return made


def write_part(path: Path, step: int, vectors: bool = True) -> Path:
    part = part_path(path, step, FINGERPRINT)
    with replacing(part) as file:
        checkpoint = CheckpointFile(file, DESCRIPTION, step, {"largest": K, "smallest": M})
        made = numbers(step)
        for field in TABLES:
            checkpoint.put(field.name, made[field.name])
        checkpoint.put("gradient", made["gradient"])
        for name in ("eigenvectors_largest", "eigenvectors_smallest") if vectors else ():
            for row, vector in enumerate(made[name]):
                checkpoint.put_slice(name, 0, vector, row)
        checkpoint.finish({"checkpoint_digest": DIGEST})
    return part


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run of three checkpoints."""
    where = tmp_path / "results" / "made-up.h5"
    write_index(where, [write_part(where, step) for step in STEPS])
    return where


def parts(path: Path) -> list[Path]:
    return [part_path(path, step, FINGERPRINT) for step in STEPS]


def stacked(name: str) -> NDArray[Any]:
    return np.stack([numbers(step)[name] for step in STEPS])


# -- reading ---------------------------------------------------------------------------------


def test_a_run_gives_back_what_was_written(path: Path) -> None:
    run = hessdist.open_run(path)
    assert len(run) == 3
    assert run.steps.tolist() == list(STEPS)
    for field in TABLES:
        read, written = getattr(run, field.name), stacked(field.name)
        assert read.shape == written.shape
        assert np.array_equal(read, written, equal_nan=field.dtype == "f8"), field.name
    assert run.eigenvalues_largest.shape == (3, K)
    assert run.eigenvalues_smallest.shape == (3, M)
    assert run.converged_largest.dtype == bool
    assert run.products.dtype == np.int64
    assert (run.num_parameters, run.num_samples) == (D, 100)
    assert (run.job, run.fingerprint) == (DESCRIPTION.job, FINGERPRINT)
    assert hessdist.open_run(str(path)).steps.tolist() == list(STEPS)
    assert "3 checkpoints, 15 parameters, 100 samples" in repr(run)


def test_the_root_has_the_attributes_of_the_contract(path: Path) -> None:
    attributes = hessdist.open_run(path).attributes
    assert attributes["schema_version"] == SCHEMA_VERSION
    assert attributes["software"] == "hessdist"
    assert attributes["software_version"] == hessdist.__version__
    assert attributes["created"].startswith("20")
    assert attributes["ranks"] == 2
    for name, version in DESCRIPTION.versions.items():
        assert attributes[f"{name}_version"] == version


def test_the_parameter_tensors_are_there_by_name_shape_and_offset(path: Path) -> None:
    assert hessdist.open_run(path).parameters == [
        ParameterTensor("fc.weight", (4, 3), 0),
        ParameterTensor("fc.bias", (2,), 12),
        ParameterTensor("scale", (), 14),
    ]


@pytest.mark.parametrize("step", STEPS)
def test_a_checkpoint_has_its_row_of_the_tables_and_its_vectors(path: Path, step: int) -> None:
    result, written = hessdist.open_run(path)[step], numbers(step)
    for field in (*TABLES, *VECTORS):
        read = getattr(result, field.name)
        assert read.shape == written[field.name].shape
        assert np.array_equal(read, written[field.name], equal_nan=field.dtype == "f8")
    assert result.eigenvectors_smallest.dtype == np.float32
    assert result.step == step


def test_eigenvectors_are_read_only_when_asked_for_and_then_once(path: Path) -> None:
    run = hessdist.open_run(path)
    result = run[50]
    first = result.eigenvectors_smallest
    shutil.rmtree(parts_folder(path))
    assert result.eigenvectors_smallest is first
    assert result.eigenvalues_largest.shape == (K,)
    assert np.array_equal(hessdist.open_run(path).loss, stacked("loss"))
    with pytest.raises(ResultError, match=r"step 50 is missing or damaged.*\.checkpoints folder"):
        _ = result.eigenvectors_largest


def test_a_run_holds_no_file_open(path: Path) -> None:
    run = hessdist.open_run(path)
    _ = run[50].eigenvectors_smallest
    for file in (path, *parts(path)):
        with h5py.File(file, "r+") as writable:  # HDF5's lock would refuse
            writable.attrs["touched"] = True


def test_an_unknown_step_is_a_key_error_that_names_the_known_ones(path: Path) -> None:
    with pytest.raises(KeyError, match="no step 51; there are 0, 50, 500"):
        hessdist.open_run(path)[51]


def test_an_unknown_attribute_is_an_attribute_error(path: Path) -> None:
    with pytest.raises(AttributeError, match="eigenvalue"):
        _ = hessdist.open_run(path)[50].eigenvalue


def test_vectors_that_were_not_stored_are_an_error_with_the_key_to_set(tmp_path: Path) -> None:
    where = tmp_path / "small.h5"
    write_index(where, [write_part(where, 0, vectors=False)])
    result = hessdist.open_run(where)[0]
    assert result.gradient.shape == (D,)
    with pytest.raises(ResultError, match=r"not stored; run with spectrum.eigenvectors = true"):
        _ = result.eigenvectors_largest


# -- other readers ---------------------------------------------------------------------------


def test_xarray_reads_the_run_as_it_is(path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    with xarray.open_dataset(path, engine="h5netcdf") as dataset:
        assert dict(dataset.sizes) == {"step": 3, "largest": K, "smallest": M}
        assert dataset.eigenvalues_largest.dims == ("step", "largest")
        assert dataset.residuals_smallest.dims == ("step", "smallest")
        assert dataset.loss.dims == ("step",)
        for field in TABLES:
            variable = dataset[field.name]
            expected = stacked(field.name)
            assert np.array_equal(variable.values, expected, equal_nan=field.dtype == "f8")
            assert variable.attrs == {"units": field.units, "long_name": field.long_name}
        assert dataset.step.values.tolist() == list(STEPS)
        assert dataset.largest.values.tolist() == [1, 2, 3, 4]
        chosen = dataset.sel(step=50, largest=1).eigenvalues_largest
        assert float(chosen) == numbers(50)["eigenvalues_largest"][0]
        assert dataset.seconds.attrs["units"] == "s"
        assert dataset.attrs["job"] == DESCRIPTION.job


def test_xarray_reads_a_checkpoints_own_file(path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    with xarray.open_dataset(parts(path)[1], engine="h5netcdf") as dataset:
        assert dict(dataset.sizes) == {"largest": K, "smallest": M, "parameter": D}
        assert dataset.eigenvectors_largest.dims == ("largest", "parameter")
        assert dataset.attrs["step"] == 50
        for field in (*TABLES, *VECTORS):
            assert dataset[field.name].dims == field.dimensions
            assert np.array_equal(dataset[field.name].values, numbers(50)[field.name])
            assert dataset[field.name].attrs["long_name"] == field.long_name


@pytest.mark.parametrize("own", [False, True], ids=["the run's file", "a checkpoint's file"])
def test_xarray_reads_the_table_of_parameter_tensors(path: Path, own: bool) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    file = parts(path)[0] if own else path
    with xarray.open_dataset(file, engine="h5netcdf", group="parameters") as table:
        assert table.name.values.tolist() == list(DESCRIPTION.parameter_names)
        assert table.offset.values.tolist() == [0, 12, 14]
        assert table.shape.values.tolist() == ["4,3", "2", ""]
        assert table.offset.dims == ("tensor",)


def test_to_xarray_gives_what_xarray_reads_from_the_file(path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    made = hessdist.open_run(path).to_xarray()
    with xarray.open_dataset(path, engine="h5netcdf") as dataset:
        xarray.testing.assert_equal(made, dataset)
        assert made.eigenvalues_largest.attrs == dataset.eigenvalues_largest.attrs
        assert made.attrs.keys() == dataset.attrs.keys()
    assert made.step.dtype == np.int64
    assert made.converged_smallest.dtype == bool


def every_dataset(path: Path) -> Iterator[h5py.Dataset]:
    with h5py.File(path, "r") as file:
        found: list[h5py.Dataset] = []
        file.visititems(lambda _, thing: found.append(thing))
        yield from (thing for thing in found if isinstance(thing, h5py.Dataset))


def test_every_dataset_says_its_units_and_what_it_is(path: Path) -> None:
    for file in (path, *parts(path)):
        names = []
        for dataset in every_dataset(file):
            names.append(dataset.name)
            assert dataset.attrs["units"] in {"1", "s"}, dataset.name
            assert len(dataset.attrs["long_name"]) > 4, dataset.name
        assert {"/loss", "/eigenvalues_largest", "/parameters/name", "/largest"} <= {*names}


@pytest.mark.parametrize("own", [False, True], ids=["the run's file", "a checkpoint's file"])
def test_every_dimension_has_a_scale_of_its_length(path: Path, own: bool) -> None:
    for dataset in every_dataset(parts(path)[0] if own else path):
        if h5py.h5ds.is_scale(dataset.id):
            continue
        for size, dimension in zip(dataset.shape, dataset.dims, strict=True):
            assert len(dimension) == 1, dataset.name
            scale = dimension[0]
            assert h5py.h5ds.is_scale(scale.id), dataset.name
            assert scale.shape == (size,), dataset.name


def test_the_index_links_to_the_checkpoints_by_step(path: Path) -> None:
    with h5py.File(path, "r") as file:
        assert list(file["checkpoints"]) == ["step-00000000", "step-00000050", "step-00000500"]
        group = file["checkpoints/step-00000050"]
        assert group["eigenvectors_largest"].shape == (K, D)
        assert group["eigenvectors_largest"].dtype == np.float32
        link = file["checkpoints"].get("step-00000050", getlink=True)
        assert not Path(link.filename).is_absolute()


# -- files that move, vanish, are cut --------------------------------------------------------


def test_the_index_is_rebuilt_from_the_checkpoints_files(path: Path) -> None:
    before = hessdist.open_run(path)
    path.unlink()
    write_index(path, parts(path))
    after = hessdist.open_run(path)
    for field in TABLES:
        read = getattr(after, field.name)
        assert np.array_equal(read, getattr(before, field.name), equal_nan=field.dtype == "f8")
    assert np.array_equal(after[500].gradient, before[500].gradient)
    assert after.parameters == before.parameters


def test_a_run_can_be_moved_with_its_folder(path: Path, tmp_path: Path) -> None:
    there = tmp_path / "far" / "away"
    there.mkdir(parents=True)
    shutil.move(path, there)
    shutil.move(parts_folder(path), there)
    run = hessdist.open_run(there / path.name)
    assert np.array_equal(run[50].eigenvectors_largest, numbers(50)["eigenvectors_largest"])


def test_a_run_is_read_from_any_working_directory(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, relative in ((tmp_path, "results/made-up.h5"), (path.parent, "made-up.h5")):
        monkeypatch.chdir(folder)
        assert hessdist.open_run(relative)[0].gradient.shape == (D,)


@pytest.mark.parametrize(
    "error", [ValueError("by hand"), OSError("disk full"), KeyboardInterrupt()]
)
def test_a_writer_that_fails_leaves_the_file_as_it_was_and_nothing_else(
    path: Path, error: BaseException
) -> None:
    before = path.read_bytes()
    expected = OutputError if isinstance(error, OSError) else type(error)

    def write() -> None:
        with replacing(path) as file:
            file["half"] = np.ones(1000)
            file.flush()
            raise error

    with pytest.raises(expected) as caught:
        write()
    if expected is OutputError:
        assert str(path) in str(caught.value)
        assert "disk full" in str(caught.value)
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["made-up.checkpoints", "made-up.h5"]


def test_a_file_that_is_being_written_is_not_seen_under_its_name(path: Path) -> None:
    before = path.read_bytes()
    with replacing(path) as file:
        file["new"] = 1
        assert path.read_bytes() == before
        visible = {p.name for p in path.parent.iterdir() if not p.name.startswith(".")}
        assert visible == {"made-up.h5", "made-up.checkpoints"}
    with h5py.File(path, "r") as file:
        assert file["new"][()] == 1


@pytest.mark.parametrize("write", [check_writable, lambda path: replacing(path).__enter__()])
def test_a_place_below_a_file_cannot_be_written_and_is_named(tmp_path: Path, write: Any) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"cannot be written.*output\.path") as caught:
        write(tmp_path / "file" / "run.h5")
    assert str(tmp_path / "file") in str(caught.value)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_folder_in_the_place_of_the_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.h5").mkdir()
    with pytest.raises(OutputError, match=r"run\.h5 is a folder"):
        check_writable(tmp_path / "run.h5")


def cut(part: Path) -> None:
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])


def edit(**attributes: Any) -> Any:
    def change(part: Path) -> None:
        with h5py.File(part, "r+") as file:
            file.attrs.update(attributes)

    return change


def without(name: str) -> Any:
    def change(part: Path) -> None:
        with h5py.File(part, "r+") as file:
            del file[name]

    return change


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        (cut, PartState.DAMAGED),
        (Path.unlink, PartState.ABSENT),
        (lambda part: part.write_bytes(b""), PartState.DAMAGED),
        (
            lambda part: part.write_bytes(np.random.default_rng(0).bytes(5000)),
            PartState.DAMAGED,
        ),
        (edit(fingerprint="ba9876543210"), PartState.OTHER),
        (edit(checkpoint_digest="e" * 64), PartState.OTHER),
        (edit(complete=False), PartState.DAMAGED),
        (without("eigenvalues_smallest"), PartState.DAMAGED),
        (without("loss"), PartState.DAMAGED),
    ],
)
def test_only_a_whole_file_of_this_job_and_checkpoint_is_complete(
    path: Path, damage: Any, state: PartState
) -> None:
    part = parts(path)[1]
    assert part_state(part, FINGERPRINT, DIGEST) is PartState.COMPLETE
    damage(part)
    assert part_state(part, FINGERPRINT, DIGEST) is state


def test_any_flipped_bit_of_a_sealed_file_is_found(tmp_path: Path) -> None:
    part = tmp_path / "part.h5"
    with replacing(part, sealed=True) as file:
        file["x"] = np.arange(1000.0)
    assert seal.is_whole(part)
    data = part.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(data), 200):
        changed = bytearray(data)
        changed[position] ^= 1 << int(position) % 8
        part.write_bytes(changed)
        assert not seal.is_whole(part), position
    part.write_bytes(data[:-1])
    assert not seal.is_whole(part)


def test_an_error_of_the_disk_is_told_and_not_swallowed(tmp_path: Path) -> None:
    """HDF5 itself would let it pass, or end the process, when it closes its objects."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with DeferredErrors(full) as file:
        assert file.write(b"some bytes") == 10
        with pytest.raises(OSError, match="No space left"):
            file.raise_error()


def test_a_file_whose_writer_did_not_finish_is_not_complete(tmp_path: Path) -> None:
    part = tmp_path / "part.h5"
    with replacing(part) as file:
        checkpoint = CheckpointFile(file, DESCRIPTION, 0, {"largest": K, "smallest": M})
        for field in TABLES:
            checkpoint.put(field.name, numbers(0)[field.name])
        file.attrs["checkpoint_digest"] = DIGEST
    assert part_state(part, FINGERPRINT, DIGEST) is PartState.DAMAGED


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = np.ones(3)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "does not exist"),
        (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "no HDF5 file"),
        (lambda path: path.write_bytes(b""), "no HDF5 file"),
        (cut, "damaged"),
        (foreign, "not a result of hessdist"),
        (edit(schema_version=SCHEMA_VERSION + 1), f"schema version {SCHEMA_VERSION + 1}"),
        (without("eigenvalues_largest"), "damaged"),
        (without("parameters"), "damaged"),
    ],
)
def test_what_cannot_be_read_as_a_run_is_an_error_of_one_line(
    path: Path, damage: Any, says: str
) -> None:
    damage(path)
    with pytest.raises(ResultError, match=says) as caught:
        hessdist.open_run(path)
    line = str(caught.value)
    assert str(path) in line
    assert line.isprintable()
    assert caught.value.remedy


def test_a_folder_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ResultError):
        hessdist.open_run(tmp_path)


# -- a laptop --------------------------------------------------------------------------------

LAPTOP = """
import sys
from importlib.abc import MetaPathFinder

allowed = {*sys.stdlib_module_names, "numpy", "h5py", "hessdist"}

class Laptop(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ImportError(f"{name} is not on this laptop")
        return None

sys.meta_path.insert(0, Laptop())
for name in ("torch", "mpi4py", "petsc4py", "scipy", "matplotlib", "pydantic", "typer", "xarray"):
    assert name not in sys.modules
    try:
        __import__(name)
    except ImportError:
        continue
    raise AssertionError(f"{name} is not hidden")

import hessdist
assert "numpy" not in sys.modules, "import hessdist is not cheap"
run = hessdist.open_run(sys.argv[1])
print(run.steps.tolist(), run.eigenvalues_largest.shape, run[50].eigenvectors_smallest.shape)
print(repr(float(run.eigenvalues_largest[1, 0])))
assert not {"mpi4py", "torch", "petsc4py", "slepc4py"} & set(sys.modules)
"""


@pytest.mark.skipif(h5py.get_config().mpi, reason="this h5py needs mpi4py itself")
def test_results_are_read_where_there_is_nothing_but_h5py_and_numpy(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAPTOP, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_"))},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"[0, 50, 500] (3, {K}) ({M}, {D})",
        repr(float(numbers(50)["eigenvalues_largest"][0])),
    ]
