from __future__ import annotations

import argparse
import collections
import datetime as dt
import hashlib
import io
import json
import os
import pickle
import re
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Run
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import filesystem, metadata

import hessdist
from hessdist.errors import CheckpointError, OutputError
from hessdist.service.status import status_of
from hessdist.workload.checkpoints import (
    load_into,
    own_state,
    read_state,
    read_whole,
    require_named,
    state_digest,
    write_checkpoint,
)
from hessdist.workload.folders import look_into
from hessdist.workload.models import mlp
from hessdist.workload.steps import find_checkpoints, signature


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# -- reading ---------------------------------------------------------------------------------


def plain(state: dict[str, Tensor]) -> Any:
    return state


def under(key: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {"epoch": 3, key: state, "optimizer": {"state": {}, "lr": 0.1}}


def parallel(state: dict[str, Tensor]) -> Any:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def loaded(path: Path, model: nn.Module, **place: str) -> nn.Module:
    """A network of the same architecture with other parameters, filled from a checkpoint."""
    torch.manual_seed(99)
    other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    load_into(other, read_whole(path), path, **place)
    return other


def is_filled(path: Path, model: nn.Module, **place: str) -> bool:
    return same(dict(loaded(path, model, **place).state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    "wrap",
    [
        plain,
        under("state_dict"),
        under("model_state_dict"),
        under("model"),
        parallel,
        lambda state: under("state_dict")(parallel(state)),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_where_people_put_it(
    tmp_path: Path, model: nn.Module, wrap: Callable[[dict[str, Tensor]], Any], zipped: bool
) -> None:
    path = tmp_path / "step-1.pt"
    torch.save(wrap(model.state_dict()), path, _use_new_zipfile_serialization=zipped)
    assert is_filled(path, model)


def test_what_is_read_is_as_it_was_saved(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "step-1.pt"
    torch.save(under("net")(parallel(model.state_dict())), path)
    assert list(read_state(path)) == ["epoch", "net", "optimizer"]
    assert same(read_state(path)["net"], parallel(model.state_dict()))


@pytest.mark.parametrize("suffix", ["safetensors", "SAFETENSORS"])
def test_safetensors_are_read(tmp_path: Path, model: nn.Module, suffix: str) -> None:
    path = tmp_path / f"step-1.{suffix}"
    save_file(parallel(dict(model.state_dict())), path)
    assert is_filled(path, model)


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, betas=(0.9, 0.99)),
        np.float64(91.2),
        np.arange(4),
        dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        Path("data/here"),
        collections.defaultdict(list, {"loss": [1.0]}),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_settings_and_scores_beside_the_tensors_do_no_harm(
    tmp_path: Path, model: nn.Module, beside: Any, zipped: bool
) -> None:
    path = tmp_path / "step-1.pt"
    content = {"state_dict": model.state_dict(), "beside": beside}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert is_filled(path, model)
    with pytest.raises(pickle.UnpicklingError):  # what is allowed is so for this reader alone
        torch.load(path, weights_only=True)


# -- folders ---------------------------------------------------------------------------------


def in_shards(folder: Path, state: dict[str, Tensor], with_index: bool = True) -> None:
    names = list(state)
    parts = {
        "model-00001-of-00002.safetensors": names[:2],
        "model-00002-of-00002.safetensors": names[2:],
    }
    for file, those in parts.items():
        save_file({name: state[name] for name in those}, folder / file)
    weights = {name: file for file, those in parts.items() for name in those}
    if with_index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def as_safetensors(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(dict(state), folder / "model.safetensors")
    torch.save({"state": {}}, folder / "optimizer.pt")
    torch.save(argparse.Namespace(), folder / "training_args.bin")


def as_bin(folder: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def as_bin_shards(folder: Path, state: dict[str, Tensor]) -> None:
    weights = {}
    for number, name in enumerate(state, 1):
        weights[name] = f"pytorch_model-{number:05d}-of-{len(state):05d}.bin"
        torch.save({name: state[name]}, folder / weights[name])
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weights}))


def as_distributed(folder: Path, state: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {"model": state, "optimizer": {"m": torch.ones(3)}, "step": 4},
            checkpoint_id=str(folder),
            no_dist=True,
        )


FOLDERS = [
    as_safetensors,
    in_shards,
    lambda folder, state: in_shards(folder, state, with_index=False),
    as_bin,
    as_bin_shards,
    as_distributed,
]


@pytest.mark.parametrize("write", FOLDERS)
@pytest.mark.parametrize("name", ["checkpoint-500", "step-500", "epoch=1-step=500.ckpt"])
def test_folders_of_trainers_are_checkpoints(
    tmp_path: Path, model: nn.Module, write: Callable[[Path, Any], None], name: str
) -> None:
    folder = tmp_path / "run" / name
    folder.mkdir(parents=True)
    write(folder, model.state_dict())
    (tmp_path / "run" / "runs-3").mkdir()  # logs, which are none
    (found,) = find_checkpoints(tmp_path / "run")
    assert (found.step, found.path, found.remark) == (500, folder, "")
    assert is_filled(found.path, model)
    (itself,) = find_checkpoints(folder)
    assert (itself.step, itself.path) == (500, folder)
    assert "itself a checkpoint" in itself.remark
    before = signature(folder)
    (folder / "notes.txt").write_text("of no matter")
    assert signature(folder) == before
    weights = [
        file for file in folder.iterdir() if re.search("model.*(tensors|bin)$|cp$", file.name)
    ]
    os.utime(weights[0], ns=(1, 1))
    assert signature(folder) != before


def by_deepspeed(folder: Path, state: dict[str, Tensor], names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        content = {"module": state, "param_shapes": [], "dp_world_size": 2, "ds_version": "0.19"}
        torch.save(content, folder / f"{name}_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def test_folders_of_deepspeed_are_read(tmp_path: Path, model: nn.Module) -> None:
    by_deepspeed(tmp_path / "run" / "global_step7", model.state_dict(), ("mp_rank_00",))
    (tmp_path / "run" / "latest").write_text("global_step7")
    (found,) = find_checkpoints(tmp_path / "run")
    assert (found.step, found.path.name) == (7, "global_step7")
    assert is_filled(found.path, model)
    # Trainers put such a folder, and the name of the last one, into their own.
    trainers = tmp_path / "trainer" / "checkpoint-9"
    for step in (8, 9):
        by_deepspeed(trainers / f"global_step{step}", model.state_dict(), ("mp_rank_00",))
    (trainers / "latest").write_text("global_step9\n")
    (found,) = find_checkpoints(tmp_path / "trainer")
    assert (found.step, found.path) == (9, trainers)
    before = signature(trainers)
    os.utime(trainers / "global_step8" / "mp_rank_00_model_states.pt", ns=(1, 1))
    assert signature(trainers) == before
    os.utime(trainers / "global_step9" / "mp_rank_00_model_states.pt", ns=(1, 1))
    assert signature(trainers) != before
    assert is_filled(trainers, model)
    as_safetensors(trainers, model.state_dict())  # a gathered model comes first
    assert signature(trainers) != before
    assert look_into(trainers).files == (trainers / "model.safetensors",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "names",
    [
        ("zero_pp_rank_0_mp_rank_00",),
        ("zero_pp_rank_0_mp_rank_00", "zero_pp_rank_1_mp_rank_00"),
        ("mp_rank_00", "mp_rank_01"),
        ("layer_00", "layer_01", "mp_rank_00"),
    ],
)
def test_parts_of_deepspeed_are_refused_with_the_remedy(
    tmp_path: Path, model: nn.Module, names: tuple[str, ...]
) -> None:
    by_deepspeed(tmp_path / "global_step7", model.state_dict(), names)
    with pytest.raises(CheckpointError, match=r"in parts.*zero_to_fp32\.py"):
        read_state(tmp_path / "global_step7")


@pytest.mark.parametrize("latest", ["../secret", "..", "", "global_step1", "x" * 300])
def test_a_last_folder_that_is_no_name_beside_it_is_not_looked_into(
    tmp_path: Path, model: nn.Module, latest: str
) -> None:
    by_deepspeed(tmp_path / "secret", model.state_dict(), ("mp_rank_00",))
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-9" / "latest").write_text(latest)
    with pytest.raises(CheckpointError, match="folder without a model"):
        read_state(tmp_path / "checkpoint-9")


def test_the_step_of_a_folder_that_is_itself_a_checkpoint_is_noted_by_the_trainer(
    tmp_path: Path, model: nn.Module
) -> None:
    as_safetensors(tmp_path, model.state_dict())
    folder = tmp_path.rename(tmp_path.with_name("last"))
    assert find_checkpoints(folder)[0].step == 0
    (folder / "trainer_state.json").write_text('{"global_step": 70}')
    assert find_checkpoints(folder)[0].step == 70
    (folder / "trainer_state.json").write_text("{")
    assert find_checkpoints(folder)[0].step == 0
    torch.save({}, folder / "step-3.pt")  # what is named inside comes first
    assert find_checkpoints(folder)[0].step == 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(), "lacks its shard"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
            "cannot be read",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("[]"),
            "no weight_map",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"0.weight": "../secret.safetensors"}})
            ),
            "not a plain name",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"9": "model-00002-of-00002.safetensors"}})
            ),
            "which lacks it",
        ),
        (
            lambda folder: (
                [file.unlink() for file in folder.glob("*json")]
                and (folder / "model-00002-of-00002.safetensors").unlink()
            ),
            "1 of 2 shards",
        ),
    ],
)
def test_shards_that_do_not_make_a_whole_are_refused(
    tmp_path: Path, model: nn.Module, spoil: Callable[[Path], Any], says: str
) -> None:
    in_shards(tmp_path, model.state_dict())
    save_file(dict(model.state_dict()), tmp_path.parent / "secret.safetensors")
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        read_state(tmp_path)


class Chunked:
    """A distributed checkpoint written by hand: one tensor in chunks of rows."""

    def __init__(self, folder: Path, tensor: Tensor, rows: list[int]) -> None:
        self.folder, self.chunks, self.storage, self.raw = folder, [], {}, b""
        begin = 0
        for number, count in enumerate(rows):
            offset = torch.Size([begin, 0])
            buffer = io.BytesIO()
            torch.save(tensor[begin : begin + count].clone(), buffer)
            sizes = torch.Size([count, tensor.shape[1]])
            self.chunks.append(metadata.ChunkStorageMetadata(offset, sizes))
            info = filesystem._StorageInfo("__0_0.distcp", len(self.raw), len(buffer.getvalue()))
            self.storage[metadata.MetadataIndex("w", offset, number)] = info
            self.raw += buffer.getvalue()
            begin += count
        self.tensor = metadata.TensorStorageMetadata(
            metadata.TensorProperties(tensor.dtype), tensor.shape, self.chunks
        )

    def write(self) -> Path:
        whole = metadata.Metadata({"w": self.tensor}, {"w": ("model", "w")}, self.storage)
        (self.folder / ".metadata").write_bytes(pickle.dumps(whole))
        (self.folder / "__0_0.distcp").write_bytes(self.raw)
        return self.folder


def test_chunks_of_a_distributed_checkpoint_are_put_together(tmp_path: Path) -> None:
    tensor = torch.randn(7, 3, dtype=torch.float64)
    back = read_state(Chunked(tmp_path, tensor, [2, 4, 1]).write())
    assert torch.equal(back["model"]["w"], tensor)


def elsewhere(chunked: Chunked, file: str) -> None:
    for index, info in chunked.storage.items():
        chunked.storage[index] = filesystem._StorageInfo(file, info.offset, info.length)


def overlapping(chunked: Chunked) -> None:
    chunked.chunks[1] = metadata.ChunkStorageMetadata(torch.Size([1, 0]), torch.Size([4, 3]))


def huge(chunked: Chunked) -> None:
    big = torch.Size([2**40, 2**20])
    chunked.tensor.size = big
    chunked.chunks[:] = [metadata.ChunkStorageMetadata(torch.Size([0, 0]), big)]


def flipped(chunked: Chunked) -> None:
    place = chunked.raw.index(torch.full((1, 3), 7.0).numpy().tobytes())
    chunked.raw = chunked.raw[:place] + b"\x01" + chunked.raw[place + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda chunked: elsewhere(chunked, "../outside.distcp"),
        lambda chunked: elsewhere(chunked, "/etc/passwd"),
        lambda chunked: elsewhere(chunked, "link.distcp"),
        lambda chunked: elsewhere(chunked, "absent.distcp"),
        lambda chunked: chunked.chunks.pop(),
        lambda chunked: chunked.storage.popitem(),
        lambda chunked: setattr(chunked, "raw", chunked.raw[:-200]),
        overlapping,
        huge,
        flipped,
    ],
)
@pytest.mark.filterwarnings("error")
def test_metadata_that_does_not_fit_its_files_is_refused(
    tmp_path: Path, spoil: Callable[[Chunked], Any]
) -> None:
    (tmp_path / "here").mkdir()
    chunked = Chunked(tmp_path / "here", torch.full((7, 3), 7.0), [2, 4, 1])
    (tmp_path / "outside.distcp").write_bytes(chunked.raw)
    (tmp_path / "here" / "link.distcp").symlink_to(tmp_path / "outside.distcp")
    spoil(chunked)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        read_state(chunked.write())
    assert str(caught.value).isprintable()


def test_metadata_that_ask_for_much_memory_do_not_get_it(tmp_path: Path) -> None:
    raw = (Chunked(tmp_path, torch.ones(2, 2), [2]).write() / ".metadata").read_bytes()
    # A place far up in the table of what was read before; behind protocol and frame.
    asks = raw[:2] + b"N" + pickle.LONG_BINPUT + (2**24).to_bytes(4, "little") + b"0" + raw[11:]
    (tmp_path / ".metadata").write_bytes(asks)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="damaged"):
            read_state(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**25


def test_code_in_metadata_is_refused_and_not_run(tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Bomb(crater)))
    with pytest.raises(CheckpointError, match=r"mkdir', which could run code and is refused"):
        read_state(tmp_path)
    assert not crater.exists()


# -- what is none ----------------------------------------------------------------------------


def an_empty_folder(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_link_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("absent")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [an_empty_folder, a_fifo, a_link_loop, a_device, a_dangling_link])
@pytest.mark.parametrize("name", ["step-1.pt", "step-1.safetensors"])
def test_what_is_no_file_is_one_line_and_no_hang(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    make(tmp_path / name)
    torch.save({"w": torch.ones(1)}, tmp_path / "step-2.pt")
    first, second = find_checkpoints(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_whole(first.path)
    assert str(first.path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert list(read_whole(second.path)) == ["w"]


def test_a_written_checkpoint_comes_back_bit_by_bit(tmp_path: Path, model: nn.Module) -> None:
    path = write_checkpoint(tmp_path / "made" / "here", 50, model)
    assert path == tmp_path / "made" / "here" / "step-00000050.pt"
    torch.manual_seed(99)
    other = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    load_into(other, read_state(path), path)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_a_checkpoint_of_single_precision_fills_a_model_of_double_precision(
    tmp_path: Path, model: nn.Module
) -> None:
    path = write_checkpoint(tmp_path, 0, model)
    state = read_state(path)
    load_into(model.double(), state, path)
    assert model[0].weight.dtype == torch.float64
    assert torch.equal(model[0].weight.float(), state["0.weight"])


# -- damage ----------------------------------------------------------------------------------


def truncated(raw: bytes, share: float) -> bytes:
    return raw[: int(len(raw) * share)]


DAMAGED = {
    "empty": lambda raw: b"",
    "half": lambda raw: truncated(raw, 0.5),
    "nearly whole": lambda raw: truncated(raw, 0.99),
    "the first bytes": lambda raw: raw[:60],
    "zeros": lambda raw: bytes(len(raw)),
    "text": lambda raw: b"version https://git-lfs.github.com/spec/v1\n",
    **{f"random {s}": lambda raw, s=s: np.random.default_rng(s).bytes(2000) for s in range(4)},
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.filterwarnings("error")
def test_a_damaged_checkpoint_is_named_in_one_line_that_says_damaged(
    tmp_path: Path, model: nn.Module, damage: str, suffix: str
) -> None:
    path = tmp_path / f"step-1{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    with pytest.raises(CheckpointError, match="truncated or damaged") as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_byte_that_changed_on_the_disk_is_found(tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    torch.save({"weight": torch.full((50,), 7.0)}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.full((2,), 7.0).numpy().tobytes())] ^= 1
    path.write_bytes(raw)
    # PyTorch itself reads another number.
    assert not bool((torch.load(path, weights_only=True)["weight"] == 7).all())
    with pytest.raises(CheckpointError, match=r"damaged: the checksum .*data/0"):
        read_state(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.full((50,), 7.0)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert bool((read_state(path)["weight"] == 7).all())


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.filterwarnings("error")
def test_bytes_changed_at_random_are_found_or_of_no_matter(
    tmp_path: Path, model: nn.Module, seed: int
) -> None:
    draw, path = np.random.default_rng(seed), tmp_path / "step-1.pt"
    torch.save(model.state_dict(), path)
    raw = bytearray(path.read_bytes())
    for place in draw.integers(0, len(raw), 4):
        raw[place] = draw.integers(0, 256)
    path.write_bytes(raw)
    try:
        assert is_filled(path, model)
    except CheckpointError as error:
        assert str(error).isprintable()  # noqa: PT017 - many changes are of no matter


def test_a_record_that_is_marked_as_a_folder_is_found(tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    torch.save({"weight": torch.full((50,), 7.0)}, path)
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"/data/0"))
    raw[entry + 38] |= 0x10  # its attributes, after which PyTorch gives memory as it is
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"the checksum .*data/0"):
        read_state(path)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def as_archive(path: Path, content: Any) -> None:
    torch.save(content, path)


def as_legacy_file(path: Path, content: Any) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_bare_pickle(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [as_archive, as_legacy_file, as_bare_pickle])
@pytest.mark.filterwarnings("error")
def test_code_in_a_checkpoint_is_refused_and_not_run(
    tmp_path: Path, write: Callable[[Path, Any], None]
) -> None:
    crater, path = tmp_path / "crater", tmp_path / "step-1.pt"
    write(path, {"state_dict": {"weight": torch.zeros(2), "trap": Bomb(crater)}})
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    assert not crater.exists()
    line = str(caught.value)
    assert str(path) in line
    assert line.isprintable()
    # Nobody is to be told how to have it run.
    assert "weights_only" not in line
    pickle.loads(pickle.dumps(Bomb(crater)))
    assert crater.exists()  # the trap works: only the refusal kept it shut


def test_a_pickled_model_is_refused_with_the_remedy(tmp_path: Path, model: nn.Module) -> None:
    path = tmp_path / "step-1.pt"
    torch.save(model, path)
    with pytest.raises(
        CheckpointError, match=r"carries more than tensors.*state_dict\(\)"
    ) as caught:
        read_state(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [torch.zeros(3)], 3, None, {}, {1: torch.zeros(3)}, {"a": {"b": 1}}],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "step-1.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"holds no state dict; save model.state_dict\(\)"):
        read_state(path)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-9.pt does not exist"):
        read_state(tmp_path / "step-9.pt")


# -- another model ---------------------------------------------------------------------------


def test_a_checkpoint_of_another_model_is_refused_with_names_and_shapes(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = dict(model.state_dict())
    state["0.weight"] = torch.zeros(5, 4)
    state["head.weight"] = state.pop("2.weight")
    with pytest.raises(CheckpointError, match="another model") as caught:
        load_into(model, state, Path("step-7.pt"))
    line = str(caught.value)
    for part in (
        "step-7.pt",
        "0.weight is (5, 4) there and (3, 4) in the model",
        "missing: 2.weight",
        "not in the model: head.weight",
        "model.arguments",
    ):
        assert part in line
    assert "\n" not in line
    assert same(dict(model.state_dict()), before)


def test_a_long_list_of_differences_is_cut_short(model: nn.Module) -> None:
    with pytest.raises(CheckpointError, match=r"missing: .* and 6 more;") as caught:
        load_into(model, {}, Path("step-7.pt"))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["2.bias", "1.running_var"])
def test_a_value_that_is_not_finite_is_named(model: nn.Module, name: str, value: float) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[name][1] = value
    with pytest.raises(CheckpointError, match=f"step-7.pt is not finite: {name}"):
        load_into(model, state, Path("step-7.pt"))
    assert same(dict(model.state_dict()), before)


# -- writing ---------------------------------------------------------------------------------


def test_a_writer_that_is_killed_leaves_no_checkpoint_to_be_found(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = write_checkpoint(tmp_path, 10, model).read_bytes()

    def killed(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    for step in (10, 20):
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, step, nn.Linear(2, 2))
    assert [at.step for at in find_checkpoints(tmp_path)] == [10]
    assert (tmp_path / "step-00000010.pt").read_bytes() == earlier


def test_a_folder_that_cannot_be_made_is_named_with_the_key_to_change(
    tmp_path: Path, model: nn.Module
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"checkpoints\.directory") as caught:
        write_checkpoint(tmp_path / "file" / "folder", 10, model)
    assert str(tmp_path / "file" / "folder") in str(caught.value)


@pytest.mark.parametrize("key", [None, "ema", "trainer.model"])
@pytest.mark.parametrize("prefix", [None, "student", "a.b."])
def test_a_written_checkpoint_is_read_by_the_keys_of_the_same_job(
    tmp_path: Path, model: nn.Module, key: str | None, prefix: str | None
) -> None:
    path = write_checkpoint(tmp_path, 3, model, key=key, prefix=prefix)
    assert is_filled(path, model, key=key, prefix=prefix)
    assert same(own_state(path, key=key, prefix=prefix), dict(model.state_dict()))


def test_a_pattern_must_find_what_training_writes() -> None:
    require_named(None)
    require_named("step-(?P<step>[0-9]+)")
    for pattern in ("ckpt-(?P<step>[0-9]+)", "step-(?P<step>0)"):
        with pytest.raises(CheckpointError, match="does not find the step"):
            require_named(pattern)


def test_the_digest_is_that_of_the_bytes_whatever_the_dtype() -> None:
    plain = {"a": torch.arange(6.0).reshape(2, 3).t(), "n": torch.tensor(3), "b": torch.ones(0)}
    by_hand = hashlib.sha256()
    for name, tensor in plain.items():
        by_hand.update(name.encode() + tensor.contiguous().numpy().tobytes())
    assert state_digest(plain) == by_hand.hexdigest()
    for dtype in (torch.bfloat16, torch.half, torch.complex64, torch.float8_e4m3fn, torch.bool):
        one, other = (torch.tensor([value, 0, value]).to(dtype) for value in (0.0, 1.0))
        assert state_digest({"x": one}) != state_digest({"x": other})
        assert state_digest({"x": one[1]}) == state_digest({"x": one[1].clone()})
    conjugate = torch.tensor([1 + 2j]).conj()
    assert state_digest({"x": conjugate}) == state_digest({"x": torch.tensor([1 - 2j])})


# -- as users have them ----------------------------------------------------------------------


def small_mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mlp([64, 8, 10], "tanh").double()


def test_pattern_key_and_prefix_reach_a_sweep_and_its_status(
    run: Run, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, wanted = tmp_path / "gan", small_mlp(1)
    folder.mkdir()
    for name in ("G_7_1.pth", "D_7_1.pth", "G_7_2.pth"):
        plain, ema = small_mlp(2).state_dict(), parallel(wanted.state_dict())
        torch.save({"model": plain, "ema": {"q." + key: ema[key] for key in ema}}, folder / name)
    with pytest.raises(CheckpointError, match=r"checkpoints\.pattern"):
        find_checkpoints(folder)
    words = ("pattern=^G_[0-9]+_(?P<step>[0-9]+)", "key=ema", "prefix=q", "directory=gan")
    options = [word for one in words for word in ("--set", f"checkpoints.{one}")]
    done = run("spectrum", "job.toml", *options, "--set", "spectrum.largest=1", ranks=2)
    assert done.returncode == 0, done.stderr
    path = Path("results") / "digits.h5"
    monkeypatch.chdir(tmp_path)
    result = hessdist.open_run(path)
    assert list(result.steps) == [1, 2]
    assert result[1].checkpoint_digest == state_digest(wanted.state_dict())
    status = status_of(path)
    assert (status.done, status.waiting) == ([1, 2], [])


def test_a_folder_that_is_itself_a_checkpoint_is_swept_and_said(
    run: Run, job: Path, tmp_path: Path
) -> None:
    wanted = small_mlp(1)
    as_distributed(tmp_path / "step-30", wanted.state_dict())
    done = run("spectrum", "job.toml", "--set", "checkpoints.directory=step-30")
    assert done.returncode == 0, done.stderr
    assert "step-30 is itself a checkpoint; its step 30 is from its name" in done.stdout
    result = hessdist.open_run(tmp_path / "results" / "digits.h5")
    assert result[30].checkpoint_digest == state_digest(wanted.state_dict())
