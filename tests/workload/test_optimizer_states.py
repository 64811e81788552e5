"""Optimisers' states: where they are found, whose parameters they are of, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hessdist.curvature.metric import (
    Asked,
    Metric,
    bound_without_metric,
    diagonal_metric,
    optimizer_metric,
)
from hessdist.curvature.parameters import Parameters
from hessdist.errors import HessdistError
from hessdist.workload.checkpoints import read_whole, write_checkpoint
from hessdist.workload.optimizer_states import entries_of, find_optimizer

Parts = Callable[[nn.Module], Any]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 2))


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> Any:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(model(torch.ones(2, 3)).square().sum())
        optimizer.step()
    return optimizer.state_dict()


def adam_state(model: nn.Module, parts: Parts = lambda model: model.parameters()) -> Any:
    return stepped(model, torch.optim.Adam(parts(model)))


def metric_at(path: Path, model: nn.Module, layers: Iterable[str] = ()) -> Metric:
    layout = Parameters(model, list(layers)).layout
    asked = Asked("hessian", tuple(layers), 0.0)
    return optimizer_metric(read_whole(path), path, model, layout, asked)


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(HessdistError) as caught:
        act()
    line = str(caught.value)
    assert line.isprintable()
    assert caught.value.exit_status == 2
    assert caught.value.remedy
    return line


# -- where it is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        lambda model, state: {"model": model, "optimizer": state},
        lambda model, state: {"model_state_dict": model, "optimizer_state_dict": state, "step": 3},
        lambda model, state: {"state_dict": model, "optimizer_states": [state], "epoch": 1},
        lambda model, state: {"trainer": {"net": model, "optim": state}},
    ],
)
def test_it_is_found_where_trainers_write_it(content: Any, tmp_path: Path) -> None:
    model = network()
    state = adam_state(model)
    torch.save(content(model.state_dict(), state), tmp_path / "step-1.pt")
    found = find_optimizer(read_whole(tmp_path / "step-1.pt"), tmp_path / "step-1.pt")
    assert found["param_groups"] == state["param_groups"]


def test_it_is_found_in_a_folder_of_transformers_and_beside_our_own(tmp_path: Path) -> None:
    model = network()
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    state = adam_state(model)
    torch.save(state, folder / "optimizer.pt")
    found = find_optimizer(read_whole(folder), folder)
    assert found["param_groups"] == state["param_groups"]
    optimizer = torch.optim.Adam(model.parameters())
    stepped(model, optimizer)
    for place in ({}, {"key": "a.b", "prefix": "module"}):
        path = write_checkpoint(tmp_path / "own", 5, model, optimizer=optimizer, **place)
        expected = optimizer.state_dict()["state"][0]["exp_avg_sq"]
        found = find_optimizer(read_whole(path), path)
        assert torch.equal(found["state"][0]["exp_avg_sq"], expected)
    plain = write_checkpoint(tmp_path / "plain", 5, model)
    bare = write_checkpoint(tmp_path / "own", 5, model, optimizer=optimizer)
    assert torch.load(bare).keys() == model.state_dict().keys()  # of the model alone, as before
    assert bare.read_bytes() == plain.read_bytes()
    torch.save({name: 2 * value for name, value in model.state_dict().items()}, bare)
    assert "the file has changed since" in refusal(lambda: metric_at(bare, model))


def test_a_checkpoint_without_a_state_or_with_two_is_refused(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "step-1.pt"
    torch.save(model.state_dict(), path)
    assert "has no optimiser's state" in refusal(lambda: metric_at(path, model))
    state = adam_state(model)
    torch.save({"model": model.state_dict(), "a": state, "b": state}, path)
    assert "several optimisers (a, b)" in refusal(lambda: metric_at(path, model))


# -- whose parameters it is of ---------------------------------------------------------------


def second_squares(state: Any, model: nn.Module) -> dict[str, Any]:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    entries = entries_of(state, shapes, trainable, Path("x"))
    return {name: entry.state["exp_avg_sq"] for name, entry in entries.items()}


def by_dimension(model: nn.Module) -> Any:
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.1},
    ]


def reversed_with_names(model: nn.Module) -> Any:
    named = list(model.named_parameters())
    return [{"params": named[4:]}, {"params": named[:4], "lr": 1e-2}]


@pytest.mark.parametrize(
    "parts", [lambda model: model.parameters(), by_dimension, reversed_with_names]
)
def test_numbers_are_those_of_the_right_parameters(parts: Parts) -> None:
    model = network()
    optimizer = torch.optim.Adam(parts(model))
    found = second_squares(stepped(model, optimizer), model)
    for name, p in model.named_parameters():
        assert torch.equal(found[name], optimizer.state[p]["exp_avg_sq"]), name


def test_frozen_parameters_may_be_in_the_optimiser_or_not(tmp_path: Path) -> None:
    for given in (False, True):
        model = network()
        model[0].requires_grad_(False)
        some = [p for p in model.parameters() if given or p.requires_grad]
        state = stepped(model, torch.optim.Adam(some))
        torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "step-1.pt")
        metric = metric_at(tmp_path / "step-1.pt", model)
        assert np.isfinite(metric.description.bound.value)
        layout = Parameters(model).layout
        squares = state["state"][2 if given else 0]["exp_avg_sq"].double()  # of 1.weight
        expected = squares.sqrt() / (1 - 0.999**2) ** 0.5 + 1e-8
        assert metric.entries(layout, 0, 3) == pytest.approx(expected.numpy(), rel=1e-12)
        part = Parameters(model, ["2"]).layout  # a part has the same entries
        whole = metric.entries(layout, 6, 6 + part.size)
        assert np.array_equal(metric.entries(part, 0, part.size), whole)


def test_groups_that_several_ways_fit_are_refused() -> None:
    model = network()  # two layers of one shape, and three vectors of one shape

    def mixed(model: nn.Module) -> Any:
        named = dict(model.named_parameters())
        first = [named[name] for name in ("1.weight", "2.weight", "3.weight")]
        others = [p for p in named.values() if not any(p is one for one in first)]
        return [{"params": first}, {"params": others, "lr": 1e-2}]

    state = adam_state(model, mixed)
    assert "shapes do not tell" in refusal(lambda: second_squares(state, model))


def test_rates_that_only_the_order_would_tell_apart_are_refused() -> None:
    model = network()

    def two(model: nn.Module) -> Any:
        first, *others = model.parameters()
        return [{"params": [first]}, {"params": others, "lr": 1e-2}]

    state = stepped(model, torch.optim.SGD(two(model), lr=0.1))  # without buffers, no shapes
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    line = refusal(lambda: entries_of(state, shapes, list(shapes), Path("x")))
    assert "model.named_parameters()" in line


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "step-1.pt"
    others = {
        "has 2 parameters, and the model 8": nn.Sequential(nn.Linear(3, 2)),
        "the shapes in it are others": nn.Sequential(
            nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 3), nn.Linear(3, 2)
        ),
    }
    for what, other in others.items():
        state = {"model": model.state_dict(), "optimizer": adam_state(other)}
        torch.save(state, path)
        assert what in refusal(lambda: metric_at(path, model))


# -- P ---------------------------------------------------------------------------------------


def saved(path: Path, model: nn.Module, state: Any) -> Path:
    torch.save({"model": model.state_dict(), "optimizer": state}, path)
    return path


def test_p_that_is_not_positive_and_finite_is_refused(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "step-1.pt"
    start = torch.optim.Adam(model.parameters()).state_dict()
    line = refusal(lambda: metric_at(saved(path, model, start), model))
    assert "Adam has made no step of it" in line
    adagrad = torch.optim.Adagrad(model.parameters()).state_dict()  # P = eps before a step
    line = refusal(lambda: metric_at(saved(path, model, adagrad), model))
    assert "Adagrad has made no step of it" in line
    for value, eps in ((0.0, 0.0), (float("nan"), 1e-8), (-1.0, 1e-8), (float("inf"), 1e-8)):
        state = stepped(model, torch.optim.Adam(model.parameters(), eps=eps))
        state["state"][4]["exp_avg_sq"][1, 2] = value
        line = refusal(lambda state=state: metric_at(saved(path, model, state), model))
        assert "not finite at 1 of 9 entries of 2.weight" in line
    state = adam_state(model, by_dimension)
    state["param_groups"][1]["lr"] = 0.0
    line = refusal(lambda: metric_at(saved(path, model, state), model))
    assert "entries of 0.bias" in line


@pytest.mark.parametrize(
    "kind", [torch.optim.RAdam, torch.optim.Adamax, torch.optim.Adadelta, torch.optim.ASGD]
)
def test_an_unknown_optimiser_is_refused_with_its_names(kind: Any, tmp_path: Path) -> None:
    model, path = network(), tmp_path / "step-1.pt"
    state = stepped(model, kind(model.parameters()))
    line = refusal(lambda: metric_at(saved(path, model, state), model))
    assert "the optimiser of" in line
    assert "is not known: its groups have lr, " in line
    assert ", ".join(state["state"][0]) in line


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["param_groups"][0].update(lr="fast"),
        lambda state: state["param_groups"][0].update(betas=0.9),
        lambda state: state["param_groups"][0].update(params=3),
        lambda state: state["param_groups"][0].update(eps=float("nan")),
        lambda state: state["param_groups"][0].update(lr=float("nan")),
        lambda state: state["state"][0].update(exp_avg_sq="none"),
        lambda state: state["state"][0].update(step=torch.ones(3)),
        lambda state: state["state"].update({0: 5}),
        lambda state: state.update(state=[1]),
        lambda state: state["param_groups"].append({"params": [0]}),
    ],
)
def test_what_no_optimiser_writes_is_refused_and_bounds_nothing(
    damage: Any, tmp_path: Path
) -> None:
    model, path = network(), tmp_path / "step-1.pt"
    state = adam_state(model)
    damage(state)
    saved(path, model, state)
    refusal(lambda: metric_at(path, model))
    asked, layout = Asked("hessian", (), 0.0), Parameters(model).layout
    found = bound_without_metric(read_whole(path), path, model, layout, asked)
    assert np.isnan(found.value)


def test_a_parameter_that_the_optimiser_has_not_moved_is_named(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "step-1.pt"
    state = adam_state(model)
    del state["state"][3]
    line = refusal(lambda: metric_at(saved(path, model, state), model))
    assert "no exp_avg_sq of 1.bias" in line
    assert metric_at(path, model, ["2", "3"])  # not in use


# -- a diagonal from a file ------------------------------------------------------------------


def test_a_diagonal_is_read_by_position_or_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = network()
    layout = Parameters(model, ["2"]).layout
    values = np.arange(1.0, 13.0)
    np.save(tmp_path / "p.npy", values)
    tensors = dict(zip(layout.names, layout.split(torch.from_numpy(values)), strict=True))
    torch.save(tensors, tmp_path / "p.pt")
    save_file(tensors, tmp_path / "p.safetensors")
    digests = set()
    for name in ("p.npy", "p.pt", "p.safetensors"):
        metric = diagonal_metric(tmp_path / name, layout)
        assert np.array_equal(metric.entries(layout, 2, 11), values[2:11])
        digests.add(metric.description.digest)
    assert len(digests) == 1
    np.save(tmp_path / "p.npy", values + 1)
    assert diagonal_metric(tmp_path / "p.npy", layout).description.digest not in digests


def test_a_diagonal_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    layout = Parameters(network(), ["2"]).layout

    def line(name: str) -> str:
        return refusal(lambda: diagonal_metric(tmp_path / name, layout))

    np.save(tmp_path / "short.npy", np.ones(3))
    np.save(tmp_path / "zero.npy", np.arange(12.0))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    torch.save({"2.weight": torch.ones(3, 3)}, tmp_path / "part.pt")
    torch.save({"2.weight": torch.ones(9), "2.bias": torch.ones(3)}, tmp_path / "flat.pt")
    assert "float64 numbers of shape (3,), and there are 12 parameters" in line("short.npy")
    assert "not finite at 1 of 9 entries of 2.weight" in line("zero.npy")
    assert "cannot be read as a vector" in line("objects.npy")
    assert "has no tensor for 2.bias" in line("part.pt")
    assert "has shape (9,) for 2.weight, whose shape is (3, 3)" in line("flat.pt")
    assert "is no file" in line("absent.npy")
