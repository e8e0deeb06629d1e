"""LLaMA by transformers: what the paper adapts in its language rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from onelora_vision.backbones.base import Adaptation, Base, norms_with_parameters, save_transformers
from onelora_vision.errors import InputError


@dataclass(kw_only=True)
class LlamaBase(Base):
    """A LLaMA, for counting and planning; it has no training script."""

    model: LlamaForCausalLM

    task, host = "language", "transformers"

    @classmethod
    def load(cls, source: str | Path, **settings: Any) -> Self:
        raise InputError(f"{source}: language models can be counted and planned here, not trained")

    @classmethod
    def from_config(cls, config: dict, num_classes: int | None = None, fuse_qkv: bool = False) -> Self:
        return cls(model=LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k in _CONFIG_FIELDS})))

    def _fit(self, class_names: list[str] | None, *, seed: int, fuse_qkv: bool = False) -> None:
        if class_names or fuse_qkv:
            raise InputError("a language model has no classes, and its q, k, v stay apart")

    def adaptation(self) -> Adaptation:
        return llama_adaptation(self.model)

    def replaced_modules(self) -> list[str]:
        return []

    def example(self, batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
        raise InputError("LlamaForCausalLM takes no images: the planner knows DiT, ViT and depth models")

    def save_merged(self, model: nn.Module, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
        save_transformers(model, folder, dtype, max_shard_size, self.source)


def llama_adaptation(model: nn.Module) -> Adaptation:
    """Every linear of the decoder layers, not ``lm_head``. LLaMA-2 7B: 224 layers, 1,359,872 values of b."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers." in name]
    return Adaptation(target_modules=linears, norm_modules=norms_with_parameters(model))


_CONFIG_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "attention_bias", "mlp_bias", "tie_word_embeddings", "head_dim",
)  # fmt: skip
