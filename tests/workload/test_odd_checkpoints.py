"""Whatever a checkpoint holds: it is loaded with the numbers that it has, or set aside alone."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Run
from safetensors.torch import save_file
from torch import Tensor, nn

import hessdist
from hessdist.errors import CheckpointError
from hessdist.workload.checkpoints import load_into, read_whole
from hessdist.workload.models import mlp
from hessdist.workload.steps import beyond_number, find_checkpoints, scan_checkpoints

State = dict[str, Any]
Rng = np.random.Generator
WIDTHS = (6, 5, 3)
FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return mlp(WIDTHS)


# -- entries of a state ----------------------------------------------------------------------

LOADED: dict[str, Callable[[Tensor], Any]] = {
    **{str(dtype): lambda w, dtype=dtype: w.abs().add(0.1).to(dtype) for dtype in FLOAT8},
    "half": Tensor.half,
    "bfloat16": Tensor.bfloat16,
    "double": Tensor.double,
    "a parameter": nn.Parameter,
    "expanded": lambda w: torch.full((1,), 0.5).expand(w.shape),
    "transposed": lambda w: w.mT.contiguous().mT if w.ndim == 2 else w,
    "negated lazily": lambda w: torch.complex(w, w).conj().imag,
}
"""Entries with exact values in the model's dtype."""

SET_ASIDE: dict[str, Callable[[Tensor], Any]] = {
    "float4": lambda w: torch.zeros(w.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "bits": lambda w: torch.zeros(w.shape, dtype=torch.uint8).view(torch.bits8),
    "quantised": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "quantised by row": lambda w: torch.quantize_per_channel(
        w, torch.full((len(w),), 0.1), torch.zeros(len(w)), 0, torch.quint8
    ),
    "COO": Tensor.to_sparse,
    "CSR": lambda w: w.reshape(len(w), -1).to_sparse_csr(),
    "CSC": lambda w: w.reshape(len(w), -1).to_sparse_csc(),
    "BSR": lambda w: w.reshape(len(w), -1).to_sparse_bsr((1, 1)),
    "meta": lambda w: w.to("meta"),
    "complex": lambda w: w.to(torch.complex64),
    "complex halves": lambda w: w.to(torch.complex32),
    "nested": lambda w: torch.nested.nested_tensor([w[0], w[1]]),
    "jagged": lambda w: torch.nested.nested_tensor(
        [w[:1].flatten(), w.flatten()], layout=torch.jagged
    ),
    "bool": lambda w: w > 0,
    "int8": lambda w: w.to(torch.int8),
    "uint16": lambda w: torch.ones(w.shape, dtype=torch.uint16),
    "NaN": lambda w: torch.full_like(w, torch.nan),
    "infinity in 8 bits": lambda w: torch.full_like(w, torch.inf).to(torch.float8_e5m2),
    "too large": lambda w: torch.full(w.shape, 1e300, dtype=torch.float64),
    "expanded without end": lambda w: torch.zeros(1).expand(10**6, 10**6),
    "empty": lambda w: torch.zeros(0),
    "a scalar": lambda w: torch.zeros(()),
    "another shape": lambda w: w[..., :-1],
    "a mapping": lambda w: {"x": 1},
    "a text": lambda w: "hello",
    "a number": lambda w: 3.5,
    "nothing": lambda w: None,
    "a list": lambda w: w.tolist(),
    "itself": lambda w: {"loop": [w]},
}


def with_entry(rng: Rng, kind: Callable[[Tensor], Any]) -> State:
    """A state with one entry of another kind, or two that lie side by side, or nested."""
    state = dict(network().state_dict())
    names = list(state)
    name = names[rng.integers(len(names))]
    state[name] = kind(state[name])
    forms = (
        lambda: state,
        lambda: {"model": state, "epoch": 3},
        lambda: {"state_dict": state, "net": {**state, name: kind(network().state_dict()[name])}},
        lambda: {f"module.{key}": value for key, value in state.items()},
    )
    return forms[rng.integers(len(forms))]()


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# -- files -----------------------------------------------------------------------------------


def bomb(path: Path) -> None:
    """A few MB that unpack to 2 GiB."""
    source = zipfile.ZipFile(io.BytesIO(saved(network().state_dict())))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in source.infolist():
            archive.writestr(record.filename, source.read(record))
        with archive.open(f"{path.stem}/data/9", "w", force_zip64=True) as file:
            for _ in range(2**11):
                file.write(bytes(2**20))


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)


def cut(path: Path) -> None:
    raw = saved(network().state_dict())
    path.write_bytes(raw[: len(raw) // 2])


def lengthened(path: Path) -> None:
    """A safetensors file whose header says that it is longer than it is."""
    file = path.with_suffix(".safetensors")
    save_file(network().state_dict(), file)
    file.write_bytes(b"\xff" * 7 + file.read_bytes()[7:])


FILES: dict[str, Callable[[Path], Any]] = {
    "empty": Path.touch,
    "text": lambda path: path.write_text("hello\n" * 9, encoding="utf-8"),
    "cut": cut,
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("nowhere"),
    "a folder": Path.mkdir,
    "TorchScript": script,
    "a header": lengthened,
    "a list": lambda path: path.write_bytes(saved([1, 2])),
}

# -- one checkpoint --------------------------------------------------------------------------


def load(path: Path) -> dict[str, Tensor]:
    torch.manual_seed(9)
    model = mlp(WIDTHS)
    load_into(model, read_whole(path), path)
    return dict(model.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", SET_ASIDE)
def test_an_odd_entry_is_refused_in_one_line(tmp_path: Path, kind: str, seed: int) -> None:
    path = tmp_path / "step-1.pt"
    try:
        path.write_bytes(saved(with_entry(np.random.default_rng(seed), SET_ASIDE[kind])))
    except (RuntimeError, KeyError) as error:
        pytest.skip(f"PyTorch cannot make it ({type(error).__name__})")
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", LOADED)
def test_an_entry_with_exact_values_is_loaded(tmp_path: Path, kind: str, seed: int) -> None:
    path = tmp_path / "step-1.pt"
    path.write_bytes(saved(with_entry(np.random.default_rng(seed), LOADED[kind])))
    own = network().state_dict()
    for name, value in load(path).items():
        exact = LOADED[kind](own[name]).detach().double()
        assert torch.equal(value, own[name]) or torch.equal(value.double(), exact)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_every_number_of_8_bits_is_exact_in_32(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype)
    finite = every[torch.isfinite(every.to(torch.float64))]
    assert torch.equal(finite.to(torch.float32).double(), finite.to(torch.float64))
    assert torch.equal(
        finite.to(torch.float32).to(dtype).view(torch.uint8), finite.view(torch.uint8)
    )


@pytest.mark.parametrize("kind", FILES)
def test_an_odd_file_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    FILES[kind](tmp_path / "step-1.pt")
    (found,) = find_checkpoints(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(found.path)
    assert str(caught.value).isprintable()


@pytest.mark.slow
def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    bomb(tmp_path / "step-1.pt")
    with pytest.raises(CheckpointError, match=r"would unpack to 2\.0 GiB"):
        load(tmp_path / "step-1.pt")


# -- a sweep ---------------------------------------------------------------------------------

JOB = """
name = "odd"
model = {factory = "mlp", arguments = {widths = [6, 5, 3]}}
data = {dataset = "random", arguments = {samples = 30, shape = [6], num_classes = 3}}
checkpoints = {directory = "checkpoints"}
spectrum = {largest = 1, smallest = 1}
output = {path = "run.h5"}
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ranks", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_good_checkpoints_among_odd_ones_are_solved(
    run: Run, tmp_path: Path, ranks: int
) -> None:
    rng, folder = np.random.default_rng(ranks), tmp_path / "checkpoints"
    folder.mkdir()
    good, step = [0], 0
    torch.save(network().state_dict(), folder / "step-0.pt")
    odd: list[Callable[[Path], Any]] = [
        FILES[name] for name in rng.choice(list(FILES), 5, replace=False)
    ]
    for name in rng.choice(list(SET_ASIDE), 7):
        content = with_entry(rng, SET_ASIDE[name])
        odd.append(lambda path, content=content: torch.save(content, path))
    for make in odd:
        step += 1
        make(folder / f"step-{step}.pt")
        if rng.random() < 0.4:
            step += 1
            torch.save(network().state_dict(), folder / f"step-{step}.pt")
            good.append(step)
    for name in ("99999999999999999999999999", "9223372036854775808"):
        torch.save(network().state_dict(), folder / f"step-{name}.pt")
    torch.save(network().state_dict(), folder / "step-9223372036854775807.pt")
    (tmp_path / "job.toml").write_text(JOB, encoding="utf-8")
    done = run("spectrum", "job.toml", ranks=ranks)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len([line for line in done.stderr.splitlines() if "hessdist" in line]) == 1
    assert done.stdout.count("set aside: ") == len(odd) + 2, done.stdout + done.stderr
    assert f"{len(odd) + 2} checkpoints were set aside" in done.stderr
    assert list(hessdist.open_run(tmp_path / "run.h5").steps) == [*good, 2**63 - 1]


def test_a_step_of_more_than_64_bits_is_set_aside_alone(tmp_path: Path) -> None:
    for name in ("step-5.pt", "step-99999999999999999999999999.pt", "step-٣.pt"):
        (tmp_path / name).touch()
    assert [one.step for one in find_checkpoints(tmp_path)] == [5]
    (error,) = beyond_number(tmp_path)
    assert "no number of 64 bits" in str(error)
    pattern = r"step-(?P<step>[0-9]+)\.pt"
    assert [one.step for one in scan_checkpoints(tmp_path, pattern)] == [5]
    assert len(beyond_number(tmp_path, pattern)) == 1
    (tmp_path / "step-5.pt").unlink()
    with pytest.raises(CheckpointError, match="no number of 64 bits"):
        find_checkpoints(tmp_path)


# -- flipped bits ----------------------------------------------------------------------------


def archives() -> Iterator[tuple[str, bytes]]:
    """States in every form of an archive that has checksums."""
    state = network().state_dict()
    yield "torch.save", saved(state)
    yield "with zeros", saved({name: torch.zeros_like(value) for name, value in state.items()})
    source = zipfile.ZipFile(io.BytesIO(saved(state)))
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for record in source.infolist():
                archive.writestr(record.filename, source.read(record))
        yield f"zipped again ({method})", file.getvalue()


def differing(raw: bytes, rng: Rng, path: Path, draws: int) -> list[str]:
    """Flip bits of an archive, again and again, and list what was read as something else."""
    path.write_bytes(raw)
    whole, found = dict(read_whole(path)), []
    for _ in range(draws):
        places = rng.integers(0, 8 * len(raw), rng.integers(1, 4)).tolist()
        changed = bytearray(raw)
        for place in places:
            changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            read = read_whole(path)
        except CheckpointError:
            continue
        same = list(read) == list(whole) and all(
            read[name].dtype == value.dtype and torch.equal(read[name], value)
            for name, value in whole.items()
        )
        if not same:
            found.append(f"bits {places}")
    return found


@pytest.mark.parametrize("kind", range(4))
def test_flipped_bits_never_become_other_numbers(tmp_path: Path, kind: int) -> None:
    _, raw = list(archives())[kind]
    assert differing(raw, np.random.default_rng(kind), tmp_path / "step-1.pt", 150) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(4))
def test_thousands_of_flipped_bits_never_become_other_numbers(tmp_path: Path, kind: int) -> None:
    _, raw = list(archives())[kind]
    assert differing(raw, np.random.default_rng(99 + kind), tmp_path / "step-1.pt", 4000) == []


@pytest.mark.filterwarnings("ignore")
def test_flipped_bits_of_a_distributed_checkpoint_never_become_other_numbers(
    tmp_path: Path,
) -> None:
    state, rng = network().state_dict(), np.random.default_rng(0)
    dcp.save(state, checkpoint_id=tmp_path / "step-1", no_dist=True)
    (file,) = (tmp_path / "step-1").glob("*.distcp")
    raw = file.read_bytes()
    for _ in range(100):
        place = int(rng.integers(0, 8 * len(raw)))
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            read = read_whole(tmp_path / "step-1")
        except CheckpointError:
            continue
        assert all(torch.equal(read[name], value) for name, value in state.items()), place


def test_a_record_without_a_checksum_among_others_is_refused() -> None:
    raw = bytearray(saved({"weight": torch.full((50,), 7.0)}))
    entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"/data/0"))
    raw[entry + 16 : entry + 20] = bytes(4)
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        Path(file.name).write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"the checksum .*data/0"):
            read_whole(Path(file.name))
