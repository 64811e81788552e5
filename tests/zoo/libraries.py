"""Models of torchvision, timm and transformers themselves, in their smallest configurations.

Nothing is downloaded: every model is made from a configuration, with weights drawn at random.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from zoo.architectures import (
    ARCHITECTURES,
    Architecture,
    NextToken,
    Rows,
    images,
    next_token_mean,
    padded_words,
    sentences,
)


class Logits(nn.Module):
    """A model of transformers as a function from inputs to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return self.model(inputs).logits


def own_loss(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
    """The loss that a model of transformers computes, a mean over the samples of a batch."""
    return model(**batch).loss * len(batch["labels"]), len(batch["labels"])


def own_mean(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(**batch).loss


def from_transformers(kind: str, config: str, wrapped: bool = False, **settings: Any) -> nn.Module:
    transformers = importlib.import_module("transformers")
    made = getattr(transformers, config)(**settings)
    model = getattr(transformers, kind)(made)
    return Logits(model) if wrapped else model


_TEXT: dict[str, Any] = {"vocab_size": 7, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA: dict[str, Any] = _TEXT | {
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8,
}
_BERT: dict[str, Any] = {
    "vocab_size": 7,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "max_position_embeddings": 6,
    "type_vocab_size": 2,
    "num_labels": 3,
}


def classified_sentences() -> Rows:
    ids = padded_words()
    return Rows({
        "input_ids": ids,
        "attention_mask": (ids > 0).long(),
        "labels": torch.arange(len(ids)) % 3,
    })


def pictures() -> TensorDataset:
    return images(count=13, size=8)


def _torchvision(module: str, name: str, *arguments: Any, **settings: Any) -> nn.Module:
    found = importlib.import_module(f"torchvision.models.{module}")
    return getattr(found, name)(*arguments, **settings)


def convnext() -> nn.Module:
    found = importlib.import_module("torchvision.models.convnext")
    blocks = [found.CNBlockConfig(4, 6, 1), found.CNBlockConfig(6, None, 1)]
    return nn.Sequential(nn.Conv2d(1, 3, 1), found.ConvNeXt(blocks, 0.1, num_classes=3))


def mobilenet() -> nn.Module:
    found = importlib.import_module("torchvision.models.mobilenetv3")
    blocks = [found.InvertedResidualConfig(8, 3, 8, 8, True, "HS", 2, 1, 1.0)]
    model = found.MobileNetV3(blocks, 8, num_classes=3)
    return nn.Sequential(nn.Conv2d(1, 3, 1), model)


def timm_vit() -> nn.Module:
    found = importlib.import_module("timm.models.vision_transformer")
    return found.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=4, depth=1, num_heads=2,
        mlp_ratio=2, qk_norm=True, init_values=1e-2,
    )  # fmt: skip


def timm_mixer() -> nn.Module:
    found = importlib.import_module("timm.models.mlp_mixer")
    return found.MlpMixer(
        num_classes=3, img_size=8, in_chans=1, patch_size=4, num_blocks=1, embed_dim=6
    )


LIBRARIES: dict[str, str] = {
    "tv_vit": "torchvision",
    "tv_swin": "torchvision",
    "tv_densenet": "torchvision",
    "tv_convnext": "torchvision",
    "tv_mobilenet": "torchvision",
    "timm_vit": "timm",
    "timm_mixer": "timm",
    "hf_bert": "transformers",
    "hf_gpt2": "transformers",
    "hf_llama": "transformers",
    "hf_mixtral": "transformers",
    "hf_vit": "transformers",
    "hf_resnet": "transformers",
    "hf_lora": "peft",
}
"""The architectures of libraries, and the package that each is from."""


def lora() -> nn.Module:
    peft = importlib.import_module("peft")
    model = from_transformers("LlamaForCausalLM", "LlamaConfig", **_LLAMA)
    settings = peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
    return peft.get_peft_model(model, settings)


ARCHITECTURES |= {
    "tv_vit": Architecture(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 1),
            _torchvision(
                "vision_transformer", "VisionTransformer", 8, 4, 1, 2, 4, 6, num_classes=3
            ),
        ),
        pictures,
    ),
    "tv_swin": Architecture(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 1),
            _torchvision(
                "swin_transformer", "SwinTransformer", [2, 2], 4, [2], [2], [2, 2], 2.0,
                num_classes=3,
            ),
        ),
        pictures,
    ),
    "tv_densenet": Architecture(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 1), _torchvision("densenet", "DenseNet", 2, (1, 1), 3, 2, num_classes=3)
        ),
        lambda: images(count=13, size=16),
    ),
    "tv_convnext": Architecture(convnext, pictures),
    "tv_mobilenet": Architecture(mobilenet, pictures),
    "timm_vit": Architecture(timm_vit, pictures),
    "timm_mixer": Architecture(timm_mixer, pictures),
    "hf_bert": Architecture(
        lambda: from_transformers("BertForSequenceClassification", "BertConfig", **_BERT),
        classified_sentences,
        own_loss,
        own_mean,
    ),
    "hf_gpt2": Architecture(
        lambda: from_transformers(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=7, n_positions=6, n_embd=4, n_layer=1,
            n_head=2, n_inner=6, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        sentences,
        NextToken(),
        next_token_mean,
    ),
    "hf_llama": Architecture(
        lambda: from_transformers("LlamaForCausalLM", "LlamaConfig", **_LLAMA),
        sentences,
        NextToken(),
        next_token_mean,
    ),
    "hf_mixtral": Architecture(
        lambda: from_transformers(
            "MixtralForCausalLM", "MixtralConfig", num_local_experts=3, num_experts_per_tok=2,
            experts_implementation="eager",
            **_LLAMA,
        ),
        sentences,
        NextToken(),
        next_token_mean,
    ),
    "hf_vit": Architecture(
        lambda: from_transformers(
            "ViTForImageClassification", "ViTConfig", wrapped=True, hidden_size=4,
            num_hidden_layers=1, num_attention_heads=2, intermediate_size=6, image_size=8,
            patch_size=4, num_channels=1, num_labels=3,
        ),
        pictures,
    ),
    "hf_resnet": Architecture(
        lambda: from_transformers(
            "ResNetForImageClassification", "ResNetConfig", wrapped=True, num_channels=1,
            embedding_size=3, hidden_sizes=[3, 4], depths=[1, 1], layer_type="basic", num_labels=3,
        ),
        pictures,
        F.cross_entropy,
    ),
    "hf_lora": Architecture(lora, sentences, NextToken(), next_token_mean),
}  # fmt: skip
