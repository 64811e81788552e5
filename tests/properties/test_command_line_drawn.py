"""Whatever is drawn for a job file and a command line: one line, one of the statuses, no traceback.

The job's folder of checkpoints does not exist, so that a job which is right ends before a solve.
"""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch
from commands import Done, invoked, require_plain_end
from conftest import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written import write_run

from hessdist.config.job import job_model

JOB = """
name = "drawn"
[model]
factory = "mlp"
arguments = { widths = [64, 4, 10] }
[data]
dataset = "random"
samples = 10
[checkpoints]
directory = "absent"
[output]
path = "out/run.h5"
"""

SECTIONS = {
    name: list(getattr(field.annotation, "model_fields", {}))
    for name, field in job_model().model_fields.items()
}
KEYS = [*SECTIONS, *(f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys)]
ODD_KEYS = [
    "", ".", "..", "x", "model.", ".model", "model.arguments.x.y", "model.arguments.widths.0",
    "model.factory.y", "spectrum.layers.0", "name.x", "a b.c", '"a.b".c', "é.ü", "study.lines",
    "study.exact.operators", "study.nothing.x", "x" * 300,
]  # fmt: skip
ODD_VALUES = [
    "", " ", "0", "-1", "1", "2.5", "nan", "inf", "-inf", "1e400", "9" * 30, "9" * 5000, "true",
    "[]", "{}", "[[]]", "[" * 600, "[" * 3000 + "]" * 3000, "{a = {b = 1}}", '"', '""', "''",
    "' '", '"."', '"/"', '"a\\u0000b"', '"\\u001b[31m"', "a\x00b", "a\x1b[31mb", "a\nb", "a\rb",
    "\u202e", "\udcff", "é", "x" * 300, '"' + "x" * 300 + '"', '"' + "d/" * 3000 + '"',
    "2020-13-45", "2020-01-01", "12:99:00", "job.toml", "fifo", "folder", "/dev/null",
    "/dev/full", "um:", ":", "..:x", "os:getcwd", "\\", "=", "x = 1", "#", "0x1F",
    "(?P<step>[0-9]+)", "(?P<step>", "[0, 0]", "[-1]", "[nan]", '["a", "a"]',
    "9223372036854775807",
]  # fmt: skip
# What makes folders or files by a name stays within the folder of the draw.
VALUES = st.one_of(
    st.sampled_from(ODD_VALUES),
    st.text(st.characters(exclude_characters="/"), max_size=20),
    st.integers().map(str),
    st.floats().map(str),
)
OVERRIDES = st.tuples(st.one_of(st.sampled_from(KEYS), st.sampled_from(ODD_KEYS)), VALUES)
PATHS = st.sampled_from([
    "", ".", "..", "/", "job.toml", "run.h5", "fifo", "folder", "absent", "text", "x" * 300,
    "d/" * 3000, "/dev/null", "/dev/zero", "\udcff", "run.checkpoints",
    "run.checkpoints/job.toml", "job.toml/x", "a\nb",
])  # fmt: skip
NUMBERS = st.sampled_from([
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1e400",
    "1e-300",
    "9" * 30,
    "",
    "x",
    "٣",
])


@st.composite
def job_commands(draw: st.DrawFn) -> list[str]:
    """A command that reads a job, with overrides and options."""
    command = draw(
        st.sampled_from(["spectrum", "spectrum", "watch", "study", "diagnose", "submit"])
    )
    words = [command, draw(st.one_of(st.just("job.toml"), st.just("job.toml"), PATHS))]
    words += {"watch": ["--idle", "0"], "submit": ["--dry-run"]}.get(command, [])
    for key, value in draw(st.lists(OVERRIDES, min_size=0, max_size=2)):
        words += ["--set", f"{key}={value}"]
    options = {
        "spectrum": ["--groups", "--checkpoints"],
        "watch": ["--idle", "--settle", "--last", "--groups"],
        "study": ["--only"],
        "diagnose": ["--checkpoint"],
        "submit": ["--nodes", "--tasks-per-node", "--ahead", "--groups"],
    }
    if draw(st.booleans()):
        words += [draw(st.sampled_from(options[command])), draw(NUMBERS)]
    if command in ("spectrum", "diagnose", "submit") and draw(st.booleans()):
        option = {"spectrum": "--metrics", "diagnose": "--json", "submit": "--log"}[command]
        words += [option, draw(PATHS)]
    return words


@st.composite
def reading_commands(draw: st.DrawFn) -> list[str]:
    """A command that reads a result, seldom a good one."""
    command = draw(st.sampled_from(["show", "status", "report", "pack", "compare", "plot"]))
    words = [command, draw(PATHS)]
    if command == "compare":
        words.append(draw(PATHS))
    if command in ("pack", "report") or (command == "plot" and draw(st.booleans())):
        words += ["-o", draw(PATHS)]
    if command == "plot":
        words += [draw(st.sampled_from(["--width", "--font-size"])), draw(NUMBERS)]
    return words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "job.toml").write_text(JOB, encoding="utf-8")
    write_run(folder / "run.h5", steps=1, size=20)
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "text").write_text("mine", encoding="utf-8")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """What is not to change, whatever is asked for."""
    kept = [folder / "job.toml", folder / "text", folder / "run.h5"]
    kept += (folder / "run.checkpoints").glob("step-*.h5")
    return {path.name: path.read_bytes() for path in kept}


def check(folder: Path, words: list[str]) -> Done | None:
    if any("\0" in word for word in words[:2]):  # no system hands these over
        return None
    before = files(folder)
    done = invoked(folder, *(word.replace("\0", "") for word in words))
    require_plain_end(done, words)
    assert files(folder) == before, words
    return done


DRAWS = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@settings(DRAWS, max_examples=200)
@given(words=job_commands())
def test_whatever_job_and_options_are_drawn(folder: Path, words: list[str]) -> None:
    check(folder, words)


@settings(DRAWS, max_examples=80)
@given(words=reading_commands())
def test_whatever_result_and_output_are_drawn(folder: Path, words: list[str]) -> None:
    check(folder, words)


LINES = JOB.splitlines()


@st.composite
def job_files(draw: st.DrawFn) -> bytes:
    """The bytes of a job file with some lines and some bytes drawn."""
    lines = list(LINES)
    for _ in range(draw(st.integers(0, 3))):
        key, value = draw(OVERRIDES)
        line = draw(st.sampled_from([f"{key} = {value}", f"[{key}]", f"[[{key}]]", value, ""]))
        place = draw(st.integers(0, len(lines)))
        lines[place : place + draw(st.integers(0, 1))] = [line]
    text = bytearray("\n".join(lines).encode(errors="surrogateescape"))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text) - 1))
        text[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(text)


@settings(DRAWS, max_examples=200)
@given(content=job_files())
def test_whatever_job_file_is_drawn(folder: Path, content: bytes) -> None:
    check_file(folder, content)


def check_file(folder: Path, content: bytes) -> None:
    (folder / "drawn.toml").write_bytes(content)
    require_plain_end(invoked(folder, "spectrum", "drawn.toml"), content)


@pytest.mark.slow
def test_thousands_of_command_lines_and_job_files(folder: Path) -> None:
    seeds = torch.seed() % 2**48
    many = settings(DRAWS, derandomize=False, max_examples=2000)
    for strategy in (job_commands(), reading_commands()):

        @hypothesis.seed(seeds)
        @many
        @given(words=strategy)
        def run(words: list[str]) -> None:
            check(folder, words)

        run()

    @hypothesis.seed(seeds)
    @many
    @given(content=job_files())
    def run_files(content: bytes) -> None:
        check_file(folder, content)

    run_files()


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (1, ["watch", "job.toml", "--idle", "nan"]),
        (2, ["spectrum", "job.toml", "--set", "output.path=fifo"]),
        (2, ["spectrum", "job.toml", "-eps_view", "ascii:/nonexistent/x"]),
    ],
)
def test_real_processes(run: Run, tmp_path: Path, ranks: int, words: list[str]) -> None:
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "absent").mkdir()
    torch.save({"x": torch.zeros(1)}, tmp_path / "absent" / "step-1.pt")
    done = run(*words, ranks=ranks, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "PETSC ERROR" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("hessdist: ")]
    assert words[-1].removeprefix("output.path=").removeprefix("ascii:") in line
