"""The user's model is copied or lent, checked and converted; nothing of it is lost or changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hessdist
from hessdist.errors import WorkloadError
from hessdist.workload.preparation import borrowed, check_model, converted, in_dtype, unwrapped

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(30, 4, generator=G), torch.randint(0, 3, (30,), generator=G)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def mlp(first: Callable[[nn.Linear], nn.Module] = lambda layer: layer) -> nn.Module:
    return nn.Sequential(first(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))


class Remembers(nn.Module):
    """Keeps activations, one by one and in nestings, for a later loss or a plot."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.kept: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = torch.tanh(self.a(x))
        self.kept["all"] = [self.hidden, (self.hidden * 2,)]
        return self.b(self.hidden)


class Uncopied(nn.Module):
    """Holds what copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.running = (i for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm by hooks": lambda: mlp(nn.utils.weight_norm),
    "weight_norm by parametrization": lambda: mlp(nn.utils.parametrizations.weight_norm),
    "spectral_norm by hooks": lambda: mlp(nn.utils.spectral_norm),
    "spectral_norm by parametrization": lambda: mlp(nn.utils.parametrizations.spectral_norm),
    "activations kept": Remembers,
    "a generator": Uncopied,
    "data parallel": lambda: nn.DataParallel(mlp()),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
}


def dense(model: nn.Module) -> Tensor:
    """The Hessian by double backward, in evaluation mode, of this very model."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Fused weight normalisation has a wrong second derivative: by differences, then.
    rows = []

    def gradient() -> Tensor:
        value = F.cross_entropy(model(X.double()), Y)
        found = torch.autograd.grad(value, parameters, materialize_grads=True, allow_unused=True)
        return torch.cat([g.reshape(-1) for g in found])

    for parameter in parameters:
        flat = parameter.data.view(-1)
        for i in range(flat.numel()):
            flat[i] += 1e-5
            ahead = gradient()
            flat[i] -= 2e-5
            rows.append((ahead - gradient()) / 2e-5)
            flat[i] += 1e-5
    matrix = torch.stack(rows)
    return (matrix + matrix.T) / 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("used", [False, True])
def test_any_module_is_taken_and_stays_as_it_was(name: str, used: bool) -> None:
    model = seeded(MODELS[name]).double().train()
    if used:  # activations with their graph, and gradients, are there
        model(X.double()).sum().backward()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    found = hessdist.extreme_eigenpairs(
        model, F.cross_entropy, TensorDataset(X, Y), largest=3, smallest=2, tolerance=1e-6,
        device="cpu",
    )  # fmt: skip
    assert all(module.training for module in model.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.dtype == torch.float64
        assert parameter.grad is None if gradient is None else torch.equal(parameter.grad, gradient)
    exact = torch.linalg.eigvalsh(dense(unwrapped(model))).numpy()
    scale = np.abs(exact).max()
    assert np.abs(found.eigenvalues_largest - exact[::-1][:3]).max() <= 1e-6 * scale
    assert np.abs(found.eigenvalues_smallest - exact[:2]).max() <= 1e-6 * scale


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_give_the_original_s_numbers_and_names(backend: str) -> None:
    model = seeded(mlp)
    given = TensorDataset(X, Y)
    right = hessdist.extreme_eigenpairs(model, F.cross_entropy, given, largest=2, smallest=1)
    compiled = torch.compile(model, backend=backend)
    for one in (compiled, nn.DataParallel(compiled), torch.compile(nn.DataParallel(model))):
        found = hessdist.extreme_eigenpairs(one, F.cross_entropy, given, largest=2, smallest=1)
        assert found.parameter_names == right.parameter_names
        assert found.eigenvalues_largest == pytest.approx(right.eigenvalues_largest, rel=1e-6)


def sparse() -> nn.Module:
    model = mlp()
    model.extra = nn.Parameter(torch.eye(3).to_sparse())
    return model


def whole_numbers() -> nn.Module:
    model = mlp()
    model.steps = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    return model


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})


def complex_ones() -> nn.Module:
    model = mlp()
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return model


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (sparse, r"the parameter extra is sparse; call to_dense\(\)"),
    (whole_numbers, r"the parameter steps is of integers \(int64\)"),
    (quantised, "quantised"),
    (complex_ones, "the parameter phase is complex.*view_as_real"),
    (lambda: nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3)), "has no shape yet.*lazy"),
    (lambda: mlp().to("meta"), "the parameter 0.weight is on the meta device"),
    (lambda: nn.Sequential(nn.Embedding(4, 3, max_norm=1.0)), r"\(max_norm\)"),
    (lambda: nn.Sequential(nn.EmbeddingBag(4, 3, max_norm=1.0)), r"\(max_norm\)"),
    (lambda: nn.Sequential(nn.Embedding(4, 3, scale_grad_by_freq=True)), "frequencies"),
    (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)),
        "no running statistics",
    ),
    (lambda: mlp().requires_grad_(False), "no trainable parameter"),
    (lambda: mlp(lambda layer: layer.bfloat16()), "dtype torch.bfloat16, torch.float32"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "says"), REFUSED)
def test_what_would_be_lost_is_refused_by_name(make: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(WorkloadError, match=says) as caught:
        hessdist.extreme_eigenpairs(seeded(make), F.cross_entropy, TensorDataset(X, Y))
    assert "\n" not in str(caught.value)


def test_complex_constants_and_buffers_keep_their_imaginary_parts() -> None:
    model = mlp()
    model.register_buffer("turn", torch.tensor([1 + 2j]))
    model.fixed = nn.Parameter(torch.tensor([3 - 1j]), requires_grad=False)
    check_model(model)
    moved = converted(model, torch.device("cpu"), torch.float64)
    assert moved.turn.dtype == torch.complex128
    assert complex(moved.turn[0]) == 1 + 2j
    assert complex(moved.fixed.detach()[0]) == 3 - 1j


def test_tied_parameters_stay_tied_and_counts_stay_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.o.weight = self.e.weight
            self.register_buffer("count", torch.tensor(3))

    with borrowed(Tied()) as lent:
        moved = converted(lent, torch.device("cpu"), torch.float64)
        assert moved.o.weight is moved.e.weight
        assert moved.count.dtype == torch.int64
        assert moved.count.ndim == 0


def test_another_dtype_for_a_while() -> None:
    model = seeded(lambda: nn.Sequential(mlp(), nn.BatchNorm1d(3)))
    before = copy.deepcopy(model.state_dict())
    places = [p.data_ptr() for p in model.parameters()]
    with in_dtype(model, torch.float64):
        assert all(p.dtype == torch.float64 for p in model.parameters())
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
        model[1].running_mean.add_(1.0)
    assert [p.data_ptr() for p in model.parameters()] == places
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    with pytest.raises(ValueError, match="stop"), in_dtype(model, torch.float64):
        raise ValueError("stop")
    assert next(model.parameters()).dtype == torch.float32


def test_the_model_lent_is_put_back_after_an_error() -> None:
    model = seeded(Uncopied).train()
    before = copy.deepcopy(dict(model.named_parameters()))

    def spoil() -> None:
        with borrowed(model) as lent:
            assert lent is model
            converted(lent, torch.device("cpu"), torch.float64).eval()
            nn.init.zeros_(next(lent.parameters()))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        spoil()
    assert model.training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
