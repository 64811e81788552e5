"""Situations that people who train networks are in, each with what is right, or the refusal."""

from __future__ import annotations

import copy
import functools
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset

LARGEST, SMALLEST = 3, 2
Pair = namedtuple("Pair", "features label")
Triple = namedtuple("Triple", "features label weight")


@dataclass
class Situation:
    """What a user has, and what has to come of it."""

    model: nn.Module
    loss: Any
    data: Any
    right: Callable[[nn.Module], Tensor] | None = None  # PyTorch's own mean, over all samples
    says: str = ""  # the refusal, where it is one
    options: dict[str, Any] = field(default_factory=dict)
    close: float = 1e-6


class Listed:
    """Any samples as a data set."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def made(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        return make().to(dtype)


def net(
    *widths: int,
    out: int = 3,
    act: Callable[[], nn.Module] = nn.Tanh,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    first, last = widths or (4, 5)
    return made(lambda: nn.Sequential(nn.Linear(first, last), act(), nn.Linear(last, out)), dtype)


def dense(right: Callable[[nn.Module], Tensor], model: nn.Module) -> Tensor:
    """The Hessian by differences of gradients, in float64: it needs a first derivative alone."""
    twin = copy.deepcopy(model).double().eval()
    parameters = [p for p in twin.parameters() if p.requires_grad]

    def gradient() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            value = right(twin)
            found = torch.autograd.grad(
                value, parameters, materialize_grads=True, allow_unused=True
            )
        return torch.cat([g.to_dense().reshape(-1) for g in found])

    rows = []
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


VECTORS = torch.randn(60, 4, generator=generator())
LABELS = torch.randint(0, 3, (60,), generator=generator())
REAL = torch.randn(60, generator=generator())
PLAIN = TensorDataset(VECTORS, LABELS)


def summed_cross_entropy(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="sum"), len(batch[1])


def cross_entropy(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(VECTORS.double()), LABELS)


# -- 01: class weights, data sorted by class -------------------------------------------------


def class_weights(kind: str, batch_size: int, weights: tuple[float, ...]) -> Situation:
    y = torch.arange(3).repeat_interleave(30)
    x = torch.randn(90, 4, generator=generator()) + 0.8 * y[:, None]
    weight = torch.tensor(weights)
    criterion: Any = {
        "module": nn.CrossEntropyLoss(weight=weight),
        "function": functools.partial(F.cross_entropy, weight=weight),
        "none": nn.CrossEntropyLoss(weight=weight.double(), reduction="none"),
        "smooth": nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1),
        "two": lambda model, batch: (
            F.cross_entropy(model(batch[0]), batch[1], weight=weight.double(), reduction="sum"),
            float(weight[batch[1]].sum()),
        ),
    }[kind]
    smoothing = 0.1 if kind == "smooth" else 0.0

    def right(model: nn.Module) -> Tensor:
        z = model(x.double())
        return F.cross_entropy(z, y, weight=weight.double(), label_smoothing=smoothing)

    return Situation(
        net(), criterion, TensorDataset(x, y), right, options={"batch_size": batch_size}
    )


# -- 03: labels that do not count ------------------------------------------------------------


def ignored(kind: str, void: int, dtype: torch.dtype = torch.int64) -> Situation:
    x = torch.randn(20, 2, 4, 4, generator=generator())
    y = torch.randint(0, 3, (20, 4, 4), generator=generator())
    for image in range(20):  # another number in every image, and one image without any label
        y[image].view(-1)[: image % 16 if image != 7 else 16] = void
    criterion: Any = {
        "module": nn.CrossEntropyLoss(ignore_index=void),
        "function": F.cross_entropy,
        "partial": functools.partial(F.cross_entropy, ignore_index=void, reduction="mean"),
        "own": lambda z, t: F.cross_entropy(z, t, ignore_index=void),
        "unnamed": nn.CrossEntropyLoss(),
    }[kind]

    def right(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(x.double()), y, ignore_index=void)

    data = TensorDataset(x, y.to(dtype))
    model = made(lambda: nn.Conv2d(2, 3, 1))
    if kind == "own":
        return Situation(model, criterion, data, says="ignored labels|tokens")
    if kind == "unnamed":
        return Situation(model, criterion, data, says=r"labels are .*ignore_index")
    return Situation(model, criterion, data, right, options={"batch_size": 3})


# -- 04: attention as it comes ---------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2).mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).mean(1))


def attention(make: Callable[[], nn.Module], dtype: torch.dtype) -> Situation:
    x = torch.randn(20, 5, 4, generator=generator())
    y = LABELS[:20]
    right = lambda model: F.cross_entropy(model(x.double()), y)  # noqa: E731
    single = dtype == torch.float32
    return Situation(
        made(make, dtype),
        F.cross_entropy,
        TensorDataset(x, y),
        right,
        close=1e-3 if single else 1e-6,
        options={"tolerance": 1e-4 if single else 1e-6},
    )


# -- 07: second derivatives that are wrong ---------------------------------------------------


class FusedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        p = logits.softmax(1)
        ctx.gradient = (p - F.one_hot(labels, logits.shape[1])) / len(labels)
        return F.cross_entropy(logits, labels)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return ctx.gradient * scale, None


def fused(outputs: Tensor, targets: Tensor) -> Tensor:
    return FusedCrossEntropy.apply(outputs, targets)


# -- 10: operations without a second derivative ----------------------------------------------


class Sampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta, self.out = nn.Linear(9, 6), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.theta(x.flatten(1)).tanh().view(-1, 2, 3)
        grid = F.affine_grid(grid, list(x.shape), align_corners=False)
        return self.out(F.grid_sample(x, grid, align_corners=False).flatten(1))


class Bag(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.e, self.out = nn.EmbeddingBag(9, 3, **options), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.e(x)))


class Words(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.e, self.out = nn.Embedding(9, 3, **options), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.e(x).mean(1)))


class Distances(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x, self.p)


def operation(make: Callable[[], nn.Module], kind: str = "vectors", says: str = "") -> Situation:
    x = {
        "vectors": VECTORS[:30],
        "images": torch.randn(30, 1, 3, 3, generator=generator()),
        "words": torch.randint(0, 9, (30, 5), generator=generator()),
    }[kind]
    y = LABELS[:30]
    given = x.double() if x.is_floating_point() else x
    right = lambda model: F.cross_entropy(model(given), y)  # noqa: E731
    data = TensorDataset(x, y)
    return Situation(made(make), F.cross_entropy, data, None if says else right, says)


def ctc() -> Situation:
    x = torch.randn(20, 7, 4, generator=generator())
    y = torch.randint(1, 3, (20, 3), generator=generator())

    def loss(model: nn.Module, batch: Any) -> Any:
        x, y = batch
        logs, n = model(x).log_softmax(-1).transpose(0, 1), len(x)
        lengths = torch.full((n,), x.shape[1]), torch.full((n,), y.shape[1])
        return F.ctc_loss(logs, y, *lengths, reduction="sum"), n

    return Situation(net(), loss, TensorDataset(x, y), says="no second derivative of ctc_loss")


# -- 12: complex parameters ------------------------------------------------------------------


class Spectral(nn.Module):
    def __init__(self, real: bool) -> None:
        super().__init__()
        weight = torch.randn(5, dtype=torch.cfloat, generator=generator())
        self.real = real
        self.weight = nn.Parameter(torch.view_as_real(weight).clone() if real else weight)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.view_as_complex(self.weight) if self.real else self.weight
        return self.out(torch.tanh(torch.fft.irfft(torch.fft.rfft(x) * weight, n=8)))


def spectral(real: bool, dtype: torch.dtype) -> Situation:
    x = torch.randn(60, 8, generator=generator())
    right = lambda model: F.cross_entropy(model(x.double()), LABELS)  # noqa: E731
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Spectral(real)
    model = model.to(dtype) if real else model  # the other one would lose its imaginary parts
    data = TensorDataset(x, LABELS)
    if not real:
        return Situation(
            model, F.cross_entropy, data, says=r"weight is complex.*torch\.view_as_real"
        )
    single = dtype == torch.float32
    return Situation(model, F.cross_entropy, data, right, close=1e-3 if single else 1e-6)


# -- 24: many --------------------------------------------------------------------------------


class Forces(nn.Module):
    """Derivatives by the inputs: interatomic potentials."""

    def __init__(self, enables: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.enables = enables

    def forward(self, x: Tensor) -> Tensor:
        if self.enables:
            with torch.enable_grad():
                return self.slope(x)
        return self.slope(x)

    def slope(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


class Scaled(nn.Module):
    """With a parameter without dimensions, unused ones and empty ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.scale, self.unused = nn.Parameter(torch.tensor(0.3)), nn.Linear(2, 2)
        self.empty = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale.exp()


class Two(nn.Module):
    """A mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.log_var = nn.Linear(4, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.mean(h), self.log_var(h).exp()


class AsModule(nn.Module):
    def forward(self, model: nn.Module, batch: Any) -> Any:
        return summed_cross_entropy(model, batch)


class Drawing(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        return VECTORS[index] + 0.1 * torch.randn(4), LABELS[index]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter(zip(VECTORS, LABELS, strict=True))


class Sampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + torch.randn_like(x))


def training(model: nn.Module, batch: Any) -> Any:
    model.train()
    return summed_cross_entropy(model, batch)


def contrastive(model: nn.Module, batch: Any) -> Any:
    z = F.normalize(model(batch[0]), dim=1)
    logits = z @ z.roll(1, 1).T * 3
    return F.cross_entropy(logits, torch.arange(len(z)), reduction="sum"), len(z)


def gaussian(model: nn.Module, batch: Any) -> Any:
    mean, variance = model(batch[0])
    return F.gaussian_nll_loss(mean, batch[1], variance, reduction="sum"), len(batch[0])


def physics(form: str) -> Situation:
    """27: derivatives by the inputs inside the loss."""
    t = torch.rand(50, 1, generator=generator())

    def loss(model: nn.Module, batch: Any) -> Any:
        at = batch.clone().requires_grad_()
        if form == "enabled":
            with torch.enable_grad():
                u = model(at)
        else:
            u = model(at)
        slope = torch.autograd.grad(u.sum(), at, create_graph=True)[0]
        if form == "second":
            slope = torch.autograd.grad(slope.sum(), at, create_graph=True)[0]
        return (slope + u).square().sum(), len(batch)

    right = lambda model: loss(model, t.double())[0] / 50  # noqa: E731
    return Situation(net(1, 6, out=1), loss, t, right, options={"batch_size": 7})


def zero_first(kind: str) -> Situation:
    """26: the losses of the first samples are exactly zero in float32."""
    x = torch.randn(60, 4, generator=generator())
    y = (x[:, 0] > 0).long()
    x[:3, 0], y[:3] = 3.0, 1
    model = net(out=2, dtype=torch.float32)
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([2.0, 0, 0, 0])
        model[2].weight[1, 0], model[2].weight[0, 0] = 12.0, -12.0
    criterion: Any = {
        "function": F.cross_entropy,
        "module": nn.CrossEntropyLoss(),
        "lambda": lambda z, t: F.cross_entropy(z, t),
        "sum": lambda z, t: F.cross_entropy(z, t, reduction="sum"),
        "model": summed_cross_entropy,
    }[kind]
    right = lambda model: F.cross_entropy(model(x.double()), y)  # noqa: E731
    return Situation(model, criterion, TensorDataset(x, y), right, close=1e-3)


def criteria_of_real_targets() -> dict[str, Situation]:
    shape = r"outputs are of shape \(B, 1\) and targets of \(B,\).*targets\[:, None\]"
    first_equal = REAL.clone()
    first_equal[:3] = 1.0
    hot = F.one_hot(LABELS, 3)
    weight = torch.tensor([1.0, 2.0, 3.0])

    def of(loss: Any, y: Tensor, right: Any = None, says: str = "", out: int = 3) -> Situation:
        return Situation(net(out=out), loss, TensorDataset(VECTORS, y), right, says)

    bce = F.binary_cross_entropy_with_logits
    return {
        "11 (B, 1) and (B,)": of(nn.MSELoss(), REAL, says=shape, out=1),
        "11 (B, 1) and (B,), equal first": of(nn.MSELoss(), first_equal, says=shape, out=1),
        "11 (B, 1) and (B,), own": of(
            lambda z, t: (z - t).square().mean(), first_equal, says="broadcast", out=1
        ),
        "11 pos_weight": of(
            nn.BCEWithLogitsLoss(pos_weight=weight),
            hot.float(),
            lambda q: bce(q(VECTORS.double()), hot.double(), pos_weight=weight.double()),
        ),
        "11 integer targets": of(
            nn.BCEWithLogitsLoss(), hot, lambda q: bce(q(VECTORS.double()), hot.double())
        ),
        "11 soft labels": of(
            F.cross_entropy,
            hot.float() * 0.9 + 0.1 / 3,
            lambda q: F.cross_entropy(q(VECTORS.double()), hot.double() * 0.9 + 0.1 / 3),
        ),
    }


def situations() -> dict[str, Situation]:
    """Every situation by name; the number is that of its kind."""
    single, double = torch.float32, torch.float64
    found: dict[str, Situation] = {}
    for kind in ("module", "function", "none", "smooth", "two"):
        for size in (64, 100):
            found[f"01 {kind} {size}"] = class_weights(kind, size, (1.0, 8.0, 3.0))
    found["01 small weights"] = class_weights("module", 7, (0.01, 0.2, 0.03))
    found["03 255"] = ignored("module", 255)
    found["03 255 in bytes"] = ignored("module", 255, torch.uint8)
    found["03 -100"] = ignored("function", -100)
    found["03 a class"] = ignored("partial", 1)
    found["03 own"] = ignored("own", 255)
    found["03 unnamed"] = ignored("unnamed", 255)
    for make in (Attention, Encoder):
        for dtype in (single, double):
            found[f"04 {make.__name__} {dtype}"] = attention(make, dtype)
    named = r"wrong.*FusedCrossEntropy \(.*\) in the loss"
    found["07 fused"] = Situation(net(act=nn.SiLU), fused, PLAIN, says=named)
    found["10 grid_sample"] = operation(Sampler, "images")
    found["10 hardsigmoid"] = operation(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid(), nn.Linear(4, 3))
    )
    found["10 hardswish"] = operation(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardswish(), nn.Linear(4, 3))
    )
    for mode in ("mean", "sum", "max"):
        found[f"10 bag {mode}"] = operation(functools.partial(Bag, mode=mode), "words")
    found["10 bag sparse"] = operation(lambda: Bag(mode="sum", sparse=True), "words")
    found["10 sparse"] = operation(lambda: Words(sparse=True), "words")
    found["10 max_norm"] = operation(lambda: Words(max_norm=1.0), "words", r"\(max_norm\)")
    found["10 frequencies"] = operation(
        lambda: Words(scale_grad_by_freq=True), "words", "frequencies"
    )
    found["10 cdist"] = operation(Distances)
    found["10 ctc"] = ctc()
    pairs = [Pair(a, b) for a, b in zip(VECTORS, LABELS, strict=True)]
    triples = [Triple(a, b, 1.0) for a, b in pairs]
    lists = [{"x": a.tolist(), "y": int(b)} for a, b in pairs]
    found["11 named tuples"] = Situation(net(), F.cross_entropy, Listed(pairs), cross_entropy)
    found["11 named tuples of three"] = Situation(
        net(),
        lambda model, batch: (
            F.cross_entropy(model(batch.features), batch.label, reduction="sum"),
            len(batch.label),
        ),
        Listed(triples),
        cross_entropy,
    )
    found["11 lists of numbers"] = Situation(
        net(),
        lambda model, batch: (
            F.cross_entropy(model(batch["x"]), batch["y"], reduction="sum"),
            len(batch["y"]),
        ),
        Listed(lists),
        cross_entropy,
    )
    ragged = [(VECTORS[: 2 + i % 5], y) for i, y in enumerate(LABELS)]
    found["11 lengths"] = Situation(net(), F.cross_entropy, Listed(ragged), says=r"shape.*collate")
    found["11 stream"] = Situation(
        net(), F.cross_entropy, Stream(), says="IterableDataset|map-style|stream"
    )
    loader = torch.utils.data.DataLoader(PLAIN, batch_size=16)
    found["11 loader"] = Situation(net(), F.cross_entropy, loader, says="DataLoader|loader")
    ready = [(VECTORS[i : i + 16], LABELS[i : i + 16]) for i in range(0, 60, 16)]
    found["11 batches that are ready"] = Situation(
        net(), F.cross_entropy, ready, says="batches that are ready"
    )
    found["11 three in a tuple"] = Situation(
        net(),
        F.cross_entropy,
        TensorDataset(VECTORS, LABELS, torch.arange(60)),
        says=r"pairs of inputs and targets.*\(model, batch\)",
    )
    for kind in (torch.uint8, torch.int32, torch.int16):
        found[f"11 labels of {kind}"] = Situation(
            net(), F.cross_entropy, TensorDataset(VECTORS, LABELS.to(kind)), cross_entropy
        )
    found["11 labels (N, 1)"] = Situation(
        net(),
        F.cross_entropy,
        TensorDataset(VECTORS, LABELS[:, None]),
        says="class labels are of shape",
    )
    found |= criteria_of_real_targets()
    found["11 mean and variance"] = Situation(
        made(Two),
        gaussian,
        TensorDataset(VECTORS, REAL[:, None]),
        lambda q: F.gaussian_nll_loss(
            *(lambda out: (out[0], REAL[:, None].double(), out[1]))(q(VECTORS.double()))
        ),
    )
    found["11 of (net, batch)"] = Situation(
        net(), lambda net, batch: summed_cross_entropy(net, batch), PLAIN, cross_entropy
    )
    found["11 a module of (model, batch)"] = Situation(net(), AsModule(), PLAIN, cross_entropy)
    found["11 a mean"] = Situation(
        net(),
        lambda model, batch: (F.cross_entropy(model(batch[0]), batch[1]), len(batch[1])),
        PLAIN,
        says="returns the mean over a batch where the sum is asked",
    )
    found["11 reduction none"] = Situation(
        net(), nn.CrossEntropyLoss(reduction="none"), PLAIN, cross_entropy
    )
    found["12 complex"] = spectral(False, single)
    for dtype in (single, double):
        found[f"12 real {dtype}"] = spectral(True, dtype)
    found["24 float32 weights"] = Situation(
        net(), nn.CrossEntropyLoss(weight=torch.ones(3)), PLAIN, cross_entropy
    )
    found["24 no curvature"] = Situation(
        made(lambda: nn.Linear(4, 1)),
        nn.L1Loss(),
        TensorDataset(VECTORS, torch.full((60, 1), 9.0)),
        lambda q: F.l1_loss(q(VECTORS.double()), torch.full((60, 1), 9.0).double()),
    )
    tanh = torch.tanh(VECTORS)
    for enables in (False, True):
        found[f"24 forces {enables}"] = Situation(
            made(functools.partial(Forces, enables)),
            nn.MSELoss(),
            TensorDataset(VECTORS, tanh),
            lambda q: F.mse_loss(q(VECTORS.double()), torch.tanh(VECTORS.double())),
        )
    found["24 lazy"] = Situation(
        nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3)), F.cross_entropy, PLAIN, says="lazy"
    )
    found["24 parameters of any kind"] = Situation(
        made(Scaled), F.cross_entropy, PLAIN, cross_entropy
    )
    found["24 augmentation"] = Situation(net(), F.cross_entropy, Drawing(), says="sample")
    found["24 sampling"] = Situation(made(Sampling), F.cross_entropy, PLAIN, says="draws at random")
    normed = lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))  # noqa: E731
    found["24 batch norm in training"] = Situation(
        made(normed), training, PLAIN, says="batch norm is in training mode"
    )
    found["24 batch norm"] = Situation(made(normed), F.cross_entropy, PLAIN, cross_entropy)
    found["24 contrastive"] = Situation(
        net(), contrastive, PLAIN, says="depends on the other samples of its batch"
    )
    found["24 no trainable"] = Situation(
        net().requires_grad_(False), F.cross_entropy, PLAIN, says="no trainable parameter"
    )
    found["24 a pattern"] = Situation(
        net(), F.cross_entropy, PLAIN, says="no trainable parameter", options={"layers": ["*.w"]}
    )
    empty = torch.utils.data.Subset(PLAIN, [])
    found["24 empty"] = Situation(net(), F.cross_entropy, empty, says="empty|no sample")
    for kind in ("function", "module", "lambda", "sum", "model"):
        found[f"26 {kind}"] = zero_first(kind)
    for form in ("plain", "enabled", "second"):
        found[f"27 {form}"] = physics(form)
    return found
