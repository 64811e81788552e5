from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hessdist.errors import WorkloadError
from hessdist.workload.models import build_model, mlp

OURS = """
from torch import nn

number = 7

def build(width=3):
    return nn.Linear(width, 2)

class Tower(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))

class Zoo:
    @staticmethod
    def linear():
        return nn.Linear(1, 1)

def no_module():
    return {"weights": 3}

def broken():
    raise ZeroDivisionError("by hand")
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`networks_of_a_user` lies in the working directory, which is not on the path."""
    (tmp_path / "networks_of_a_user.py").write_text(OURS, encoding="utf-8")
    (tmp_path / "broken_on_import.py").write_text("import absent_library_xyz\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("networks_of_a_user", None)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("factory", "arguments", "expected"),
    [
        ("lenet", {}, 3_274_634),
        # conv1, conv2, fc1, fc2 one by one: (25 c + 1) 32, (25 * 32 + 1) 64, ...
        ("lenet", {"in_channels": 3, "image_size": 32}, 2_432 + 51_264 + 4_195_328 + 10_250),
        ("lenet", {"num_classes": 7}, 3_274_634 - 3 * 1_025),
        ("lenet5", {}, 61_706),
        ("lenet5", {"activation": "tanh"}, 61_706),
        (
            "lenet5",
            {"in_channels": 3, "image_size": 32},
            456 + 2_416 + (16 * 36 * 120 + 120) + 10_164 + 850,
        ),
        ("mlp", {"widths": [64, 8, 10]}, 64 * 8 + 8 + 8 * 10 + 10),
        ("mlp", {"widths": [64, 8, 10], "bias": False}, 64 * 8 + 8 * 10),
        ("mlp", {"widths": [4, 3]}, 15),
    ],
)
def test_built_in_models_have_the_stated_number_of_parameters(
    factory: str, arguments: dict[str, Any], expected: int
) -> None:
    assert count(build_model(factory, arguments)) == expected


def test_lenet_names_its_parameters_as_the_reference_does() -> None:
    names = [name for name, _ in build_model("lenet", {}).named_parameters()]
    assert names == [
        f"{layer}.{part}"
        for layer in ("conv1", "conv2", "fc1", "fc2")
        for part in ("weight", "bias")
    ]


def test_lenet_computes_two_convolutions_and_two_linear_layers() -> None:
    torch.manual_seed(1)
    model = build_model("lenet", {"in_channels": 2, "image_size": 9, "num_classes": 4}).double()
    p = dict(model.named_parameters())
    images = torch.randn(3, 2, 9, 9, dtype=torch.float64)
    hidden = images
    for layer in ("conv1", "conv2"):
        hidden = F.conv2d(hidden, p[f"{layer}.weight"], p[f"{layer}.bias"], padding=2)
        hidden = F.max_pool2d(F.relu(hidden), 2)
    hidden = F.relu(hidden.flatten(1) @ p["fc1.weight"].T + p["fc1.bias"])
    expected = hidden @ p["fc2.weight"].T + p["fc2.bias"]
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 12)])
@pytest.mark.parametrize("factory", ["lenet", "lenet5"])
def test_convolutional_models_take_the_images_they_were_made_for(
    factory: str, channels: int, size: int
) -> None:
    model = build_model(factory, {"in_channels": channels, "image_size": size, "num_classes": 6})
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 6)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu", F.relu),
        ("tanh", torch.tanh),
        ("sigmoid", torch.sigmoid),
        ("gelu", F.gelu),
        ("softplus", F.softplus),
        ("identity", lambda x: x),
    ],
)
def test_mlp_has_its_activation_between_layers_and_none_at_the_end(
    activation: str, formula: Any
) -> None:
    model = build_model("mlp", {"widths": [6, 5, 3], "activation": activation})
    p = dict(model.named_parameters())
    assert list(p) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    inputs = torch.randn(4, 1, 2, 3)
    hidden = formula(inputs.flatten(1) @ p["fc1.weight"].T + p["fc1.bias"])
    torch.testing.assert_close(model(inputs), hidden @ p["fc2.weight"].T + p["fc2.bias"])


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("factory", "arguments", "expected"),
    [
        ("networks_of_a_user:build", {}, 8),
        ("networks_of_a_user:build", {"width": 5}, 12),
        ("networks_of_a_user:Tower", {"depth": 3}, 18),
        ("networks_of_a_user:Zoo.linear", {}, 2),
        ("torch.nn:Linear", {"in_features": 2, "out_features": 2}, 6),
    ],
)
def test_a_factory_of_the_users_is_found_in_the_working_directory_or_on_the_path(
    factory: str, arguments: dict[str, Any], expected: int
) -> None:
    assert count(build_model(factory, arguments)) == expected


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("factory", "arguments", "says"),
    [
        ("lenett", {}, ["model.factory", "'lenett'", "did you mean 'lenet'"]),
        ("vit", {}, ["model.factory", "'vit'", "lenet, lenet5, mlp"]),
        ("no_such_module_xyz:build", {}, ["model.factory", "does not import", "PYTHONPATH"]),
        ("broken_on_import:build", {}, ["model.factory", "absent_library_xyz"]),
        ("networks_of_a_user:absent", {}, ["model.factory", "does not import", "absent"]),
        ("networks_of_a_user:number", {}, ["model.factory", "not callable"]),
        ("networks_of_a_user:build", {"depth": 3}, ["model.arguments", "depth", "(width=3)"]),
        ("networks_of_a_user:Tower", {}, ["model.arguments", "depth"]),
        ("networks_of_a_user:broken", {}, ["model", "broken", "ZeroDivisionError", "by hand"]),
        ("networks_of_a_user:no_module", {}, ["model.factory", "dict", "torch.nn.Module"]),
        ("mlp", {}, ["model.arguments", "widths"]),
        ("mlp", {"widths": [3]}, ["widths", "[3]"]),
        ("mlp", {"widths": [3, 0]}, ["widths", "[3, 0]"]),
        ("mlp", {"widths": [3, 2], "activation": "swish"}, ["'swish'", "relu, tanh"]),
        ("lenet", {"activation": "swish"}, ["lenet", "'swish'", "relu, tanh"]),
        ("lenet5", {"activation": ""}, ["lenet5", "''", "relu, tanh"]),
        ("lenet", {"image_size": 3}, ["image", "at least 4"]),
        ("lenet5", {"image_size": 11}, ["image", "at least 12"]),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_one_line_that_says_why(
    factory: str, arguments: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(WorkloadError) as caught:
        build_model(factory, arguments)
    line = str(caught.value)
    assert "\n" not in line
    assert [part for part in says if part not in line] == []


def test_the_ntk_parametrization() -> None:
    torch.manual_seed(0)
    model = mlp([400, 300, 2], "tanh", parametrization="ntk")
    for parameter in model.parameters():
        assert float(parameter.std()) == pytest.approx(1, abs=5 / (2 * parameter.numel()) ** 0.5)
    inputs = torch.randn(5, 20, 20)
    weights = [p.detach() for p in model.parameters()]
    hidden = torch.tanh(inputs.flatten(1) @ weights[0].T / 20 + 0.1 * weights[1])
    expected = hidden @ weights[2].T / 300**0.5 + 0.1 * weights[3]
    assert torch.allclose(model(inputs), expected, atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in mlp([400, 300, 2]).named_parameters()
    ]
    assert len(list(mlp([4, 3], bias=False, parametrization="ntk").parameters())) == 1
    with pytest.raises(WorkloadError, match="parametrization 'own' is not known"):
        mlp([4, 3], parametrization="own")
