"""17: models of transformers and peft, their losses over tokens, adapters."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases.situations import dense
from torch import Tensor, nn
from torch.nn import functional as F

import hessdist
from hessdist.errors import HessdistError, WorkloadError

transformers = pytest.importorskip("transformers")


def gpt2(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=7, n_positions=6, n_embd=4, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=4, max_position_embeddings=6, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


class Words:
    """Sentences of 3 to 6 words, padded; labels are words or classes."""

    def __init__(self, words: bool, count: int = 24) -> None:
        g = torch.Generator().manual_seed(0)
        ids = torch.randint(1, 7, (count, 6), generator=g)
        self.mask = (torch.arange(6)[None] < torch.randint(3, 7, (count, 1), generator=g)).long()
        self.ids = ids * self.mask
        self.labels = torch.where(self.mask.bool(), self.ids, -100)
        if not words:
            self.labels = torch.randint(0, 3, (count,), generator=g)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i],
        }  # fmt: skip

    def mean(self, model: nn.Module) -> Tensor:
        return model(input_ids=self.ids, attention_mask=self.mask, labels=self.labels).loss


def naive(model: nn.Module, batch: Any) -> Any:
    return model(**batch).loss * len(batch["labels"]), len(batch["labels"])


def tokens(model: nn.Module, batch: Any) -> Any:
    given = {key: batch[key] for key in ("input_ids", "attention_mask")}
    logits, target = model(**given).logits[:, :-1], batch["labels"][:, 1:]
    total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    return total, int((target != -100).sum())


class OfTokens:
    """The third form: z are the logits of the tokens that count."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return model(**given).logits[:, :-1][batch["labels"][:, 1:] != -100]

    def of_outputs(self, z: Tensor, batch: Any) -> Any:
        target = batch["labels"][:, 1:]
        return F.cross_entropy(z, target[target != -100], reduction="sum"), len(z)


def solved(model: nn.Module, loss: Any, data: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hessdist.extreme_eigenpairs(
            model, loss, data, device="cpu",
            **{"largest": 3, "smallest": 2, "tolerance": 1e-6, "batch_size": 5, **options},
        )  # fmt: skip


@pytest.fixture(scope="module")
def right() -> Any:
    words = Words(True)
    return torch.linalg.eigvalsh(dense(words.mean, gpt2())).numpy()


@pytest.mark.parametrize("loss", [tokens, OfTokens()])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_language_models_by_tokens(right: Any, loss: Any, implementation: str) -> None:
    model = gpt2(attn_implementation=implementation).double()
    found = solved(model, loss, Words(True))
    scale = np.abs(right).max()
    assert np.abs(found.eigenvalues_largest - right[::-1][:3]).max() <= 1e-5 * scale
    assert np.abs(found.eigenvalues_smallest - right[:2]).max() <= 1e-5 * scale
    assert found.weight == int((Words(True).labels[:, 1:] != -100).sum())
    assert found.num_samples == 24


class Kernel(torch.autograd.Function):
    """Attention by a fused kernel: its backward pass is right, and cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, *qkv: Tensor) -> Tensor:
        ctx.save_for_backward(*qkv)
        return F.scaled_dot_product_attention(*qkv, is_causal=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        qkv = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(*qkv, is_causal=True)
        return torch.autograd.grad(out, qkv, gradient.detach())


def by_kernel(module: nn.Module, *qkvm: Tensor, **_: Any) -> tuple[Tensor, None]:
    return Kernel.apply(*qkvm[:3]).transpose(1, 2), None


def test_attention_without_a_second_derivative_is_refused_with_its_cause() -> None:
    transformers.AttentionInterface.register("by_kernel", by_kernel)
    data = [{"input_ids": ids} for ids in Words(True).ids]
    loss = hessdist.losses.causal_lm()
    with pytest.raises(WorkloadError, match="Kernel") as caught:
        solved(gpt2(attn_implementation="by_kernel").double(), loss, data)
    assert "\n" not in str(caught.value)
    model: Any = gpt2()
    model.config._attn_implementation = "flash_attention_2"  # as where the library is installed
    with pytest.raises(WorkloadError, match=r"flash_attention_2.*no second derivative.*eager"):
        solved(model, loss, data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_size", [3, 8, 256])
def test_the_mean_over_tokens_times_the_batch_is_refused(
    dtype: torch.dtype, batch_size: int
) -> None:
    with pytest.raises(WorkloadError, match=r"mean over tokens.*labels that count") as caught:
        solved(gpt2().to(dtype), naive, Words(True), batch_size=batch_size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classifiers_of_sentences(dtype: torch.dtype) -> None:
    words, model = Words(False), bert()
    exact = torch.linalg.eigvalsh(dense(words.mean, model)).numpy()
    single = dtype == torch.float32
    found = solved(model.to(dtype), naive, words, tolerance=1e-4 if single else 1e-6)
    close = 1e-3 if single else 1e-5
    assert np.abs(found.eigenvalues_largest - exact[::-1][:3]).max() <= close * np.abs(exact).max()


def test_a_criterion_says_what_to_do_with_outputs_of_transformers() -> None:
    words = Words(False)
    pairs = list(zip(words.ids, words.labels, strict=True))
    with pytest.raises(HessdistError, match=r"logits.*outputs.*of_outputs") as caught:
        solved(bert().double(), F.cross_entropy, pairs)
    assert "\n" not in str(caught.value)


def test_adapters_on_a_frozen_base() -> None:
    peft = pytest.importorskip("peft")
    words = Words(False)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = peft.get_peft_model(bert(), config).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    exact = torch.linalg.eigvalsh(dense(words.mean, model)).numpy()
    found = solved(model, naive, words)
    assert np.abs(found.eigenvalues_largest - exact[::-1][:3]).max() <= 1e-5 * np.abs(exact).max()
    assert all("lora" in name or "classifier" in name for name in found.parameter_names)
