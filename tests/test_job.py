from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import DIGITS_JOB, ROOT

from hessdist.config.job import Job, changed_fields
from hessdist.config.loader import load_job, parse_job
from hessdist.errors import JobError

LINE = DIGITS_JOB[: DIGITS_JOB.index("largest = 4")].count("\n") + 1
JOBS = sorted((ROOT / "jobs").glob("*.toml"))

SMALLEST = """
[model]
factory = "lenet"
[data]
dataset = "mnist"
[checkpoints]
directory = "checkpoints"
[output]
path = "out.h5"
"""


def refusal(path: Path, *overrides: str) -> str:
    """The one line with which a job is refused."""
    with pytest.raises(JobError) as caught:
        load_job(path, overrides)
    line = str(caught.value)
    assert line.isprintable()
    assert caught.value.remedy
    assert caught.value.exit_status == 2
    return line


# -- what is read ----------------------------------------------------------------------------


def test_there_are_jobs_to_load() -> None:
    assert {"demo.toml", "lenet_mnist.toml"} <= {path.name for path in JOBS}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_projects_jobs_load_and_their_text_gives_them_again(path: Path) -> None:
    loaded, text = load_job(path)
    assert text == path.read_text(encoding="utf-8")
    assert parse_job(text, "its text")[0] == loaded
    assert loaded.training.steps in loaded.training.written_steps()


def test_the_main_job_is_the_one_of_the_contract() -> None:
    loaded, _ = load_job(ROOT / "jobs" / "lenet_mnist.toml")
    assert (loaded.model.factory, loaded.data.dataset, loaded.data.fraction) == (
        "lenet",
        "mnist",
        0.05,
    )
    assert (loaded.spectrum.largest, loaded.spectrum.smallest) == (20, 3)
    assert (loaded.training.optimizer, loaded.training.batch_size) == ("rmsprop", 32)
    assert loaded.training.steps == 2000


def test_four_sections_are_enough_and_the_rest_has_the_defaults_of_the_contract() -> None:
    loaded, _ = parse_job(SMALLEST, "here")
    assert loaded.loss.model_dump() == {"factory": "cross_entropy", "arguments": {}, "l2": 0.0}
    assert (loaded.data.fraction, loaded.data.samples, loaded.data.root) == (None, None, None)
    assert loaded.data.subset == "random"
    wanted = loaded.spectrum
    assert (wanted.operator, wanted.largest, wanted.smallest) == ("hessian", 20, 3)
    assert (wanted.tolerance, wanted.eigenvectors, wanted.layers) == (1e-3, True, [])
    compute = loaded.compute
    assert (compute.device, compute.dtype) == ("auto", "float32")
    assert (compute.batch_size, compute.cache_gib) == (256, 4.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["training.checkpoint_steps=[0, 7]"], [0, 7, 40]),
        (["training.checkpoint_steps=[40, 7, 7]"], [7, 40]),
        (["training.steps=100"], [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (["training.steps=25", "training.checkpoint_every=10"], [0, 10, 20, 25]),
        (["training.steps=3"], [0, 1, 2, 3]),
    ],
)
def test_checkpoints_are_written_at_the_named_steps_or_at_a_pace_and_at_the_last(
    job: Path, settings: list[str], expected: list[int]
) -> None:
    text = DIGITS_JOB.replace("checkpoint_steps = [0, 20, 40]\n", "")
    job.write_text(text, encoding="utf-8")
    assert load_job(job, settings)[0].training.written_steps() == expected


# -- overrides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("spectrum.largest=7", "spectrum", "largest", 7),
        ("spectrum.tolerance = 1e-5", "spectrum", "tolerance", 1e-5),
        ("spectrum.eigenvectors=false", "spectrum", "eigenvectors", False),
        ('spectrum.layers=["fc1", "fc2.bias"]', "spectrum", "layers", ["fc1", "fc2.bias"]),
        ("spectrum.operator=gauss_newton", "spectrum", "operator", "gauss_newton"),
        ('spectrum.operator="residual"', "spectrum", "operator", "residual"),
        ("training.checkpoint_steps=[0, 40]", "training", "checkpoint_steps", [0, 40]),
        ("output.path=/some where/x=1.h5", "output", "path", Path("/some where/x=1.h5")),
        ("data.root=../data", "data", "root", Path("../data")),
        ("loss.l2=0.25", "loss", "l2", 0.25),  # a section that the file has not
        ("loss.factory=torch.nn:MSELoss", "loss", "factory", "torch.nn:MSELoss"),
        ("model.factory=lenet", "model", "factory", "lenet"),
    ],
)
def test_an_override_sets_a_value_in_the_job_and_in_its_text(
    job: Path, override: str, section: str, key: str, value: Any
) -> None:
    loaded, text = load_job(job, [override])
    assert getattr(getattr(loaded, section), key) == value
    assert parse_job(text, "the text")[0] == loaded
    others = load_job(job)[0].model_dump()
    others.setdefault(section, {})[key] = value
    assert loaded.model_dump() == others


@pytest.mark.parametrize("named", [True, False])
def test_overrides_reach_the_top_and_the_arguments_and_the_last_one_counts(
    job: Path, named: bool
) -> None:
    if not named:
        job.write_text(DIGITS_JOB.replace('name = "digits"\n', ""), encoding="utf-8")
    overrides = ["name=mine", "model.arguments.widths=[64, 3, 10]", "model.arguments.bias=false"]
    loaded, text = load_job(job, [*overrides, "spectrum.largest=9", "spectrum.largest=3"])
    assert loaded.name == "mine"
    assert loaded.model.arguments == {"widths": [64, 3, 10], "activation": "tanh", "bias": False}
    assert loaded.spectrum.largest == 3
    assert parse_job(text, "the text")[0] == loaded


def test_without_overrides_the_text_is_the_file_comments_and_all(job: Path) -> None:
    text = "# why\n" + DIGITS_JOB.replace("largest = 4", "largest = 4  # all of them")
    job.write_text(text, encoding="utf-8")
    assert load_job(job)[1] == text
    assert "largest = 5  # all of them" in load_job(job, ["spectrum.largest=5"])[1]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("spectrum.largest", "--set spectrum.largest sets nothing"),
        ("=5", "--set =5 sets nothing"),
        ("spectrum.=5", "sets nothing"),
        ("name.first=5", "'name' is not a section"),
        ("model.arguments.widths.first=5", "'widths' is not a section"),
    ],
)
def test_an_override_that_sets_nothing_is_refused(job: Path, override: str, says: str) -> None:
    assert says in refusal(job, override)


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("spectrum.larges=3", ["unknown key 'spectrum.larges'", "did you mean 'largest'?"]),
        ("spectrum.tol=1e-3", ["unknown key 'spectrum.tol'", "tolerance"]),
        ("spektrum.largest=3", ["unknown key 'spektrum'", "did you mean 'spectrum'?"]),
        ("compute.xyzzy=3", ["unknown key 'compute.xyzzy'", "device, dtype, batch_size"]),
        ("spectrum.largest=many", ["spectrum.largest", "integer", "'many'"]),
        ("spectrum.largest=2.5", ["spectrum.largest", "2.5"]),
        ("spectrum.largest=[3]", ["spectrum.largest", "integer"]),
        ("spectrum.largest=-1", ["spectrum.largest", "-1"]),
        ("spectrum.layers=fc1", ["spectrum.layers", "list", "'fc1'"]),
        ("spectrum.operator=hesian", ["spectrum.operator", "'hesian'", "gauss_newton"]),
        ("spectrum.tolerance=0", ["spectrum.tolerance", "greater than 0"]),
        ("spectrum.tolerance=-1e-3", ["spectrum.tolerance", "greater than 0"]),
        ("spectrum.tolerance=nan", ["spectrum.tolerance", "finite"]),
        ("spectrum.tolerance=inf", ["spectrum.tolerance", "finite"]),
        ("model=lenet", ["model", "'lenet'"]),
        ("model.factory=3", ["model.factory", "string"]),
        ("model.arguments=3", ["model.arguments", "dictionary"]),
        ("loss.l2=-0.1", ["loss.l2", "-0.1"]),
        ("data.samples=0", ["data.samples", "(it is 0)"]),
        ("data.fraction=0.5", ["data", "fraction and samples exclude each other"]),
        ("data.subset=last", ["data.subset", "'random' or 'first'"]),
        ("data.seed=-1", ["data.seed", "-1"]),
        ("training.steps=0", ["training.steps"]),
        ("training.learning_rate=0", ["training.learning_rate", "greater than 0"]),
        ("training.checkpoint_steps=[0, -5]", ["training.checkpoint_steps", "-5"]),
        ("training.checkpoint_steps=[0, 41]", ["checkpoint_steps", "steps = 40"]),
        ("training.checkpoint_every=5", ["checkpoint_steps and checkpoint_every exclude"]),
        (
            "training.optimizer=lbfgs",
            ["training.optimizer", "'rmsprop', 'sgd', 'adam', 'adamw' or 'noisy_sgd'"],
        ),
        ("training.betas=[0.9, 0.99]", ["betas are for adam and adamw"]),
        ("training.betas=[0.9]", ["training.betas"]),
        ("training.betas=[0.9, 1.0]", ["training.betas", "less than 1"]),
        ("training.weight_decay=0.1", ["weight_decay is for adamw"]),
        ("training.schedule=linear", ["training.schedule", "'constant' or 'cosine'"]),
        ("training.warmup_steps=40", ["warmup_steps must be fewer than steps = 40"]),
        ("compute.dtype=float16", ["compute.dtype", "'float32' or 'float64'"]),
        ("compute.device=tpu", ["compute.device", "'tpu'"]),
        ("compute.batch_size=0", ["compute.batch_size"]),
        ("compute.cache_gib=nan", ["compute.cache_gib"]),
        ("name=[1]", ["name", "string"]),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_that_names_file_key_and_value(
    job: Path, override: str, says: list[str]
) -> None:
    line = refusal(job, override)
    assert [part for part in [str(job), *says] if part not in line] == []


def test_a_fraction_is_a_share_above_zero_up_to_one(job: Path) -> None:
    job.write_text(DIGITS_JOB.replace("samples = 100\n", ""), encoding="utf-8")
    for wrong in ("0", "-0.5", "1.01", "nan"):
        assert "data.fraction" in refusal(job, f"data.fraction={wrong}")
    assert load_job(job, ["data.fraction=1"])[0].data.fraction == 1


def test_no_eigenpair_at_either_end_is_refused_and_one_end_is_enough(job: Path) -> None:
    line = refusal(job, "spectrum.largest=0", "spectrum.smallest=0")
    assert "spectrum" in line
    assert "largest and smallest are both 0" in line
    assert load_job(job, ["spectrum.largest=0"])[0].spectrum.smallest == 2
    assert load_job(job, ["spectrum.smallest=0"])[0].spectrum.largest == 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[model]", "[modle]", ["section 'model' is missing"]),
        ('[output]\npath = "results/digits.h5"', "", ["section 'output' is missing"]),
        ('path = "results/digits.h5"', "", ["key 'output.path' is missing"]),
        ('factory = "mlp"', "", ["key 'model.factory' is missing"]),
        ("[checkpoints]", "[[checkpoints]]", ["checkpoints"]),
        ("largest = 4", "largest = ", ["is not TOML", f"line {LINE} "]),
        ("largest = 4", "largest = 4\nlargest = 5", ["is not TOML", "largest"]),
        ("[spectrum]", "[spectrum", ["is not TOML"]),
        ("[output]", "[spectrum]", ["is not TOML", "spectrum"]),
        ("digits", "d\x07gits", ["is not TOML"]),
    ],
)
def test_a_file_with_a_hole_or_an_error_of_syntax_is_refused_in_one_line(
    job: Path, old: str, new: str, says: list[str]
) -> None:
    assert old in DIGITS_JOB
    job.write_text(DIGITS_JOB.replace(old, new, 1), encoding="utf-8")
    line = refusal(job)
    assert [part for part in [str(job), *says] if part not in line] == []


def test_an_empty_file_and_one_that_is_no_text_are_refused(job: Path) -> None:
    job.write_bytes(b"")
    assert "section 'model' is missing" in refusal(job)
    job.write_bytes(DIGITS_JOB.replace("digits", "dígits").encode("latin-1"))
    assert "is not TOML" in refusal(job)


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path, name: str) -> None:
    line = refusal(tmp_path / name)
    assert str(tmp_path / name) in line
    assert "cannot be read" in line


# -- the fingerprint -------------------------------------------------------------------------


def fingerprint(job: Path, *overrides: str) -> str:
    return load_job(job, overrides)[0].fingerprint()


@pytest.mark.parametrize(
    "override",
    [
        "model.factory=lenet5",
        "model.arguments.widths=[64, 9, 10]",
        "model.arguments.activation=relu",
        "loss.factory=mse",
        "loss.l2=0.1",
        "loss.arguments.reduction=sum",
        "data.dataset=mnist",
        "data.samples=101",
        "data.subset=random",
        "data.split=test",
        "data.arguments.size=3",
        "spectrum.operator=gauss_newton",
        "spectrum.largest=5",
        "spectrum.smallest=3",
        "spectrum.tolerance=1e-4",
        "spectrum.layers=['fc1']",
        "spectrum.eigenvectors=false",
        "compute.dtype=float32",
    ],
)
def test_the_fingerprint_changes_with_what_determines_the_numbers(job: Path, override: str) -> None:
    assert fingerprint(job, override) != fingerprint(job)
    key = override.partition("=")[0]
    differing = changed_fields(load_job(job, [override])[0], load_job(job)[0])
    assert len(differing) == 1
    assert key.startswith(differing[0].partition(":")[0])


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "data.root=/elsewhere",
        "training.seed=3",
        "training.steps=50",
        "checkpoints.directory=elsewhere",
        "compute.device=cpu",
        "compute.batch_size=7",
        "compute.cache_gib=0",
        "compute.data_gib=0",
        "compute.workers=0",
        "spectrum.residuals=recomputed",
        "output.path=elsewhere.h5",
    ],
)
def test_the_fingerprint_does_not_change_with_anything_else(job: Path, override: str) -> None:
    loaded, original = load_job(job, [override])[0], load_job(job)[0]
    assert loaded != original  # the override did something
    assert loaded.fingerprint() == original.fingerprint()
    assert changed_fields(loaded, original) == []


def test_the_fingerprint_is_of_values_not_of_how_they_are_written(job: Path) -> None:
    original = fingerprint(job)
    assert fingerprint(job, "spectrum.tolerance=0.001", "loss.l2=0") == original
    sections = DIGITS_JOB.strip().split("\n\n")
    job.write_text("\n\n".join([sections[0], *reversed(sections[1:])]), encoding="utf-8")
    assert fingerprint(job) == original


def test_changed_values_are_named_with_both_values(job: Path) -> None:
    one, other = (load_job(job, [f"spectrum.largest={k}"])[0] for k in (5, 4))
    assert changed_fields(one, other) == ["spectrum.largest: 4 there, 5 here"]


def test_a_job_cannot_be_changed_after_it_was_read(job: Path) -> None:
    loaded: Any = load_job(job)[0]
    assert isinstance(loaded, Job)
    with pytest.raises(ValueError, match="frozen"):
        loaded.spectrum.largest = 3
