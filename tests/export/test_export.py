"""Results for other programs: each format is read back by what reads it."""

from __future__ import annotations

import csv
import errno
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import Done, invoked, require_plain_end
from written import changed, density_section, exact_section, write_run

import hessdist
from hessdist.results.units import Measurements, Variable

STUDIES = {"exact": exact_section(), "density": density_section()}


def a_pair_short(tables: dict[str, np.ndarray]) -> None:
    """One pair was not found, and one did not converge; the optimiser is known."""
    tables["eigenvalues_smallest"][1, 2] = np.nan
    tables["converged_smallest"][1, 1:] = False
    tables["stability_bound"][:] = [40, 40, 20]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run.h5", steps=3, studies=STUDIES, change=a_pair_short)


def exported(path: Path, formats: str, to: str = "out", name: str = "run.h5") -> Done:
    done = invoked(path.parent, "export", name, "--to", to, "--format", formats)
    assert done.returncode == 0, done
    return done


def refused(path: Path, formats: str, to: str = "out") -> str:
    done = invoked(path.parent, "export", "run.h5", "--to", to, "--format", formats)
    require_plain_end(done, formats)
    assert done.returncode == 2, done
    return done.stderr


# -- TensorBoard -----------------------------------------------------------------------------


def board(folder: Path) -> Any:
    """What TensorBoard's own reader finds in a folder."""
    module = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(module).EventAccumulator(str(folder), {"histograms": 0})
    return reader.Reload()


def test_tensorboard_reads_the_numbers_by_step(path: Path) -> None:
    pytest.importorskip("tensorboard")
    done = exported(path, "tensorboard")
    assert done.stdout.splitlines()[0] == "exported: out/run/events.out.tfevents.hessdist"
    run, read = hessdist.open_run(path), board(path.parent / "out" / "run")
    tags = set(read.Tags()["scalars"])
    wanted = {f"hessian/largest/{i}" for i in range(1, 6)}
    wanted |= {f"hessian/smallest/{i}" for i in range(1, 4)}
    wanted |= {"hessian/stability_bound", "loss", "gradient_norm"}
    assert tags == wanted | {"solve/products", "solve/seconds", "solve/unconverged"}

    def of(tag: str) -> dict[int, float]:
        return {event.step: event.value for event in read.Scalars(tag)}

    for i in range(5):
        largest = np.float32(run.eigenvalues_largest[:, i])
        assert of(f"hessian/largest/{i + 1}") == dict(zip([0, 10, 20], largest, strict=True))
    assert of("hessian/stability_bound") == {0: 40, 10: 40, 20: 20}
    assert set(of("hessian/smallest/3")) == {0, 20}, "what is NaN is no number"
    assert of("solve/unconverged") == {0: 0, 10: 2, 20: 0}
    assert of("loss")[10] == np.float32(run.loss[1])


def test_tensorboard_reads_whole_spectra_with_their_own_bins(path: Path) -> None:
    pytest.importorskip("tensorboard")
    exported(path, "tensorboard")
    read = board(path.parent / "out" / "run" / "spectra")
    names = {f"{m}/{k}" for m in ("hessian", "gauss_newton") for k in ("exact", "density/all")}
    assert names < set(read.Tags()["histograms"])
    exact, seen = STUDIES["exact"]["eigenvalues"], STUDIES["density"]
    for row, event in enumerate(read.Histograms("gauss_newton/exact")):
        assert event.step == 10 * row
        values, found = exact[row, 1], event.histogram_value
        edges = [found.min, *found.bucket_limit]
        counts, _ = np.histogram(values, np.array(edges) * (1 + 1e-6 * np.sign(edges)))
        assert counts.tolist() == found.bucket
        assert found.bucket[0] > 0
        assert found.num == len(values)
        assert found.sum == pytest.approx(values.sum())
        assert found.sum_squares == pytest.approx((values**2).sum())
    for row, event in enumerate(read.Histograms("hessian/density/fc1")):
        place = row, 0, 1
        nodes, weights = seen["nodes"][place], seen["weights"][place]
        found = event.histogram_value
        assert found.num == pytest.approx(12), "d of the block"
        above = np.nansum(weights[nodes > found.bucket_limit[-2]]) * 12 / 3
        assert found.bucket[-1] == pytest.approx(above, rel=1e-6)
        assert found.sum == pytest.approx(np.nansum(nodes * weights) * 12 / 3)


def by_row(tables: dict[str, np.ndarray]) -> None:
    """Numbers of a checkpoint that do not depend on how many there are."""
    for table in tables.values():
        table.T[...] = np.arange(1, len(table) + 1)


def test_events_are_added_and_a_torn_end_is_mended(tmp_path: Path) -> None:
    """TensorBoard goes on reading the file that it has open."""
    pytest.importorskip("tensorboard")
    path = write_run(tmp_path / "run.h5", steps=2, change=by_row)
    exported(path, "tensorboard")
    file = tmp_path / "out" / "run" / "events.out.tfevents.hessdist"
    before, inode = file.read_bytes(), file.stat().st_ino
    exported(path, "tensorboard")
    assert file.read_bytes() == before
    with file.open("ab") as opened:
        opened.write(before[-30:-2])  # a killed writer
    times = {part: part.stat().st_mtime_ns for part in tmp_path.glob("*.checkpoints/step-*.h5")}
    write_run(path, steps=3, change=by_row)
    for part, time in times.items():
        os.utime(part, ns=(time, time))
    exported(path, "tensorboard")
    content = file.read_bytes()
    assert content.startswith(before)
    assert file.stat().st_ino == inode
    assert [event.step for event in board(file.parent).Scalars("loss")] == [0, 10, 20]
    write_run(path, steps=3, change=lambda tables: tables["loss"].fill(7))
    exported(path, "tensorboard")
    events = board(file.parent).Scalars("loss")
    assert [event.value for event in events] == [7, 7, 7], "other numbers take the place of all"


def test_an_event_file_of_a_training_is_left_alone(path: Path) -> None:
    pytest.importorskip("tensorboard")
    folder = path.parent / "out" / "run"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.hessdist").write_bytes(b"\x18" + bytes(30) + b"brain.Event:2")
    assert "is no event file of hessdist" in refused(path, "tensorboard")
    training = folder / "events.out.tfevents.1"
    training.write_bytes(b"mine")
    (folder / "events.out.tfevents.hessdist").unlink()
    exported(path, "tensorboard")
    assert training.read_bytes() == b"mine"


# -- tables ----------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_have_every_digit_and_say_whose_they_are(path: Path) -> None:
    exported(path, "csv")
    run, out = hessdist.open_run(path), path.parent / "out"
    pairs = rows(out / "run-eigenvalues.csv")
    frame = run.to_pandas()
    assert len(pairs) == len(frame) == 3 * 8
    for mine, theirs in zip(pairs, frame.to_dict("records"), strict=True):
        assert (mine["job"], mine["fingerprint"]) == ("written", run.fingerprint)
        assert (int(mine["step"]), mine["end"]) == (theirs["step"], theirs["end"])
        assert int(mine["rank"]) == theirs["rank"]
        assert mine["converged"] == str(theirs["converged"])
        value = float(mine["eigenvalue"] or "nan")
        assert np.array_equal(value, theirs["eigenvalue"], equal_nan=True), "to the last bit"
    checkpoints = rows(out / "run-checkpoints.csv")
    assert [float(row["loss"]) for row in checkpoints] == run.loss.tolist()
    assert [float(row["stability_bound"]) for row in checkpoints] == [40, 40, 20]
    (result,) = rows(out / "run-result.csv")
    assert (result["operator"], result["num_parameters"]) == ("hessian", "7")


def test_arrays_of_studies_have_their_coordinates(path: Path) -> None:
    exported(path, "csv")
    exact = STUDIES["exact"]
    table = rows(path.parent / "out" / "run-exact-by-step-operator-index.csv")
    assert len(table) == exact["eigenvalues"].size
    row = table[24 * 3 + 5]  # step 10, the second operator, the sixth eigenvalue
    assert (row["step"], row["operator"], row["index"]) == ("10", "gauss_newton", "6")
    assert float(row["eigenvalues"]) == exact["eigenvalues"][1, 1, 5]


def test_every_array_of_every_study_is_in_a_table(studied: Path, tmp_path: Path) -> None:
    source = str(studied / "results" / "run.h5")
    done = invoked(tmp_path, "export", source, "--to", "out", "--format", "csv")
    assert done.returncode == 0, done
    run, lengths = hessdist.open_run(source), {}
    for file in (tmp_path / "out").iterdir():
        table = rows(file)
        study = file.stem.removeprefix("run-").split("-by-")[0].replace("-", "_")
        lengths |= {(study, name): len(table) for name in table[0]}
    assert len(run.studies) > 4
    for study, measured in run.studies.items():
        for name, variable in measured.variables.items():
            if variable.dimensions != (name,):
                assert lengths[study, name] == variable.values.size, (study, name)


def test_parquet_has_the_same_tables(path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    exported(path, "parquet,csv")
    out = path.parent / "out"
    files = sorted(out.glob("*.parquet"))
    assert [file.stem for file in files] == [file.stem for file in sorted(out.glob("*.csv"))]
    run = hessdist.open_run(path)
    table = parquet.read_table(out / "run-eigenvalues.parquet").to_pydict()
    both = np.hstack([run.eigenvalues_largest, run.eigenvalues_smallest]).ravel()
    assert np.array_equal(table["eigenvalue"], both, equal_nan=True)
    exported(path, "parquet")  # over its own files
    other = import_module("pyarrow").table({"job": ["written"], "fingerprint": [""]})
    parquet.write_table(other, out / "run-result.parquet")
    assert "is no table of hessdist in Parquet" in refused(path, "parquet")


def test_names_in_a_result_are_neither_formulas_nor_paths(tmp_path: Path) -> None:
    exact = exact_section()
    names = np.array(["=1+1", "\x1b[2J\nx"], dtype=object)
    section = changed(exact, operator=names)
    odd = Variable(("step", "../../away"), np.ones((2, 3)), "odd")
    section = Measurements({**section.variables, "odd": odd})
    path = write_run(tmp_path / "run.h5", steps=1, name="@job", studies={"exact": section})
    done = exported(path, "csv")
    assert done.stdout.isascii()
    assert {file.parent for file in tmp_path.rglob("*.csv")} == {tmp_path / "out"}
    table = rows(tmp_path / "out" / "run-exact-by-step-operator.csv")
    assert [row["operator"] for row in table[:2]] == ["'=1+1", "\\x1b[2J\\nx"]
    assert table[0]["job"] == "'@job"
    assert "\x1b" not in "".join(file.read_text() for file in (tmp_path / "out").iterdir())


# -- W&B and MLflow: what they are called with -----------------------------------------------


class Called(list[tuple[str, Any]]):
    """The calls of an imitated package, in order."""

    def note(self, name: str, answer: Any = None) -> Any:
        def called(*words: Any, **named: Any) -> Any:
            self.append((name, (*words, named) if named else words))
            return answer

        return called


def test_wandb_is_called_offline_with_rising_steps(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, wandb = Called(), ModuleType("wandb")
    run = SimpleNamespace(log=calls.note("log"), finish=calls.note("finish"), dir="out/w/files")
    wandb.init = calls.note("init", run)  # type: ignore[attr-defined]
    wandb.Settings = wandb.Histogram = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    assert exported(path, "wandb").stdout == "exported: out/w\n"
    assert [name for name, _ in calls] == ["init", "log", "log", "log", "finish"]
    (begun,) = calls[0][1]
    assert begun["mode"] == "offline"
    assert begun["config"]["fingerprint"] == "0123456789ab"
    logged = {named["step"]: numbers for _, (numbers, named) in calls[1:-1]}
    assert list(logged) == [0, 10, 20]
    assert logged[10]["hessian/largest/1"] == hessdist.open_run(path).eigenvalues_largest[1, 0]
    counts, edges = logged[10]["gauss_newton/exact"]["np_histogram"]
    assert (sum(counts), len(edges)) == (24, len(counts) + 1)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"

    def full(*_words: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run.log = full
    assert "No space left on device" in refused(path, "wandb")


def test_mlflow_is_called_with_a_store_of_files(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, mlflow, entities = Called(), ModuleType("mlflow"), ModuleType("mlflow.entities")
    made = SimpleNamespace(info=SimpleNamespace(run_id="r"))
    client = SimpleNamespace(
        get_experiment_by_name=calls.note("get"), create_experiment=calls.note("experiment", "7"),
        create_run=calls.note("run", made), log_param=calls.note("param"),
        log_batch=calls.note("batch"), set_terminated=calls.note("end"),
    )  # fmt: skip
    mlflow.MlflowClient = calls.note("client", client)  # type: ignore[attr-defined]
    entities.Metric = lambda *words: words  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    assert exported(path, "mlflow").stdout == "exported: out/mlruns\n"
    assert calls[0][1][0]["tracking_uri"] == (path.parent / "out" / "mlruns").as_uri()
    assert calls[-1] == ("end", ("r",))
    batches = [words[-1]["metrics"] for name, words in calls if name == "batch"]
    losses = {step: value for one in batches for key, value, _, step in one if key == "loss"}
    assert losses == dict(zip([0, 10, 20], hessdist.open_run(path).loss, strict=True))


# -- refusals --------------------------------------------------------------------------------


def test_nothing_is_written_where_a_format_cannot_be(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no format 'xlsx'" in refused(path, "csv,xlsx")
    for name, library in (("tensorboard", "tensorboard"), ("parquet", "pyarrow")):
        monkeypatch.setitem(sys.modules, library, None)  # it cannot be imported
        assert f"pip install 'hessdist[{name}]'" in refused(path, f"csv,{name}")
    assert "is no folder" in refused(path, "csv", to="run.h5")
    assert not (path.parent / "out").exists()


def test_tables_of_others_are_left_alone(path: Path) -> None:
    other = path.parent / "out" / "run-result.csv"
    other.parent.mkdir()
    other.write_text("step,loss\n0,1\n", encoding="utf-8")
    assert "is no table of hessdist in CSV" in refused(path, "csv")
    assert [file.name for file in other.parent.iterdir()] == [other.name]
    other.unlink()
    other.symlink_to(path)
    before = path.read_bytes()
    assert "is read by this command" in refused(path, "csv")
    assert path.read_bytes() == before


def test_a_full_disk_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    said = refused(path, "csv")
    assert "run-result.csv cannot be written (No space left on device)" in said
    assert "change --to" in said
    assert not list((path.parent / "out").iterdir())
