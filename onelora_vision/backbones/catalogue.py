"""Backbones by name, built on the meta device: their shapes without weights, within seconds even at 13B parameters.

`describe` takes a name in `NAMED`, a timm model name, or a local folder or hub id with a config.
"""

import torch

from onelora_vision import embedded
from onelora_vision.backbones.base import Base
from onelora_vision.backbones.config_file import config_of
from onelora_vision.backbones.table import all_rows, row_of
from onelora_vision.errors import InputError, nearest, one_line


def describe(name_or_path: str, num_classes: int | None = None, fuse_qkv: bool = False) -> Base:
    """Build a backbone without weights.

    Args:
        name_or_path: a name in `NAMED`, an embedded base such as ``embedded/sit``, a timm name, a folder or a hub id
            (of which only the config is fetched).
        num_classes: classes of the head or label table (default: those of the model).
        fuse_qkv: join q, k, v if the host keeps them separate, as in the fused counts of the paper.

    Raises:
        InputError: the name is unknown, or the model is not supported.
    """
    place = embedded.folder_of(name_or_path) or name_or_path
    config = NAMED.get(name_or_path) or config_of(place) or _timm_config(name_or_path)
    family = row_of(config).base_class()
    with torch.device("meta"):
        try:
            return family.from_config(config, num_classes, fuse_qkv)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            kind = config.get("model_type") or config.get("_class_name")
            raise InputError(
                f"{name_or_path}: {kind!r} models are not supported; supported are image classifiers and "
                f"{', '.join(name for row in all_rows() for name in row.names)} ({one_line(error, 200)})"
            ) from error


def _timm_config(name: str) -> dict:
    import timm

    if not timm.is_model(name):
        known = [*NAMED, *timm.list_models("vit_*_patch*")]
        raise InputError(f"no backbone {name!r}: no built-in name, timm model, folder or hub id{_close(name, known)}")
    return {"architecture": name}


def _close(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint if "did you mean" in hint else f"; built-in names: {', '.join(NAMED)}"


def _dit(depth: int, heads: int, width: int, patch: int, out_channels: int = 8) -> dict:
    """A DiT on 32 x 32 latents (arXiv 2212.09748, table 1). SiT's network is the same; REPA's has 4 output channels."""
    return {
        "_class_name": "DiTTransformer2DModel",
        "num_layers": depth,
        "num_attention_heads": heads,
        "attention_head_dim": width,
        "patch_size": patch,
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": out_channels,
    }


def _depth_anything(width: int, depth: int, heads: int, neck: list[int], fusion: int) -> dict:
    backbone = {
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "image_size": 518,
        "patch_size": 14,
        "out_indices": {24: [5, 12, 18, 24], 12: [3, 6, 9, 12]}[depth],
        "reshape_hidden_states": False,
    }
    return {
        "model_type": "depth_anything",
        "backbone_config": backbone,
        "patch_size": 14,
        "reassemble_hidden_size": width,
        "neck_hidden_sizes": neck,
        "fusion_hidden_size": fusion,
    }


_DIT_SIZES = {"s": (12, 6, 64), "b": (12, 12, 64), "l": (24, 16, 64), "xl": (28, 16, 72)}
NAMED: dict[str, dict] = {
    **{
        f"{kind}-{name}-{patch}": _dit(*size, patch)
        for kind in ("dit", "sit")
        for name, size in _DIT_SIZES.items()
        for patch in (2, 4, 8)
    },
    **{f"repa-{name}-2": _dit(*_DIT_SIZES[name], 2, out_channels=4) for name in ("b", "l", "xl")},
    "vit-b-16": {"model_type": "vit", "num_labels": 1000},  # ViTConfig's defaults are ViT-B/16 at 224 pixels
    "vit-l-16": {
        "model_type": "vit",
        "num_labels": 1000,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "depth-anything-s": _depth_anything(384, 12, 6, [48, 96, 192, 384], 64),
    "depth-anything-b": _depth_anything(768, 12, 12, [96, 192, 384, 768], 128),
    "depth-anything-l": _depth_anything(1024, 24, 16, [256, 512, 1024, 1024], 256),
    "dpt-large": {
        "model_type": "dpt",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "backbone_out_indices": [5, 11, 17, 23],
        "neck_hidden_sizes": [256, 512, 1024, 1024],
    },
    "llama-2-7b": {"model_type": "llama", "vocab_size": 32000},  # otherwise, LlamaConfig's defaults are LLaMA-2 7B
    "llama-2-13b": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}
