from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hessdist.errors import CheckpointError, OutputError
from hessdist.workload.checkpoints import load_into, read_state, write_checkpoint
from hessdist.workload.steps import find_checkpoints, step_of


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# -- finding ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step-2.pt", 2),
        ("step-00000050.pt", 50),
        ("step_10.pth", 10),
        ("global_step1000.bin", 1000),
        ("epoch=0-step=10.ckpt", 10),
        ("step=20-epoch=3.ckpt", 20),
        ("epoch=12-val_loss=0.31-step=400.ckpt", 400),
        ("model_0050.pt", 50),
        ("lenet5-epoch7.safetensors", 7),
        ("checkpoint-500.safetensors", 500),
        ("7.pt", 7),
        ("final.pt", None),
    ],
)
def test_the_step_is_read_from_the_file_name(name: str, step: int | None) -> None:
    assert step_of(Path(name)) == step


def test_checkpoints_are_ordered_by_number_and_other_files_are_passed_over(tmp_path: Path) -> None:
    others = ("notes-3.txt", ".step-4.pt", "final.pt", "step-5.partial", "step-6.pt.tmp")
    for name in ("step-10.pt", "step-2.pt", "model_0050.pth", "epoch=1-step=7.ckpt", *others):
        (tmp_path / name).touch()
    found = find_checkpoints(tmp_path)
    assert [(at.step, at.path.name) for at in found] == [
        (2, "step-2.pt"),
        (7, "epoch=1-step=7.ckpt"),
        (10, "step-10.pt"),
        (50, "model_0050.pth"),
    ]


def test_two_checkpoints_of_one_step_are_both_named(tmp_path: Path) -> None:
    for name in ("step-10.pt", "step-00000010.safetensors", "step-2.pt"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"step-10.pt and step-0+10.safetensors .*step 10"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("folder", "says"), [("absent", "does not exist"), (".", "holds no checkpoint")]
)
def test_a_missing_and_an_empty_folder_are_named(tmp_path: Path, folder: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        find_checkpoints(tmp_path / folder)
    assert str(tmp_path / folder) in str(caught.value)
    assert "hessdist train" in str(caught.value)


# -- reading ---------------------------------------------------------------------------------


def plain(state: dict[str, Tensor]) -> Any:
    return state


def under(key: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: {"epoch": 3, key: state, "optimizer": {"state": {}, "lr": 0.1}}


def parallel(state: dict[str, Tensor]) -> Any:
    return {f"module.{name}": tensor for name, tensor in state.items()}


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
    assert same(read_state(path), dict(model.state_dict()))


def test_safetensors_are_read(tmp_path: Path, model: nn.Module) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "step-1.safetensors"
    save_file(parallel(dict(model.state_dict())), path)
    back, expected = read_state(path), model.state_dict()
    assert same({name: back[name] for name in expected}, dict(expected))


def test_a_prefix_that_only_some_names_have_is_a_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "step-1.pt"
    torch.save({"module.weight": torch.ones(1), "bias": torch.ones(1)}, path)
    assert list(read_state(path)) == ["module.weight", "bias"]


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
    from safetensors.torch import save_file

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


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 3, {1: torch.zeros(3)}])
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
