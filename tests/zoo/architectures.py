"""The architectures that people train, made small: networks, samples and losses by name.

Job files name `zoo.architectures:network`, `:samples`, `:loss` and `:collate_graphs`; tests take
`ARCHITECTURES`. What an architecture's loss has to be is written here as its users write it for
all samples at once, in PyTorch alone: `mean`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

Mean = Callable[[nn.Module, Any], Tensor]
"""(model, all samples as one batch) to the mean loss."""


class Rows:
    """A data set of dictionaries, from a dictionary of tensors with a row for each sample."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


@dataclass(frozen=True)
class Architecture:
    """A network, its samples and its loss.

    Args:
        network: Makes the network.
        samples: Makes the data set.
        loss: The loss, in one of hessdist's forms.
        mean: PyTorch's mean over all samples at once; None: of the criterion.
        collate: Makes a batch of a list of samples.
        learning_rate: Of a few steps of SGD.
    """

    network: Callable[[], nn.Module]
    samples: Callable[[], Any]
    loss: Any = F.cross_entropy
    mean: Mean | None = None
    collate: Callable[[list[Any]], Any] | None = None
    learning_rate: float = 0.05

    @property
    def takes_outputs(self) -> bool:
        """Whether the loss is a function of outputs, so that a Gauss-Newton matrix exists."""
        return self.mean is None or hasattr(self.loss, "of_outputs")


ARCHITECTURES: dict[str, Architecture] = {}


def network(name: str, seed: int = 0) -> nn.Module:
    """Build the network of an architecture, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return settled(ARCHITECTURES[name].network())


def samples(name: str) -> Any:
    """Make the samples of an architecture, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ARCHITECTURES[name].samples()


def loss(name: str) -> Any:
    """Find the loss of an architecture."""
    return ARCHITECTURES[name].loss


def settled(model: nn.Module) -> nn.Module:
    """Give normalisations the statistics, scales and shifts that training leaves."""
    for module in model.modules():
        if "Norm" not in type(module).__name__:
            continue
        with torch.no_grad():
            for tensor in module.parameters(recurse=False):
                tensor.add_(0.1 * torch.randn_like(tensor))
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(count: int = 14, size: int = 6, classes: int = 3, channels: int = 1) -> TensorDataset:
    labels = torch.arange(count) * classes // count
    return TensorDataset(torch.rand(count, channels, size, size), labels)


# -- convolutional networks ------------------------------------------------------------------


class Basic(nn.Module):
    """A residual block of ResNet."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += shortcut
        return self.relu(y)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), Basic(3, 3, 1), Basic(3, 4, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.fc2(scale))


class InvertedResidual(nn.Module):
    """The block of MobileNetV3: expand, depthwise, squeeze and excite, project."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, expanded, 1, bias=False), nn.BatchNorm2d(expanded), nn.Hardswish(),
            nn.Conv2d(expanded, expanded, 3, 1, 1, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded), nn.Hardswish(inplace=True), SqueezeExcite(expanded),
            nn.Conv2d(expanded, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, 2, 1, bias=False), nn.BatchNorm2d(3), nn.Hardswish(),
        InvertedResidual(3, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(3, 3),
    )  # fmt: skip


def norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Dropout2d(0.3),
        nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, affine=True), nn.ELU(), nn.Dropout(0.3),
        nn.Conv2d(4, 2, 2), nn.InstanceNorm2d(2, affine=True, track_running_stats=True), nn.GELU(),
        nn.Flatten(), nn.LayerNorm(18), nn.AlphaDropout(0.1), nn.Linear(18, 3), nn.Softplus(),
    )  # fmt: skip


class ConvNeXtBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, 8), nn.Linear(8, channels)
        self.scale = nn.Parameter(torch.full((channels,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.fc2(F.gelu(self.fc1(y)))
        keep = 1.0
        if self.training:  # stochastic depth
            keep = (torch.rand(len(x), 1, 1, 1, device=x.device) < 0.9) / 0.9
        return x + y.permute(0, 3, 1, 2) * keep


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 2, 2), ConvNeXtBlock(4), ConvNeXtBlock(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3),
    )  # fmt: skip


class UNet(nn.Module):
    """Two levels, a skip, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(0.1))
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        up = self.up(self.inner(F.max_pool2d(skip, 2)))
        up = F.interpolate(up, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.last(torch.cat([skip, up], 1))


def pixels() -> TensorDataset:
    """Labels for each pixel, of which some do not count; the last image has but two that do."""
    inputs, labels = torch.rand(12, 1, 4, 4), torch.randint(0, 3, (12, 4, 4))
    labels[torch.rand(12, 4, 4) < 0.3] = 255
    labels[-1] = 255
    labels[-1, 0, :2] = 1
    return TensorDataset(inputs, labels)


# -- vision transformer ----------------------------------------------------------------------


class Encoder(nn.Module):
    """A block of a transformer, before which it normalises."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 3, 3)
        self.cls = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, width))
        self.blocks = nn.Sequential(
            Encoder(width),
            nn.TransformerEncoderLayer(width, 2, 8, dropout=0.1, batch_first=True),
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.blocks(tokens)[:, 0])


# -- recurrent networks ----------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(2, 4, batch_first=True, **options)
        self.head = nn.Linear(8 if options.get("bidirectional") else 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Packed(nn.Module):
    """An LSTM over sequences of different lengths, packed in order of length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3, padding_idx=0)
        self.rnn = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids > 0).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(ids), lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.rnn(packed)[1][0][0])


def sequences() -> TensorDataset:
    return TensorDataset(torch.randn(13, 5, 2), torch.arange(13) % 3)


def padded_words(count: int = 13, length: int = 5, words: int = 7) -> Tensor:
    ids = torch.randint(1, words, (count, length))
    lengths = torch.randint(2, length + 1, (count,))
    ids[torch.arange(length) >= lengths[:, None]] = 0
    return ids


# -- language models -------------------------------------------------------------------------


class CausalAttention(nn.Module):
    """Fused attention with heads that share keys and values, and rotary positions."""

    def __init__(self, width: int, heads: int, groups: int, *, rotary: bool, length: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q = nn.Linear(width, width, bias=not rotary)
        self.kv = nn.Linear(width, 2 * groups * self.size, bias=not rotary)
        self.out = nn.Linear(width, width, bias=not rotary)
        angles = torch.outer(torch.arange(length).float(), 0.3 ** torch.arange(self.size // 2))
        self.register_buffer("cos", angles.cos() if rotary else None, persistent=False)
        self.register_buffer("sin", angles.sin() if rotary else None, persistent=False)

    def _rotated(self, x: Tensor) -> Tensor:
        if self.cos is None:
            return x
        one, other = x.chunk(2, -1)
        return torch.cat([one * self.cos - other * self.sin, one * self.sin + other * self.cos], -1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        count, length, _ = x.shape
        q = self.q(x).view(count, length, self.heads, self.size).transpose(1, 2)
        kv = self.kv(x).view(count, length, 2, self.groups, self.size).permute(2, 0, 3, 1, 4)
        k, v = kv.repeat_interleave(self.heads // self.groups, 2)
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        y = F.scaled_dot_product_attention(
            self._rotated(q), self._rotated(k), v, attn_mask=causal & mask[:, None, None, :]
        )
        return self.out(y.transpose(1, 2).reshape(count, length, -1))


class GPTBlock(nn.Module):
    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CausalAttention(width, 2, 2, rotary=False, length=length)
        self.mlp = nn.Sequential(
            nn.Linear(width, 8), nn.GELU("tanh"), nn.Linear(8, width), nn.Dropout(0.1)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A head that is tied to the embedding, learnt positions."""

    def __init__(self, words: int = 7, width: int = 4, length: int = 5) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(length, width)
        self.h = nn.ModuleList([GPTBlock(width, length)])
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.wte(input_ids) + self.wpe(places)
        for block in self.h:
            x = block(x, attention_mask.bool())
        return self.lm_head(self.ln_f(x))


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """A mixture of experts: each token goes to the two that a router chooses."""

    def __init__(self, width: int, hidden: int, count: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(SwiGLU(width, hidden) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.router(flat).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        total = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == number)
            total.index_add_(0, token, expert(flat[token]) * weights[token, rank, None])
        return total.view_as(x)


class Llama(nn.Module):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU or a mixture of experts."""

    def __init__(self, *, mixture: bool = False, words: int = 7, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.norm1, self.norm2, self.norm3 = (RMSNorm(width) for _ in range(3))
        self.attention = CausalAttention(width, 4, 2, rotary=True, length=5)
        self.mlp = Experts(width, 3) if mixture else SwiGLU(width, 6)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = x + self.attention(self.norm1(x), attention_mask.bool())
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm3(x))


def sentences() -> Rows:
    """Sentences of different lengths; padding is on the right, and its labels do not count."""
    ids = padded_words()
    labels = torch.where(ids > 0, ids, -100)
    labels[:4, 1] = -100  # as prompts are
    return Rows({"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels})


def logits(model: nn.Module, batch: Any) -> Tensor:
    """The logits of a model of our own or of transformers."""
    found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return found if isinstance(found, Tensor) else found.logits


class NextToken:
    """Cross-entropy of the next token, over labels that count, as an object of two steps."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        z = logits(model, batch)[:, :-1]
        return z[batch["labels"][:, 1:] != -100]

    def of_outputs(self, z: Tensor, batch: Any) -> tuple[Tensor, float]:
        labels = batch["labels"][:, 1:]
        labels = labels[labels != -100]
        return F.cross_entropy(z, labels, reduction="sum"), len(labels)


def next_token_mean(model: nn.Module, batch: Any) -> Tensor:
    z = logits(model, batch)
    return F.cross_entropy(z[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


class Bert(nn.Module):
    """Embeddings of words, positions and segments, an encoder, a pooler."""

    def __init__(self, words: int = 7, width: int = 4) -> None:
        super().__init__()
        self.words, self.positions = (
            nn.Embedding(words, width, padding_idx=0),
            nn.Embedding(5, width),
        )
        self.norm = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 2, 8, activation="gelu", batch_first=True), 1
        )
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places))
        x = self.encoder(x, src_key_padding_mask=ids == 0)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def sentence_classes() -> TensorDataset:
    return TensorDataset(padded_words(), torch.arange(13) % 3)


# -- adapters --------------------------------------------------------------------------------


class LoRA(nn.Module):
    """A frozen linear layer and a trained correction of low rank, which starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.lora_B(self.lora_A(x))


def lora() -> nn.Module:
    return nn.Sequential(LoRA(nn.Linear(6, 8)), nn.Tanh(), LoRA(nn.Linear(8, 3)))


def vectors(count: int = 17, size: int = 6, classes: int = 3) -> TensorDataset:
    return TensorDataset(torch.randn(count, size), torch.arange(count) % classes)


# -- graphs ----------------------------------------------------------------------------------


class GraphNet(nn.Module):
    """Two graph convolutions by index_add, the mean over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def _convolved(self, x: Tensor, edges: Tensor) -> Tensor:
        begin, end = edges
        sizes = x.new_ones(len(x)).index_add(0, end, x.new_ones(len(end)))
        return x.index_add(0, end, x[begin]) / sizes[:, None]

    def forward(self, graphs: dict[str, Tensor]) -> Tensor:
        x, edges, graph = graphs["x"], graphs["edges"], graphs["graph"]
        x = F.relu(self.one(self._convolved(x, edges)))
        x = torch.tanh(self.two(self._convolved(x, edges)))
        count = int(graphs["sizes"].shape[0])
        total = x.new_zeros(count, x.shape[1]).index_add(0, graph, x)
        return self.head(total / graphs["sizes"][:, None].to(x))


class Graphs:
    """Twelve rings with chords, of 3 to 6 nodes."""

    def __init__(self) -> None:
        self.items = []
        for number in range(12):
            nodes = 3 + number % 4
            ring = torch.arange(nodes)
            edges = torch.stack([ring, (ring + 1) % nodes])
            edges = torch.cat([edges, edges.flip(0), torch.tensor([[0], [2]])], 1)
            self.items.append((torch.randn(nodes, 3), edges, torch.tensor(number % 2)))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.items[index]


def collate_graphs(items: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """Several graphs as one that is not connected."""
    sizes = torch.tensor([len(x) for x, _, _ in items])
    offsets = sizes.cumsum(0) - sizes
    edges = torch.cat([e + o for (_, e, _), o in zip(items, offsets, strict=True)], 1)
    graphs = {
        "sizes": sizes,  # first, since its length is the number of graphs
        "x": torch.cat([x for x, _, _ in items]),
        "edges": edges,
        "graph": torch.arange(len(items)).repeat_interleave(sizes),
    }
    return graphs, torch.stack([y for _, _, y in items])


# -- losses that are no criterion of one output ----------------------------------------------


class Autoencoder(nn.Module):
    """The decoder's weights are those of the encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.4 * torch.randn(4, 8))
        self.inner, self.outer = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.sigmoid(F.linear(x, self.weight, self.inner))
        return F.linear(code, self.weight.T, self.outer)


def reconstruction() -> TensorDataset:
    x = torch.rand(15, 8)
    return TensorDataset(x, x)


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.net(x), dim=-1)


def triplets() -> Rows:
    return Rows({name: torch.randn(13, 6) for name in ("anchor", "positive", "negative")})


def triplet_loss(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    three = [model(batch[name]) for name in ("anchor", "positive", "negative")]
    return F.triplet_margin_loss(*three, margin=2.5, reduction="sum"), len(three[0])


def triplet_mean(model: nn.Module, batch: Any) -> Tensor:
    three = (model(batch[name]) for name in ("anchor", "positive", "negative"))
    return nn.TripletMarginLoss(margin=2.5)(*three)


class PairLoss:
    """Distances of pairs, which are one sample each (Hadsell and others 2006)."""

    def outputs(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        (one, other), _ = batch
        return model(one), model(other)

    def of_outputs(self, z: Any, batch: Any) -> tuple[Tensor, int]:
        same = batch[1]
        squared = (z[0] - z[1]).square().sum(-1)
        far = (1.5 - (squared + 1e-6).sqrt()).clamp(min=0).square()
        return (same * squared + (1 - same) * far).sum() / 2, len(same)


def pair_mean(model: nn.Module, batch: Any) -> Tensor:
    (one, other), same = batch
    square = (model(one) - model(other)).pow(2).sum(1)
    hinge = F.relu(1.5 - torch.sqrt(square + 1e-6)) ** 2
    return torch.where(same > 0, square, hinge).mean() / 2


class Pairs:
    def __init__(self) -> None:
        self.one, self.other = torch.randn(14, 6), torch.randn(14, 6)

    def __len__(self) -> int:
        return 14

    def __getitem__(self, index: int) -> Any:
        return (self.one[index], self.other[index]), torch.tensor(float(index % 2))


def contrastive(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """NT-Xent over the batch: every sample is compared with every other one."""
    x, _ = batch
    z = model(x)
    similar = z @ model(x + 0.1).T / 0.5
    labels = torch.arange(len(x), device=x.device)
    return F.cross_entropy(similar, labels, reduction="sum"), len(x)


class Heteroscedastic(nn.Module):
    """Mean and variance, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.mean, self.variance = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.mean(x), F.softplus(self.variance(x)) + 0.05


class Gaussian:
    """The negative log-likelihood, as an object of two steps."""

    def outputs(self, model: nn.Module, batch: Any) -> Any:
        return model(batch[0])

    def of_outputs(self, z: Any, batch: Any) -> tuple[Tensor, int]:
        mean, variance = z
        return F.gaussian_nll_loss(mean, batch[1], variance, reduction="sum") / 2, len(mean)


def gaussian_criterion(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """The same as a criterion of one's own, which averages."""
    mean, variance = outputs
    return (variance.clamp(min=1e-6).log() + (mean - targets) ** 2 / variance).mean() / 2


def gaussian_mean(model: nn.Module, batch: Any) -> Tensor:
    mean, variance = model(batch[0])
    return nn.GaussianNLLLoss()(mean, batch[1], variance)


def regression() -> TensorDataset:
    x = torch.randn(15, 4)
    return TensorDataset(x, torch.stack([x.sum(1).sin(), x[:, 0] * x[:, 1]], 1))


def heat_sum(model: nn.Module, batch: Any) -> Tensor:
    """Squared residuals of u_t = u_xx + f at points, by derivatives by the inputs."""
    points, source = batch
    points = points.detach().requires_grad_()
    u = model(points)
    slopes = torch.autograd.grad(u.sum(), points, create_graph=True)[0]
    second = torch.autograd.grad(slopes[:, 0].sum(), points, create_graph=True)[0][:, 0]
    return (slopes[:, 1] - second - source).square().sum()


def physics_informed(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    return heat_sum(model, batch), len(batch[0])


def points() -> TensorDataset:
    x = torch.rand(14, 2)
    return TensorDataset(x, torch.sin(math.pi * x[:, 0]) * x[:, 1])


def multi_label() -> TensorDataset:
    return TensorDataset(torch.randn(16, 5), (torch.rand(16, 4) < 0.3).float())


# -- reparametrised weights, tables ----------------------------------------------------------


def weight_norm() -> nn.Module:
    return nn.Sequential(
        nn.utils.weight_norm(nn.Linear(6, 5)), nn.Tanh(),
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), nn.Tanh(),
        nn.utils.spectral_norm(nn.Linear(5, 4)), nn.Tanh(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.SELU(),
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 3),
    ).eval()  # fmt: skip


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 4, mode="mean", padding_idx=0)
        self.peak = nn.EmbeddingBag(7, 3, mode="max")
        self.rows = nn.Embedding(7, 3, padding_idx=0, sparse=True)
        self.head = nn.Linear(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found = [self.bag(ids), self.peak(ids), self.rows(ids).sum(1)]
        return self.head(torch.tanh(torch.cat(found, 1)))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.PReLU(6),
        nn.Linear(6, 5), nn.LayerNorm(5), nn.Mish(), nn.Linear(5, 3),
    )  # fmt: skip


class PointNet(nn.Module):
    """A set of points: a network for each of them, the maximum over all."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Conv1d(2, 6, 1), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.each(x.transpose(1, 2)).max(-1).values)


CLASS_WEIGHTS = torch.tensor([0.3, 1.0, 2.5])

ARCHITECTURES |= {
    "resnet": Architecture(resnet, images, nn.CrossEntropyLoss(label_smoothing=0.1)),
    "mobilenet": Architecture(mobilenet, images),
    "norms": Architecture(norms, images, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)),
    "convnext": Architecture(convnext, images),
    "vit": Architecture(ViT, images),
    "unet": Architecture(UNet, pixels, nn.CrossEntropyLoss(CLASS_WEIGHTS, ignore_index=255)),
    "lstm": Architecture(
        functools.partial(Recurrent, nn.LSTM, num_layers=2, dropout=0.2), sequences
    ),
    "gru": Architecture(functools.partial(Recurrent, nn.GRU, bidirectional=True), sequences),
    "packed": Architecture(Packed, lambda: TensorDataset(padded_words(), torch.arange(13) % 2)),
    "bert": Architecture(Bert, sentence_classes),
    "gpt": Architecture(GPT, sentences, NextToken(), next_token_mean),
    "llama": Architecture(Llama, sentences, NextToken(), next_token_mean),
    "mixture": Architecture(
        functools.partial(Llama, mixture=True), sentences, NextToken(), next_token_mean
    ),
    "lora": Architecture(lora, vectors),
    "graph": Architecture(GraphNet, Graphs, collate=collate_graphs),
    "autoencoder": Architecture(Autoencoder, reconstruction, nn.MSELoss()),
    "triplet": Architecture(Embedder, triplets, triplet_loss, triplet_mean),
    "siamese": Architecture(Embedder, Pairs, PairLoss(), pair_mean),
    "contrastive": Architecture(Embedder, vectors, contrastive, lambda m, b: contrastive(m, b)[0]),
    "multi_label": Architecture(
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU6(), nn.Linear(6, 4)),
        multi_label,
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
    ),
    "gaussian": Architecture(Heteroscedastic, regression, Gaussian(), gaussian_mean),
    "two_outputs": Architecture(Heteroscedastic, regression, gaussian_criterion),
    "physics": Architecture(
        lambda: nn.Sequential(
            nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)
        ),
        points,
        physics_informed,
        lambda model, batch: heat_sum(model, batch) / len(batch[0]),
        learning_rate=1e-3,
    ),
    "reparametrised": Architecture(weight_norm, vectors),
    "bags": Architecture(Bags, sentence_classes),
    "perceptron": Architecture(perceptron, vectors, nn.MultiMarginLoss()),
    "pointnet": Architecture(
        PointNet, lambda: TensorDataset(torch.randn(13, 4, 2), torch.arange(13) % 3)
    ),
}  # fmt: skip

OURS = tuple(name for name in ARCHITECTURES if name != "contrastive")
"""Those whose loss is a mean over samples."""
