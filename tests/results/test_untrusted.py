"""Results of unknown origin: they read no other file, hang nowhere, and fail in one line."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import unicodedata
import zlib
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Run
from malformed import NAMES, SECRET, malformed, raw_dataset
from rich.console import Console
from written import write_run

import hessdist
from hessdist.config.loader import parse_job
from hessdist.errors import HessdistError, InputError, ResultError
from hessdist.present.checkpoints import comparison
from hessdist.present.look import Look
from hessdist.present.page import page_of
from hessdist.results.compare import compare
from hessdist.results.pack import pack
from hessdist.service.status import status_of
from hessdist.studies.shows import figures, steps, tables, views

pytestmark = pytest.mark.timeout(120)
PASSWD = Path("/etc/passwd")


@pytest.fixture(autouse=True)
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own text is what counts here; plotly is megabytes of it."""
    monkeypatch.setattr("hessdist.present.page._plotly", str)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return write_run(tmp_path / "mine" / "run.h5", steps=3, size=20)


# -- the functions behind the commands, which return what they show ----------------------------


def shown(path: Path) -> str:
    console = Console(file=io.StringIO(), width=140)
    for table in list(tables(hessdist.open_run(path))):
        console.print(table)
    return console.file.getvalue()


def page(path: Path) -> str:
    run = hessdist.open_run(path)
    return page_of(run, parse_job(run.job, str(path))[0].name, views(run), steps(run))


def compared(path: Path) -> str:
    run = hessdist.open_run(path)
    console = Console(file=io.StringIO(), width=140)
    console.print(comparison(compare(run, run)))
    return console.file.getvalue()


def packed(path: Path) -> str:
    one = path.with_name("packed.h5")
    pack(hessdist.open_run(path), one)
    return one.read_bytes().decode("latin-1")


def in_python(path: Path) -> str:
    run = hessdist.open_run(path)
    for step in map(int, run.steps):
        vectors = run[step].eigenvectors_largest, run[step].eigenvectors_smallest
        assert all(vector.shape[1] == run.num_parameters for vector in vectors)
        assert run[step].gradient.shape == (run.num_parameters,)
    return str((run.to_xarray(), [study.to_xarray() for study in run.studies.values()]))


def folder(path: Path) -> str:
    return shown(path.with_suffix(".checkpoints"))


def status(path: Path) -> str:
    return "\n".join(status_of(path).lines())


def drawn(path: Path) -> str:
    run, look = hessdist.open_run(path), Look(formats=("svg",))
    text = ""
    with look.applied():
        for name, figure in figures(run, parse_job(run.job, str(path))[0].name):
            (made,) = look.save(figure, path.parent / "figures", name)
            text += made.read_text(encoding="utf-8")
    return text


READERS = (shown, page, compared, packed, in_python, folder)


def outcome(read: Callable[[Path], str], path: Path) -> str:
    """What a function shows, or the line that it fails with."""
    try:
        return read(path)
    except HessdistError as caught:
        error = caught
    assert error.exit_status == InputError.exit_status
    assert error.remedy
    assert len(str(error)) < 1000
    return f"hessdist: {error}"


def fails(read: Callable[[Path], str], path: Path) -> bool:
    return outcome(read, path).startswith("hessdist: ")


def change(path: Path, name: str, values: Any, **options: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, data=values, **options)


def relink(path: Path, name: str, target: str, where: str = "/") -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = h5py.ExternalLink(target, where)


# -- drawn at random -------------------------------------------------------------------------


def attack(source: Path, base: Path, seeds: range, readers: tuple[Any, ...]) -> None:
    logging.disable(logging.WARNING)
    try:
        for seed in seeds:
            target = base / str(seed) / "run.h5"
            what = malformed(source, target, random.Random(seed))
            for read in readers:
                try:
                    text = outcome(read, target)
                except Exception as error:
                    error.add_note(f"draw {seed}: {what}, {read.__name__}")
                    raise
                assert SECRET not in text, (seed, what, read)
                assert "root:x:0" not in text, (seed, what, read)
                if read in {shown, compared, folder}:
                    assert "\x1b" not in text, (seed, what, read)
            shutil.rmtree(target.parent)
    finally:
        logging.disable(logging.NOTSET)


def test_one_thing_that_is_wrong_is_one_line_or_nothing(path: Path, tmp_path: Path) -> None:
    attack(path, tmp_path, range(30), READERS)


def test_so_it_is_in_a_packed_file(path: Path, tmp_path: Path) -> None:
    pack(hessdist.open_run(path), tmp_path / "one.h5")
    attack(tmp_path / "one.h5", tmp_path, range(1000, 1010), READERS[:-1])


def test_so_it_is_in_the_results_of_studies(studied: Path, tmp_path: Path) -> None:
    source = studied / "results" / "run.h5"
    attack(source, tmp_path, range(2000, 2004), (shown, page))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_them(path: Path, studied: Path, tmp_path: Path) -> None:
    attack(path, tmp_path, range(10_000, 13_000), (*READERS, status))
    attack(studied / "results" / "run.h5", tmp_path, range(20_000, 20_500), (*READERS, drawn))


# -- other files -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "step", "parameters/name"])
def test_no_array_comes_from_another_file(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        shape = file[name].shape
        del file[name]
        raw_dataset(file, name, shape, PASSWD)
    for read in (shown, page, compared, packed, in_python):
        assert "is stored in another file" in outcome(read, path)


def test_no_array_is_a_view_of_another_file(path: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["loss"] = [111.0, 222.0, 333.0]
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "loss", (3,))
    with h5py.File(path, "r+") as file:
        del file["loss"]
        file.create_virtual_dataset("loss", layout)
        assert list(file["loss"][()]) == [111.0, 222.0, 333.0]
    for read in (shown, page, compared, packed, in_python):
        assert "is stored in another file" in outcome(read, path)


def test_a_view_of_a_pipe_is_not_opened(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    layout = h5py.VirtualLayout((3,), "f8", maxshape=(None,))
    layout[:] = h5py.VirtualSource("pipe", "loss", (3,), maxshape=(None,))
    with h5py.File(path, "r+") as file:
        del file["loss"]
        file.create_virtual_dataset("loss", layout)
    assert "is stored in another file" in outcome(shown, path)


@pytest.mark.parametrize("how", ["absolute", "upwards", "symbolic"])
def test_links_stay_in_the_folder_of_the_run(path: Path, tmp_path: Path, how: str) -> None:
    """Also to a file that is a result itself."""
    other = write_run(tmp_path / "other.h5", steps=3, size=20, seed=1)
    (part,) = other.with_suffix(".checkpoints").glob("step-00000010.*")
    names = {"absolute": str(part), "upwards": f"../other.checkpoints/{part.name}"}
    path.with_name("near.h5").symlink_to(part)
    relink(path, "checkpoints/step-00000010", names.get(how, "near.h5"))
    for read in (page, compared, packed, in_python):
        assert "links to a file outside of its own folder" in outcome(read, path)


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_links_lead_to_files_alone(path: Path, what: str) -> None:
    target = path.with_name(what)
    if what == "pipe":
        os.mkfifo(target)
    elif what == "device":
        target.symlink_to("/dev/zero")
    else:
        target.mkdir()
    relink(path, "checkpoints/step-00000010", what)
    for read in (page, compared, packed, in_python):
        assert fails(read, path)


def test_a_pipe_is_no_result(path: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.h5"
    os.mkfifo(pipe)
    for read in (shown, page, compared, packed, in_python, status):
        assert "is no regular file" in outcome(read, pipe) or read is status
    (part, *_) = path.with_suffix(".checkpoints").glob("step-00000010.*")
    part.unlink()
    os.mkfifo(part)
    os.mkfifo(part.with_name("step-00000020.failed"))
    assert "is no regular file" in outcome(in_python, path)
    assert list(hessdist.open_run(part.parent).steps) == [0, 20]
    assert not fails(shown, path)


def test_links_end(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = file["checkpoints"]
        del group["step-00000000"], group["step-00000010"], group["step-00000020"]
        group["step-00000000"] = h5py.ExternalLink("run.h5", "checkpoints/step-00000000")
        group["step-00000010"] = h5py.SoftLink("/checkpoints/step-00000010")
        group["step-00000020"] = file["/"]
        file["studies"] = file["/"]
    for read in (shown, page, compared, packed, in_python):
        assert fails(read, path)


# -- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loss", "step", "eigenvalues_largest", "parameters/name"])
def test_no_memory_is_taken_for_what_a_file_only_declares(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        kind, shape = file[name].dtype, (10**12, *file[name].shape[1:])
        del file[name]
        file.create_dataset(name, shape, kind, chunks=(1024, *shape[1:]))
    for read in (shown, page, compared, packed, in_python):
        assert fails(read, path)


def test_vectors_that_are_not_there_take_no_memory(path: Path) -> None:
    """The run declares a model of 10¹² parameters, and is consistent."""
    (part,) = path.with_suffix(".checkpoints").glob("step-00000010.*")
    size = 10**12
    for one in (path, part):
        with h5py.File(one, "r+") as file:
            file.attrs["num_parameters"] = size
            file["parameters/shape"][0] = str(size)
    with h5py.File(part, "r+") as file:
        for name, shape in (("gradient", (size,)), ("eigenvectors_largest", (5, size))):
            del file[name]
            file.create_dataset(name, shape, "f4", chunks=(*(1,) * (len(shape) - 1), 1 << 20))
    result = hessdist.open_run(path)[10]
    for name in ("gradient", "eigenvectors_largest"):
        with pytest.raises(ResultError, match="larger than its file can hold"):
            getattr(result, name)
    with pytest.raises(ResultError, match="larger than its file can hold"):
        result.eigenvector("largest", 1)


def test_a_small_file_unpacks_to_no_large_array(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["step"], file["loss"]
        for name, kind in (("step", "i8"), ("loss", "f8")):
            dataset = file.create_dataset(
                name, (1 << 24,), kind, chunks=(1 << 24,), compression="gzip"
            )
            dataset.id.write_direct_chunk((0,), zlib.compress(bytes(8 << 24)))
    assert "larger than its file can hold" in outcome(shown, path)


def test_a_chunk_unpacks_to_its_own_size(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["loss"]
        dataset = file.create_dataset(
            "loss", (3,), "f8", chunks=(1 << 17,), maxshape=(None,), compression="gzip"
        )
        dataset.id.write_direct_chunk((0,), zlib.compress(os.urandom(3 << 20), 1))
    assert "unpacks to more than its size" in outcome(shown, path)


def test_many_names_do_not_share_one_long_text(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["parameters/name"]
        names = ["n" * (1 << 20), *["m"] * 4000]
        dataset = file["parameters"].create_dataset("name", data=names)
        start = dataset.id.get_offset()
    with path.open("r+b") as raw:  # all entries become the first one
        raw.seek(start)
        first = raw.read(16)
        raw.seek(start)
        raw.write(first * 4001)
    with h5py.File(path, "r+") as file:
        for name in ("shape", "offset"):
            del file[f"parameters/{name}"]
            file[f"parameters/{name}"] = ["1"] * 4001 if name == "shape" else np.arange(4001)
        file.attrs["num_parameters"] = 4001
    assert "larger than its file can hold" in outcome(shown, path)


def test_large_results_are_read(tmp_path: Path) -> None:
    """Vectors with many zeros too, as of dead units, and behind a link to the whole folder."""
    size = 200_000
    path = write_run(tmp_path / "disk" / "run.h5", steps=1, size=size)
    (tmp_path / "here").symlink_to(tmp_path / "disk")
    run = hessdist.open_run(tmp_path / "here" / "run.h5")
    pack(run, tmp_path / "one.h5")
    again = hessdist.open_run(tmp_path / "one.h5")
    assert np.array_equal(run[0].eigenvectors_largest, again[0].eigenvectors_largest)
    (part,) = path.with_suffix(".checkpoints").glob("step-*.h5")
    with h5py.File(part, "r+") as file:
        file["gradient"][1000:] = 0
        file["eigenvectors_largest"][:, 1000:] = 0
    pack(run, tmp_path / "two.h5")
    assert (tmp_path / "two.h5").stat().st_size < 2 * (tmp_path / "one.h5").stat().st_size
    assert hessdist.open_run(tmp_path / "two.h5")[0].gradient.shape == (size,)


# -- attributes and jobs ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["job", "ranks", "num_parameters", "num_samples", "software"])
@pytest.mark.parametrize("value", [None, np.arange(3), b"\xff\xfe", -1.5, h5py.Empty("f8")])
def test_attributes_are_of_their_kind(path: Path, name: str, value: Any) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value
    for read in (shown, page, compared, packed, in_python):
        assert fails(read, path)


@pytest.mark.parametrize("version", ["three", np.arange(3), -1, float("nan")])
def test_the_version_of_the_schema_is_a_number(path: Path, version: Any) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = version
    assert "schema_version" in outcome(shown, path)


@pytest.mark.parametrize(
    "text", ["[[[", "", "x = " + "[" * 5000 + "]" * 5000, "x = " + "9" * 5000, "[model]\nx = 1"]
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_job_that_is_none(path: Path, text: str, beside: bool) -> None:
    if beside:
        job = path.with_suffix(".checkpoints") / "job.toml"
        job.write_text(text, encoding="utf-8")
        assert str(job) in outcome(status, path)
        job.write_bytes(b"\xff\xfe")
        assert str(job) in outcome(status, path)
        return
    with h5py.File(path, "r+") as file:
        file.attrs["job"] = text
    for read in (page, drawn, status):
        assert str(path) in outcome(read, path)


# -- names and numbers -----------------------------------------------------------------------


def named(path: Path, name: str) -> Path:
    """Write a run that has a name wherever it has one."""
    write_run(path, steps=2)
    words = json.dumps(name).replace("\x7f", "\\u007f")
    with h5py.File(path, "r+") as file:
        job = file.attrs["job"].replace('"written"', words).replace('"lenet"', words)
        file["parameters/name"][0] = name.replace("\0", "")
        for attribute in ("job", "software_version", "torch_version"):
            text = job if attribute == "job" else name.replace("\0", "")
            file.attrs.modify(attribute, text)
    return path


def test_no_name_is_more_than_a_name(tmp_path: Path) -> None:
    name = " ".join(sorted(NAMES, key=len))
    path = named(tmp_path / "run.h5", name)
    lines = shown(path) + compared(path)
    assert not {c for c in lines if unicodedata.category(c) in {"Cc", "Cf"}} - {"\n"}
    text = page(path)
    assert hessdist.open_run(path).parameters[0].name == name.replace("\0", "")
    plain = page(write_run(tmp_path / "plain.h5", steps=2))
    assert text.count("</script>") == plain.count("</script>")
    assert "<img src=x" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize(
    "name", ["a$b$c_d \\frac{$ & \x1b[31m", "$\\nosuch{x}$", "\\", "n" * 5000, "$" * 40 + "\\$"]
)
def test_a_figure_shows_a_name_letter_by_letter(
    tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder
) -> None:
    text = drawn(named(tmp_path / "run.h5", name))
    first = escape(name[:20].strip().replace("\x1b", "\\x1b"), quote=False)
    assert f">{first}" in text
    assert ">$\\mathdefault" not in text  # and the powers of ten are still formulas
    assert not [str(w.message) for w in recwarn if "product" not in str(w.message)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_numbers_that_are_none(path: Path, value: float, recwarn: pytest.WarningsRecorder) -> None:
    with h5py.File(path, "r+") as file:
        for name in ("loss", "gradient_norm", "seconds", *file):
            if isinstance(file[name], h5py.Dataset) and name not in {"step", "smallest", "largest"}:
                file[name][...] = value if file[name].dtype.kind == "f" else 0
    for read in (shown, page, compared, packed, in_python, drawn, status):
        assert not fails(read, path), read
    assert not [str(w.message) for w in recwarn if "product" not in str(w.message)]


def test_no_checkpoints(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.h5", steps=2)
    with h5py.File(path, "r+") as file:
        for name in list(file):
            if isinstance(file[name], h5py.Dataset) and name not in {"smallest", "largest"}:
                values = file[name][()][:0]
                del file[name]
                file[name] = values
    for read in (shown, page, packed, in_python, drawn, status):
        assert not fails(read, path), read


# -- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "report", "pack"])
def test_a_command_ends_in_one_line(path: Path, run: Run, command: str) -> None:
    with h5py.File(path, "r+") as file:
        del file["parameters/name"]
        raw_dataset(file, "parameters/name", (1,), PASSWD)
    done = run(command, str(path), *(("-o", "new.h5") if command == "pack" else ()), timeout=30)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hessdist: ")
    assert "; " in line


def test_no_name_reaches_the_terminal_as_a_command(tmp_path: Path, run: Run) -> None:
    name = "\x1b]0;title\x07\x9b31m\u202eRED\nhessdist: a lie"
    named(tmp_path / "run.h5", name)
    for words in (
        ("show", "run.h5"),
        ("status", "run.h5"),
        ("compare", "run.h5", f"{name[:9]}.h5"),
    ):
        done = run(*words)
        text = (done.stdout + done.stderr).replace("\n", "")
        assert "RED" in text or words[0] == "compare"
        assert not {c for c in text if unicodedata.category(c) in {"Cc", "Cf"}}
        assert "\nhessdist: a lie" not in done.stdout
