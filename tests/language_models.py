"""Tiny language models, and their dense curvature matrices from whole logits, by definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Logits = Callable[[nn.Module, Tensor], Tensor]
"""Maps (model, ids of one sequence, (n,)) to logits, (n, V)."""


def from_config(name: str, **fields: Any) -> nn.Module:
    """A model of the factory with random weights, in float64 and evaluation mode."""
    pytest.importorskip("transformers")
    from hessdist.workload.huggingface import huggingface

    task = fields.pop("task", "causal-lm")
    torch.manual_seed(0)
    model = huggingface({"model_type": name, **fields}, task=task).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # far from zero, so that every term counts
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return model


class Small(nn.Module):
    """Logits that see the token and the one before; with a cap, they are no linear layer's."""

    def __init__(self, cap: float | None = None, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.lm_head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.cap, self.scale = cap, scale

    def forward(self, idx: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.embedding(idx)
        z = self.lm_head(torch.tanh(h + 0.5 * torch.cat([h[:, :1] * 0, h[:, :-1]], 1)))
        z = z * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)


def gpt2(tied: bool = True) -> nn.Module:
    return from_config(
        "gpt2", vocab_size=7, n_positions=8, n_embd=4, n_layer=1, n_head=2, n_inner=6,
        bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied,
    )  # fmt: skip


def bert(tied: bool = True) -> nn.Module:
    return from_config(
        "bert", task="masked-lm", vocab_size=7, hidden_size=4, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=5, max_position_embeddings=8, type_vocab_size=1,
        tie_word_embeddings=tied,
    )  # fmt: skip


def llama(tied: bool = False, **fields: Any) -> nn.Module:
    """Root mean square norms, rotary positions, grouped queries, SwiGLU."""
    return from_config(
        fields.pop("name", "llama"), vocab_size=7, hidden_size=4, intermediate_size=3,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied,
        **fields,
    )  # fmt: skip


def mixtral(tied: bool = False) -> nn.Module:
    """A mixture of experts."""
    return llama(tied, name="mixtral", num_local_experts=3, num_experts_per_tok=2)


def of_model(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits by the model itself."""
    return model(input_ids=ids[None]).logits[0]


def by_hand(model: Any, ids: Tensor) -> Tensor:
    """Logits of a Llama or Mixtral by their formulas, in float64 throughout."""
    body = model.model
    x = body.embed_tokens.weight[ids]
    cos, sin = (part[0] for part in body.rotary_emb(x[None], torch.arange(len(ids))[None]))
    for layer in body.layers:
        at, h = layer.self_attn, _norm(layer.input_layernorm, x)
        q, k, v = (
            (h @ projection.weight.T).view(len(ids), -1, at.head_dim).transpose(0, 1)
            for projection in (at.q_proj, at.k_proj, at.v_proj)
        )
        q, k = (part * cos + _rotated(part) * sin for part in (q, k))
        k, v = (part.repeat_interleave(len(q) // len(part), 0) for part in (k, v))
        scores = q @ k.transpose(1, 2) / at.head_dim**0.5
        future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
        mixed = torch.softmax(scores.masked_fill(future, -torch.inf), 2) @ v
        x = x + mixed.transpose(0, 1).reshape(len(ids), -1) @ at.o_proj.weight.T
        x = x + _feed_forward(layer.mlp, _norm(layer.post_attention_layernorm, x))
    return _norm(body.norm, x) @ model.lm_head.weight.T


def _norm(norm: Any, x: Tensor) -> Tensor:
    return norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _feed_forward(mlp: Any, h: Tensor) -> Tensor:
    if not hasattr(mlp, "experts"):
        gated = nn.functional.silu(h @ mlp.gate_proj.weight.T) * (h @ mlp.up_proj.weight.T)
        return gated @ mlp.down_proj.weight.T
    chosen, experts = torch.softmax(h @ mlp.gate.weight.T, 1).topk(mlp.top_k, 1)
    chosen = chosen / chosen.sum(1, keepdim=True)
    both = torch.einsum("td,tkfd->tkf", h, mlp.experts.gate_up_proj[experts])
    gate, up = both.chunk(2, -1)
    hidden = nn.functional.silu(gate) * up
    return torch.einsum("tk,tkf,tkdf->td", chosen, hidden, mlp.experts.down_proj[experts])


@dataclass(frozen=True)
class Sequences:
    """Sequences with their labels, (n,) each, -100 where no label counts."""

    ids: Sequence[Tensor]
    labels: Sequence[Tensor]  # of the logits at the same place: shifted for causal models

    def __len__(self) -> int:
        return len(self.ids)


class Dense:
    """Dense sums over all labels of a data set: H, G, S, and F of tokens and of sequences."""

    def __init__(
        self, model: nn.Module, data: Sequences, logits: Logits, mean: str = "tokens"
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        z, labels, sequence = [], [], []
        for number, (ids, targets) in enumerate(zip(data.ids, data.labels, strict=True)):
            counts = targets != -100
            z.append(logits(model, ids)[counts])  # one sequence at a time, without padding
            labels.append(targets[counts])
            sequence += [number] * int(counts.sum())
        self.z, self.labels = torch.cat(z), torch.cat(labels)
        self.sequence = torch.tensor(sequence)
        size = torch.bincount(self.sequence, minlength=len(data)).double()
        one = torch.ones(len(sequence), dtype=torch.float64)
        self.factors = one if mean == "tokens" else 1 / size[self.sequence]
        self.weights = size if mean == "tokens" else (size > 0).double()
        probabilities = self.z.log_softmax(1)
        self.losses = -probabilities[torch.arange(len(self.labels)), self.labels]

    def jacobian(self, outputs: Tensor, create_graph: bool = False) -> Tensor:
        """The derivatives of (n,) outputs, (n, d)."""
        pieces = torch.autograd.grad(
            outputs, self.parameters, torch.eye(len(outputs), dtype=outputs.dtype),
            is_grads_batched=True, retain_graph=True, create_graph=create_graph, allow_unused=True,
        )  # fmt: skip
        flat = [
            torch.zeros(len(outputs), p.numel(), dtype=p.dtype) if piece is None
            else piece.reshape(len(outputs), -1)
            for p, piece in zip(self.parameters, pieces, strict=True)
        ]  # fmt: skip
        return torch.cat(flat, 1)

    def matrices(self) -> dict[str, Tensor]:
        total = (self.factors * self.losses).sum()
        h = self.jacobian(self.jacobian(total[None], create_graph=True)[0]).detach()
        p = self.z.detach().softmax(1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        j = self.jacobian(self.z.reshape(-1)).view(*self.z.shape, -1)
        g = torch.einsum("tid,t,tij,tje->de", j, self.factors, curvature, j)
        slopes = self.jacobian(self.losses)
        tokens = torch.einsum("td,t,te->de", slopes, self.factors, slopes)
        sums = torch.zeros(len(self.weights), slopes.shape[1], dtype=torch.float64)
        sums.index_add_(0, self.sequence, self.factors[:, None] * slopes)
        counted = self.weights > 0
        means = sums[counted] / self.weights[counted][:, None]
        whole = torch.einsum("sd,s,se->de", means, self.weights[counted], means)
        return {"hessian": h, "gauss_newton": g, "residual": h - g, "tokens": tokens,
                "sequences": whole}  # fmt: skip


def random_sequences(lengths: Sequence[int], vocabulary: int = 7, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocabulary, (length,), generator=generator) for length in lengths]


def causal(ids: Sequence[Tensor]) -> Sequences:
    """Each token's label is the next one; the last token has none."""
    end = torch.tensor([-100])
    return Sequences(ids, [torch.cat([one[1:], end]) for one in ids])
