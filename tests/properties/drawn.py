"""Networks, losses and data drawn at random, and their dense matrices by PyTorch's own means.

The dense matrices owe nothing to the program: PyTorch's mean over all samples at once, in float64,
and double backward. They are what `hessdist` has to give whatever the batches, order and ranks.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import TensorDataset

CLASSES = 3
PLACES = 3  # positions of a sequence, or pixels of an image
IGNORED = {"-100": -100, "255": 255, "0": 0}


@dataclass(frozen=True)
class Recipe:
    """What is drawn; everything else follows from it."""

    network: str
    places: bool  # whether the network gives outputs for each position
    criterion: str
    form: str  # how the criterion is given
    reduction: str
    weighted: bool  # class weights, weights of entries, or pos_weight
    ignored: str  # the label that does not count, or ""
    whole: bool  # whether all labels of some samples are ignored
    soft: bool  # class probabilities in place of labels
    variant: int  # of smoothing, beta, p and the like
    samples: int
    batch_size: int
    sorted: bool
    dtype: str
    operator: str
    seed: int


# -- networks --------------------------------------------------------------------------------

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "mish": nn.Mish,
    "sin": lambda: Sin(),
}


class Sin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class DefinedHardsigmoid(nn.Module):
    """Hardsigmoid by its definition; PyTorch's own has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return (x / 6 + 0.5).clamp(0, 1)


class Pooled(nn.Module):
    """The mean over positions, or outputs as (B, C, positions)."""

    def __init__(self, places: bool) -> None:
        super().__init__()
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if self.places else x.mean(1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 2, dropout=0.1, batch_first=True)
        self.norm, self.out = nn.LayerNorm(2), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x + self.attention(x, x, x, need_weights=False)[0]))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        kinds = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        self.body = kinds[kind](2, 2, batch_first=True)
        self.out = nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)[0])


class Convolution(nn.Module):
    """A convolution, batch norm with statistics of its own, and a convolution or a linear layer."""

    def __init__(self, places: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2, 1)
        )
        self.out: nn.Module = (
            nn.Conv2d(2, CLASSES, 1)
            if places
            else nn.Sequential(nn.Flatten(), nn.Linear(8, CLASSES))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def build_network(recipe: Recipe, generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """A network that gives (B, 3) or (B, 3, ...), and inputs for it, in float64."""
    name, n = recipe.network, recipe.samples

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    body: nn.Module
    if name == "linear":
        inputs = normal(PLACES, 2) if recipe.places else normal(3)
        body = nn.Linear(inputs.shape[-1], CLASSES)
    elif name == "convolution":
        return Convolution(recipe.places), normal(1, 4, 4)
    elif name == "attention":
        body, inputs = Attention(), normal(PLACES, 2)
    elif name == "embedding":
        inputs = torch.randint(0, 4, (n, PLACES), generator=generator)
        body = nn.Sequential(nn.Embedding(4, 2, padding_idx=0), nn.Tanh(), nn.Linear(2, CLASSES))
    elif name in {"rnn", "gru", "lstm"}:
        body, inputs = Recurrent(name), normal(PLACES, 2)
    else:
        inputs = normal(PLACES, 2) if recipe.places else normal(3)
        width = inputs.shape[-1]
        body = nn.Sequential(nn.Linear(width, 3), ACTIVATIONS[name](), nn.Linear(3, CLASSES))
    if inputs.ndim == 3 or name == "embedding":
        return nn.Sequential(body, Pooled(recipe.places)), inputs
    return body, inputs


# -- losses ----------------------------------------------------------------------------------

OF_CLASSES = ("cross_entropy", "nll")
OF_ENTRIES = (
    "mse", "l1", "smooth_l1", "huber", "bce", "bce_logits", "kl", "poisson", "soft_margin",
)  # fmt: skip
OF_SAMPLES = ("multi_margin", "multilabel_margin", "multilabel_soft_margin")
OWN = ("gaussian_nll", "focal", "quartic")

MODULES: dict[str, Any] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "nll": nn.NLLLoss,
    "mse": nn.MSELoss,
    "l1": nn.L1Loss,
    "smooth_l1": nn.SmoothL1Loss,
    "huber": nn.HuberLoss,
    "bce": nn.BCELoss,
    "bce_logits": nn.BCEWithLogitsLoss,
    "kl": nn.KLDivLoss,
    "poisson": nn.PoissonNLLLoss,
    "soft_margin": nn.SoftMarginLoss,
    "multi_margin": nn.MultiMarginLoss,
    "multilabel_margin": nn.MultiLabelMarginLoss,
    "multilabel_soft_margin": nn.MultiLabelSoftMarginLoss,
}
FUNCTIONS: dict[str, Any] = {
    "cross_entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "bce": F.binary_cross_entropy,
    "bce_logits": F.binary_cross_entropy_with_logits,
    "kl": F.kl_div,
    "poisson": F.poisson_nll_loss,
    "soft_margin": F.soft_margin_loss,
    "multi_margin": F.multi_margin_loss,
    "multilabel_margin": F.multilabel_margin_loss,
    "multilabel_soft_margin": F.multilabel_soft_margin_loss,
}


def heads(criterion: str) -> nn.Module:
    """What has to follow the network for a criterion to take its outputs."""
    if criterion in {"nll", "kl"}:
        return nn.LogSoftmax(1)
    if criterion == "bce":
        return nn.Sigmoid()
    return nn.Identity()


def options_of(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of the criterion, tensors in float64."""
    name, options = recipe.criterion, dict[str, Any]()
    if recipe.form == "functional":
        return options
    weight = torch.tensor([0.2, 3.0, 1.1], dtype=torch.float64)
    if name in OF_CLASSES:
        if recipe.weighted:
            options["weight"] = weight
        if recipe.ignored and not recipe.soft:
            options["ignore_index"] = IGNORED[recipe.ignored]
        if name == "cross_entropy" and recipe.variant % 3:
            options["label_smoothing"] = 0.15 * (recipe.variant % 3)
    elif recipe.weighted:
        # (C,) of vectors of outputs, and (C, 1, ...) where there are places after them
        spread = weight if not recipe.places else weight[:, None]
        if recipe.places and recipe.network == "convolution":
            spread = spread[..., None]
        if name == "bce":
            options["weight"] = spread
        elif name == "bce_logits":
            options[("weight", "pos_weight")[recipe.variant % 2]] = spread
        elif name in {"multi_margin", "multilabel_soft_margin"}:
            options["weight"] = weight
    if name == "smooth_l1":
        options["beta"] = (1.0, 0.4)[recipe.variant % 2]
    elif name == "huber":
        options["delta"] = (1.0, 0.4)[recipe.variant % 2]
    elif name == "poisson":
        options["log_input"], options["full"] = True, bool(recipe.variant % 2)
    elif name == "kl":
        options["log_target"] = bool(recipe.variant % 2)
    elif name == "multi_margin":
        options["p"], options["margin"] = 1 + recipe.variant % 2, (1.0, 0.5)[recipe.variant % 2]
    return options


def build_targets(recipe: Recipe, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Targets that fit outputs of a shape (N, 3, ...)."""
    name = recipe.criterion
    places = (shape[0], *shape[2:])
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name in OF_CLASSES and not recipe.soft:
        labels = torch.randint(0, CLASSES, places, generator=generator)
        if recipe.sorted:
            labels = labels.reshape(shape[0], -1).sort(0)[0].reshape(places)
        if recipe.ignored:
            void = IGNORED[recipe.ignored]
            drop = torch.rand(places, generator=generator) < 0.35
            if recipe.whole:
                drop[1:2] = drop[-1:] = True
            drop[0].view(-1)[0] = False  # one label counts
            labels[drop] = void
            first = labels[0].view(-1)
            first[0] = 1 if first[0] == void else first[0]
        return labels
    if name in {"multi_margin", "focal"}:
        labels = torch.randint(0, CLASSES, (shape[0],), generator=generator)
        return labels.sort()[0] if recipe.sorted else labels
    if name == "multilabel_margin":
        orders = torch.rand(shape, generator=generator).argsort(1)
        counts = torch.randint(0, CLASSES + 1, (shape[0], 1), generator=generator)
        return torch.where(torch.arange(CLASSES)[None] < counts, orders, -1)
    if name in {"bce", "bce_logits", "multilabel_soft_margin"}:
        hard = (normal > 0.3).double()
        soft = torch.rand(shape, generator=generator, dtype=torch.float64)
        return soft if recipe.soft else hard
    if name == "soft_margin":
        return (normal > 0).double() * 2 - 1
    if name == "poisson":
        return torch.randint(0, 5, shape, generator=generator).double()
    if name == "kl" or (name == "cross_entropy" and recipe.soft):
        probabilities = normal.softmax(1)
        return probabilities.log() if options_of(recipe).get("log_target") else probabilities
    if name == "gaussian_nll":
        return normal[:, :1]
    return normal


def own_criterion(name: str) -> Callable[..., Tensor]:
    """Criteria that are none of PyTorch's own modules of outputs and targets."""

    def gaussian_nll(z: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return F.gaussian_nll_loss(z[:, :1], y, F.softplus(z[:, 1:2]) + 0.1, reduction=reduction)

    def focal(z: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        each = F.cross_entropy(z, y, reduction="none")
        return reduced((1 - torch.exp(-each)) ** 2 * each, reduction)

    def quartic(z: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return reduced(((z - y) ** 4).flatten(1).mean(1), reduction)

    return {"gaussian_nll": gaussian_nll, "focal": focal, "quartic": quartic}[name]


def reduced(each: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return each
    return each.sum() if reduction == "sum" else each.mean()


def multi_margin(
    z: Tensor,
    y: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """By its definition, sample by sample; PyTorch's own has no second derivative."""
    each = []
    for row, label in zip(z, y.tolist(), strict=True):
        factor = 1.0 if weight is None else weight[label]
        terms = [
            factor * (margin - row[label] + row[j]).clamp(min=0) ** p
            for j in range(len(row))
            if j != label
        ]
        each.append(torch.stack(terms).sum() / len(row))
    return reduced(torch.stack(each), reduction)


def multilabel_margin(z: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
    """Likewise."""
    each = []
    for row, labels in zip(z, y.tolist(), strict=True):
        wanted = labels[: labels.index(-1)] if -1 in labels else labels
        others = [i for i in range(len(row)) if i not in wanted]
        terms = [(1 - (row[j] - row[i])).clamp(min=0) for j in wanted for i in others]
        each.append(torch.stack([*terms, 0 * row.sum()]).sum() / len(row))
    return reduced(torch.stack(each), reduction)


DEFINITIONS = {"multi_margin": multi_margin, "multilabel_margin": multilabel_margin}


class TwoSteps:
    """A loss with outputs of its own, and (s, w) of them."""

    def __init__(self, of_outputs: Callable[[Tensor, Tensor], tuple[Tensor, float]]) -> None:
        self.function = of_outputs

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        return {"z": model(batch[0])}

    def of_outputs(self, z: Any, batch: Any) -> tuple[Tensor, float]:
        return self.function(z["z"], batch[1])


# -- a whole problem -------------------------------------------------------------------------


@dataclass
class Drawn:
    """A model, a loss and samples, and what is right of them."""

    model: nn.Module
    loss: Any
    dataset: TensorDataset
    mean: Callable[[Tensor, Tensor], Tensor]  # PyTorch's over all samples at once, in float64
    weights: Tensor  # (N,) what it divides by, as a sum over samples
    inputs: Tensor
    targets: Tensor

    def twin(self) -> nn.Module:
        """The model in float64, of operations that PyTorch differentiates twice."""
        twin = copy.deepcopy(self.model).double().eval()
        for module in list(twin.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Hardsigmoid):
                    setattr(module, name, DefinedHardsigmoid())
        return twin


def sum_and_weight(
    recipe: Recipe, mean: Callable[..., Tensor], options: dict[str, Any], z: Tensor, y: Tensor
) -> tuple[Tensor, float]:
    """(s, w) of a batch as a user writes them for a loss of (model, batch)."""
    moved = {k: v.to(z) if isinstance(v, Tensor) else v for k, v in options.items()}
    weight = float(weights_of(recipe, moved, y).sum())
    if recipe.reduction == "sum" or recipe.criterion in OF_CLASSES:
        return mean(z, y, **moved, reduction="sum"), weight
    return mean(z, y, **moved, reduction="mean") * len(y), weight


def weights_of(recipe: Recipe, options: dict[str, Any], targets: Tensor) -> Tensor:
    """What the samples add to the divisor of PyTorch's mean."""
    ones = torch.ones(len(targets), dtype=torch.float64)
    if recipe.criterion not in OF_CLASSES or recipe.reduction == "sum":
        return ones
    if recipe.soft:
        return ones * targets[0, 0].numel()
    counted = targets != options.get("ignore_index", -100)
    weight = options.get("weight", torch.ones(CLASSES)).double()
    each = weight[torch.where(counted, targets, 0)] * counted
    return each.reshape(len(targets), -1).sum(1)


def build(recipe: Recipe) -> Drawn:
    """Everything that a recipe says, from its seed."""
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        network, inputs = build_network(recipe, generator)
    model = nn.Sequential(network, heads(recipe.criterion)).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 2.0, generator=generator)
        for parameter in model.parameters():  # biases of zero put ReLU on its kink
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
        shape = model.eval()(inputs).shape
    targets = build_targets(recipe, shape, generator)
    if not recipe.sorted:
        order = torch.randperm(recipe.samples, generator=generator)
        inputs, targets = inputs[order], targets[order]
    dtype = getattr(torch, recipe.dtype)
    model = model.to(dtype)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    # What the program is given is what it shall be right about: rounded once.
    targets = targets.to(dtype) if targets.is_floating_point() else targets
    # Weights are given in single precision, whatever the model's dtype.
    options = {
        k: v.float().double() if isinstance(v, Tensor) else v for k, v in options_of(recipe).items()
    }
    function = FUNCTIONS.get(recipe.criterion) or own_criterion(recipe.criterion)
    right = DEFINITIONS.get(recipe.criterion, function)

    def mean(z: Tensor, y: Tensor) -> Tensor:
        moved = y.double() if y.is_floating_point() else y
        if recipe.reduction == "sum":
            return right(z, moved, **options, reduction="sum") / len(y)
        stated = "batchmean" if recipe.reduction == "batchmean" else "mean"
        return right(z, moved, **options, reduction=stated)

    return Drawn(
        model,
        given_form(recipe, function, options),
        TensorDataset(inputs, targets),
        mean,
        weights_of(recipe, options, targets),
        inputs.double() if inputs.is_floating_point() else inputs,
        targets,
    )


def given_form(recipe: Recipe, function: Any, options: dict[str, Any]) -> Any:
    """The loss as a user gives it."""
    own = getattr(torch, recipe.dtype) if recipe.form == "own" else torch.float32
    given = {k: v.to(own) if isinstance(v, Tensor) else v for k, v in options.items()}
    reduction = recipe.reduction
    if recipe.form == "module":
        return MODULES[recipe.criterion](**given, reduction=reduction)
    if recipe.form == "functional":
        return function
    if recipe.form == "partial":
        inner = functools.partial(function, **given)
        return functools.partial(inner, reduction=reduction)
    if recipe.form == "own":
        return lambda z, y: function(z, y, **given, reduction=reduction)
    pair = functools.partial(sum_and_weight, recipe, function, options)
    if recipe.form == "two_steps":
        return TwoSteps(pair)
    return lambda model, batch: pair(model(batch[0]), batch[1])


# -- dense matrices --------------------------------------------------------------------------


def rows(outputs: Tensor, inputs: list[Tensor]) -> Tensor:
    """The Jacobian of flat outputs by a list of tensors, row by row."""
    sizes = [x.numel() for x in inputs]
    found = []
    for entry in outputs.reshape(-1):
        if not entry.requires_grad:
            found.append(torch.zeros(sum(sizes), dtype=torch.float64))
            continue
        pieces = torch.autograd.grad(entry, inputs, retain_graph=True, materialize_grads=True)
        found.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return torch.stack(found).detach()


@dataclass(frozen=True)
class Dense:
    """What is right."""

    loss: float
    gradient_norm: float
    matrix: Tensor


def dense(drawn: Drawn, operator: str) -> Dense:
    """Loss, gradient and matrix, with attention by PyTorch's differentiable backend."""
    with sdpa_kernel(SDPBackend.MATH):
        return by_double_backward(drawn, operator)


def by_double_backward(drawn: Drawn, operator: str) -> Dense:
    """Loss, gradient and matrix of the mean over all samples at once."""
    model = drawn.twin()
    parameters = list(model.parameters())

    def gradient(value: Tensor) -> Tensor:
        pieces = torch.autograd.grad(
            value, parameters, create_graph=True, materialize_grads=True, allow_unused=True
        )
        return torch.cat([piece.reshape(-1) for piece in pieces])

    loss = drawn.mean(model(drawn.inputs), drawn.targets)
    slope = gradient(loss)
    value, norm = float(loss.detach()), float(slope.detach().norm())
    if operator == "hessian":
        return Dense(value, norm, rows(slope, parameters))
    if operator == "empirical_fisher":
        total = torch.zeros(len(slope), len(slope), dtype=torch.float64)
        for i, weight in enumerate(drawn.weights):
            if weight > 0:
                one = slice(i, i + 1)
                each = drawn.mean(model(drawn.inputs[one]), drawn.targets[one])
                slopes = gradient(each).detach()
                total += weight * torch.outer(slopes, slopes)
        return Dense(value, norm, total / drawn.weights.sum())
    z = model(drawn.inputs)
    point = z.detach().clone().requires_grad_()
    inner = drawn.mean(point, drawn.targets)
    (by_outputs,) = torch.autograd.grad(inner, point, create_graph=True)
    jacobian = rows(z, parameters)
    gauss_newton = jacobian.T @ rows(by_outputs, [point]) @ jacobian
    if operator == "gauss_newton":
        return Dense(value, norm, gauss_newton)
    return Dense(value, norm, rows(slope, parameters) - gauss_newton)


# -- the draw --------------------------------------------------------------------------------

NETWORKS = ("linear", "convolution", "attention", "embedding", "rnn", "gru", "lstm", *ACTIVATIONS)
OPERATORS = ("hessian", "gauss_newton", "empirical_fisher", "residual")


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Recipes that make sense."""
    criterion = draw(st.sampled_from((*OF_CLASSES, *OF_CLASSES, *OF_ENTRIES, *OF_SAMPLES, *OWN)))
    of_classes, entries = criterion in OF_CLASSES, criterion in OF_ENTRIES
    places = draw(st.booleans()) if of_classes or entries else False
    soft = draw(st.booleans()) if criterion in {"cross_entropy", "bce", "bce_logits"} else False
    if criterion in OWN:
        form = draw(st.sampled_from(("own", "model_batch", "two_steps")))
    elif of_classes:
        form = draw(
            st.sampled_from(("module", "functional", "partial", "model_batch", "two_steps"))
        )
    else:
        forms = ("module", "functional", "partial", "own", "model_batch", "two_steps")
        form = draw(st.sampled_from(forms))
    reductions = ["mean", "sum"]
    if criterion == "kl" and form in {"module", "partial", "own"}:
        reductions.append("batchmean")
    if form in {"module", "partial"} or (form == "own" and not (places or entries)):
        reductions.append("none")
    plain = form == "functional"
    return Recipe(
        network=draw(st.sampled_from(NETWORKS)),
        places=places,
        criterion=criterion,
        form=form,
        reduction="mean" if plain else draw(st.sampled_from(reductions)),
        weighted=not plain and draw(st.booleans()),
        ignored=draw(st.sampled_from(("", "-100") if plain else ("", *IGNORED)))
        if of_classes
        else "",
        whole=draw(st.booleans()),
        soft=soft,
        variant=draw(st.integers(0, 5)),
        samples=draw(st.integers(1, 9)),
        batch_size=draw(st.sampled_from((1, 2, 3, 5, 7, 64))),
        sorted=draw(st.booleans()),
        dtype=draw(st.sampled_from(("float64", "float64", "float32"))),
        operator="hessian"
        if form == "model_batch"
        else draw(st.sampled_from(("hessian", *OPERATORS))),
        seed=draw(st.integers(0, 2**20)),
    )
