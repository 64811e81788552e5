"""Losses of models of tokens: causal and masked language models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hessdist.errors import DataError, WorkloadError
from hessdist.workload.losses import OfOutputs
from hessdist.workload.nestings import Batch, part
from hessdist.workload.token_losses import (
    OutputLayer,
    chunk_of,
    fisher_of_tokens,
    gauss_newton_of_logits,
    token_losses,
)


def causal_lm(
    mean: Literal["tokens", "sequences"] = "tokens",
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    fisher: Literal["sequences", "tokens"] = "sequences",
) -> TokenLoss:
    """Make the loss of a causal language model, whose labels are the following tokens.

    The model's own shift: the logits of a token are compared with the label of the next one. A
    sample is a mapping with `input_ids`, and perhaps `attention_mask` and `labels`; or the tokens
    alone; or a pair (tokens, labels). Without labels, they are the tokens that the mask leaves.

    Args:
        mean: "tokens", the mean over all labels of the data set that count, or "sequences", the
            mean over sequences of the mean over the labels of each.
        ignore_index: The label that does not count.
        chunk_tokens: The number of tokens whose logits are in memory at a time; 0: all logits are
            computed by the model itself; None: as many as fit 16 MiB.
        fisher: Whose gradients the empirical Fisher matrix is made of.

    Returns:
        The loss, for `extreme_eigenpairs` and other functions.

    Raises:
        WorkloadError: An argument is wrong.
    """
    return TokenLoss(True, mean, ignore_index, chunk_tokens, fisher)


def masked_lm(
    mean: Literal["tokens", "sequences"] = "tokens",
    ignore_index: int = -100,
    chunk_tokens: int | None = None,
    fisher: Literal["sequences", "tokens"] = "sequences",
) -> TokenLoss:
    """Make the loss of a masked language model, whose labels are those of the same places.

    Args:
        mean: As in `causal_lm`.
        ignore_index: The label of the places that are not predicted.
        chunk_tokens: As in `causal_lm`.
        fisher: As in `causal_lm`.

    Returns:
        The loss. The samples need labels.

    Raises:
        WorkloadError: An argument is wrong.
    """
    return TokenLoss(False, mean, ignore_index, chunk_tokens, fisher)


@dataclass(frozen=True)
class _Counted:
    """The places of a batch whose labels count."""

    mask: Tensor  # (B, T) bool, of places of the hidden states
    labels: Tensor  # (n,)
    sequence: Tensor  # (n,), the sample of each
    factors: Tensor  # (n,) of the loss's sum
    weights: Tensor  # (B,) of each sample


@dataclass(frozen=True)
class TokenLoss(OfOutputs):
    """Cross entropy over tokens, as sums over samples.

    The outputs z are the inputs h of the output layer at the places that count, and the layer's
    weight and bias, so that logits are computed in chunks. Where that cannot be done, z is the
    logits at these places.

    Args:
        shift: Whether labels are compared with the logits of the place before.
        mean: What the loss is a mean over.
        ignore_index: The label that does not count.
        chunk_tokens: The number of tokens whose logits are in memory at a time; 0: whole logits.
        fisher: Whose gradients the empirical Fisher matrix is made of.
    """

    proof_samples = 1  # their logits are whole

    shift: bool
    mean: Literal["tokens", "sequences"] = "tokens"
    ignore_index: int = -100
    chunk_tokens: int | None = None
    fisher: Literal["sequences", "tokens"] = "sequences"
    _chunked: WeakKeyDictionary[nn.Module, bool] = field(
        default_factory=WeakKeyDictionary, compare=False, repr=False
    )
    """Whether the output layer of a model can be separated, found at its first batch."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("mean", self.mean, ("tokens", "sequences")),
            ("fisher", self.fisher, ("sequences", "tokens")),
        ):
            if value not in known:
                raise WorkloadError(f"{name} is {value!r}", f"use {' or '.join(known)}")
        if self.chunk_tokens is not None and self.chunk_tokens < 0:
            raise WorkloadError(f"chunk_tokens is {self.chunk_tokens}", "use 1 or more, or 0")

    # -- the outputs -------------------------------------------------------------------------

    def outputs(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute z of the places that count.

        Args:
            model: The model.
            batch: The batch.

        Returns:
            `hidden` (n, D), `weight` (V, D) and perhaps `bias` (V,) of the output layer; or
            `logits` (n, V).
        """
        counted = self._counted(batch)
        head = output_layer(model)  # None, too, while something looks at what its layers return
        if head is None or not self._is_chunked(model, batch):
            return {"logits": self._at(self._logits(model, batch), counted)}
        with _replaced(head, lambda hidden: hidden):
            hidden = self._at(self._logits(model, batch), counted)
        z = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
        return {name: tensor for name, tensor in z.items() if tensor is not None}

    def whole(self) -> TokenLoss:
        """Return the same loss with whole logits as its outputs."""
        return replace(self, chunk_tokens=0)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Call the model, and find the logits in what it returns, (B, T, V)."""
        (name, tokens), *others = _inputs(batch).items()
        _require_tokens(model, tokens)
        if name == "inputs_embeds":
            returned = model(**{name: tokens}, **dict(others))
        else:  # the first argument, whatever the model calls it
            returned = model(tokens, **dict(others))
        logits = getattr(returned, "logits", returned)
        if isinstance(logits, Mapping):
            logits = logits.get("logits")
        if isinstance(logits, (tuple, list)) and logits:
            logits = logits[0]
        if not isinstance(logits, Tensor) or logits.shape[:2] != tokens.shape[:2]:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise WorkloadError(
                f"the model gives {shape} for tokens of shape {tuple(tokens.shape)}",
                "let it return logits of shape (batch, length, vocabulary), or an object with "
                ".logits",
            )
        return logits

    def _at(self, logits: Tensor, counted: _Counted) -> Tensor:
        return logits[counted.mask.to(logits.device)]

    def _is_chunked(self, model: nn.Module, batch: Batch) -> bool:
        """Return whether the model's last step is its output layer, as shown on this batch."""
        if self.chunk_tokens == 0:
            return False
        if model not in self._chunked:
            self._chunked[model] = self._separates(model, batch)
        return self._chunked[model]

    def _separates(self, model: nn.Module, batch: Batch) -> bool:
        # The layer returns other logits, so large that a cap on them or a scale would show, and the
        # model has to return just these.
        head = output_layer(model)
        if head is None:
            return False
        batch = part(batch, slice(0, 1))  # one sequence is enough
        generator = torch.Generator().manual_seed(0)
        logits = (100 * torch.randn(head.out_features, generator=generator)).to(head.weight)
        calls = []

        def forward(hidden: Tensor) -> Tensor:
            calls.append(hidden)
            return logits.expand(*hidden.shape[:-1], -1)

        try:
            with torch.no_grad(), _replaced(head, forward):
                returned = self._logits(model, batch)
        except RuntimeError:  # such as an operation in place on these logits
            return False
        return (
            len(calls) == 1
            and calls[0].shape[:-1] == returned.shape[:-1]
            and returned.shape[-1] == len(logits)
            and torch.allclose(returned, logits.to(returned), rtol=1e-6)
        )

    # -- the loss ----------------------------------------------------------------------------

    def of_outputs(self, z: Any, batch: Batch) -> tuple[Tensor, float]:
        """Compute (s, w): the sum of the losses, and the number of tokens or sequences."""
        counted = self._counted(batch)
        losses = self._losses(z, counted)
        return (losses * counted.factors.to(losses)).sum(), float(counted.weights.sum())

    def of_each_sample(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the sums and weights of each sequence, or of each token that counts.

        Args:
            model: The model.
            batch: The batch.

        Returns:
            The sums with their graph, and the weights: (B,), or (n,) for `fisher = "tokens"`.
        """
        counted = self._counted(batch)
        losses = self._losses(self.outputs(model, batch), counted)
        factors = counted.factors.to(losses)
        if self.fisher == "tokens":
            return losses * factors, factors
        count = len(counted.weights)
        sums = losses.new_zeros(count).index_add(0, counted.sequence, losses * factors)
        return sums, counted.weights.to(losses)

    def gauss_newton_at(
        self, z: Any, batch: Batch
    ) -> Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]] | None:
        """Return the product with the Gauss-Newton matrix of the logits, if they are chunked.

        Args:
            z: The outputs.
            batch: The batch.

        Returns:
            The map of a direction, in the order of z's tensors, to the product; None if z itself
            is the logits.
        """
        if "logits" in z:
            return None
        counted = self._counted(batch)
        layer = _layer(z)
        labels, factors = counted.labels, counted.factors.to(layer.hidden)
        return gauss_newton_of_logits(layer, labels, factors, self._chunk(layer))

    def fisher_at(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Any, Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]]] | None:
        """Return the outputs and the product with the Fisher matrix in them, if chunked.

        Args:
            model: The model.
            batch: The batch.

        Returns:
            The outputs with their graph, and the map of a direction, in the order of their tensors,
            to the product; None if the outputs are whole logits.
        """
        if not self._is_chunked(model, batch):
            return None
        z, counted = self.outputs(model, batch), self._counted(batch)
        _require_known(counted.labels, len(z["weight"]))
        layer = _layer({name: tensor.detach() for name, tensor in z.items()})
        factors = counted.factors.to(layer.hidden)
        if self.fisher == "tokens":  # a_t ∇ℓ_t of weight a_t
            return z, fisher_of_tokens(
                layer, counted.labels, lambda slopes: slopes * factors, self._chunk(layer)
            )
        weights, sequence = counted.weights.to(factors), counted.sequence
        inverse = torch.where(weights != 0, 1 / weights, 0.0)

        def of_sequences(slopes: Tensor) -> Tensor:
            sums = torch.zeros_like(weights).index_add(0, sequence, slopes * factors)
            return factors * (sums * inverse)[sequence]

        return z, fisher_of_tokens(layer, counted.labels, of_sequences, self._chunk(layer))

    def weight_of(self, batch: Batch) -> float:
        """Return the number of tokens or sequences that count in a batch."""
        return float(self._counted(batch).weights.sum())

    def placed(self, device: torch.device, dtype: torch.dtype) -> TokenLoss:
        """Return the loss itself, which has no tensors."""
        return self

    def _losses(self, z: Any, counted: _Counted) -> Tensor:
        """Compute the losses of the places that count, (n,)."""
        vocabulary = (z["logits"] if "logits" in z else z["weight"]).shape[
            -1 if "logits" in z else 0
        ]
        _require_known(counted.labels, vocabulary)
        if "logits" in z:
            return nn.functional.cross_entropy(z["logits"], counted.labels, reduction="none")
        layer = _layer(z)
        return token_losses(layer, counted.labels, self._chunk(layer))

    def _chunk(self, layer: OutputLayer) -> int:
        weight = layer.weight
        return self.chunk_tokens or chunk_of(len(weight), weight.element_size())

    def _counted(self, batch: Batch) -> _Counted:
        """Find the places whose labels count."""
        labels = _labels(batch, self.ignore_index, self.shift)
        if self.shift:
            end = torch.full_like(labels[:, :1], self.ignore_index)
            labels = torch.cat([labels[:, 1:], end], 1)
        mask = labels != self.ignore_index
        tokens = mask.sum(1)
        sequence = torch.arange(len(labels), device=labels.device)[:, None].expand_as(mask)[mask]
        if self.mean == "tokens":
            factors, weights = torch.ones_like(sequence, dtype=torch.float64), tokens.double()
        else:
            factors, weights = (1 / tokens.double())[sequence], (tokens > 0).double()
        return _Counted(mask, labels[mask].long(), sequence, factors, weights)


def _layer(z: Mapping[str, Tensor]) -> OutputLayer:
    return OutputLayer(z["hidden"], z["weight"], z.get("bias"))


def output_layer(model: nn.Module) -> nn.Linear | None:
    """Find the linear layer that makes logits.

    Args:
        model: A model of transformers, or one with a layer called `lm_head`.

    Returns:
        The layer; None if there is none, or one that does more than multiply.
    """
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else getattr(model, "lm_head", None)
    plain = type(head) is nn.Linear and not head._forward_hooks and not head._forward_pre_hooks
    return head if plain else None


@contextmanager
def _replaced(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a layer compute something else.

    Yields:
        Nothing.
    """
    layer.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del layer.forward


def _inputs(batch: Batch) -> dict[str, Tensor]:
    """The arguments of the model, the tokens first."""
    if isinstance(batch, Mapping):
        first = next((n for n in ("input_ids", "tokens", "inputs_embeds") if n in batch), None)
        if first is None:
            names = ", ".join(map(str, batch))
            raise DataError(f"the samples have {names}, but no input_ids", "name the tokens so")
        others = {name: v for name, v in batch.items() if name not in (first, "labels")}
        return {first: batch[first], **others}
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return {"input_ids": batch[0]}
    if isinstance(batch, Tensor):
        return {"input_ids": batch}
    raise DataError(
        f"a batch is {type(batch).__name__}",
        "give samples with input_ids, tokens alone, or pairs (tokens, labels)",
    )


def _labels(batch: Batch, ignore_index: int, shift: bool) -> Tensor:
    """The labels of a batch, (B, T); those of a causal model are the tokens if there are none."""
    if isinstance(batch, (tuple, list)):
        labels = batch[1]
    elif isinstance(batch, Mapping) and "labels" in batch:
        labels = batch["labels"]
    elif shift:
        inputs = _inputs(batch)
        labels = next(iter(inputs.values()))
        if "attention_mask" in inputs:
            labels = labels.masked_fill(inputs["attention_mask"] == 0, ignore_index)
    else:
        raise DataError("the samples have no labels", "give each sample input_ids and labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise DataError(f"labels are {shape}", "give integers of shape (batch, length)")
    return labels


def _require_known(labels: Tensor, vocabulary: int) -> None:
    """Refuse labels outside of the vocabulary."""
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < vocabulary:
        raise DataError(
            f"labels are {int(labels.min())} ... {int(labels.max())}, but the model has outputs "
            f"0 ... {vocabulary - 1}",
            "use the tokenizer of the model, or name the label that does not count (ignore_index)",
        )


def _require_tokens(model: nn.Module, tokens: Tensor) -> None:
    """Refuse tokens outside of the vocabulary, and more of them than there are positions."""
    getter = getattr(model, "get_input_embeddings", None)
    table = getter() if callable(getter) else None
    known = getattr(table, "num_embeddings", None)
    if isinstance(known, int) and tokens.numel() and not tokens.is_floating_point():
        least, most = int(tokens.min()), int(tokens.max())
        if not 0 <= least <= most < known:
            raise DataError(
                f"tokens are {least} ... {most}, but the model knows 0 ... {known - 1}",
                "use the tokenizer of the model",
            )
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if (
        isinstance(positions, int)
        and 0 < positions < tokens.shape[1]
        and _has_table(model, positions)
    ):
        raise DataError(
            f"a sequence has {tokens.shape[1]} tokens, but the model has {positions} positions",
            "make sequences shorter (data.arguments.length)",
        )


def _has_table(model: nn.Module, positions: int) -> bool:
    """Return whether positions are looked up in a table; rotary positions have no end."""
    getter = getattr(model, "get_input_embeddings", None)
    tokens = getter() if callable(getter) else None
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not tokens)
    return any(positions <= table.num_embeddings <= positions + 2 for table in tables)
