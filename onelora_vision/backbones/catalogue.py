"""Backbones by name, built on the meta device: their shapes without their weights, in seconds also for 13B.

`describe` takes one of the names of `NAMED`, a timm model name, or a local folder or hub id with a config.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from onelora_vision.backbones.base import Adaptation
from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.runtime.hub import expect_hub


@dataclass(frozen=True)
class Backbone:
    """A model on the meta device and the places where the methods act on it."""

    model: nn.Module
    adaptation: Adaptation


def describe(name_or_path: str, num_classes: int | None = None, fuse_qkv: bool = False) -> Backbone:
    """Build a backbone without weights.

    Args:
        name_or_path: a name of `NAMED`, a timm name, a folder or a hub id (whose config alone is fetched).
        num_classes: classes of the head or label table (default: as the model has them).
        fuse_qkv: join q, k, v where the host keeps them apart, as the paper's fused counts have it.

    Raises:
        InputError: for a name that nobody knows.
    """
    with torch.device("meta"):
        if name_or_path in NAMED:
            return NAMED[name_or_path](num_classes, fuse_qkv)
        config = _config_of(name_or_path)
        if config is not None:
            return _from_config(name_or_path, config, num_classes, fuse_qkv)
        return _timm(name_or_path, num_classes)


def _dit(num_classes: int | None, fuse_qkv: bool, **config) -> Backbone:
    from onelora_vision.backbones.dit import DiT, dit_adaptation

    model = DiT.from_config({**config, "num_embeds_ada_norm": num_classes or config.get("num_embeds_ada_norm", 1000)})
    if fuse_qkv:
        model.fuse_qkv()
    return Backbone(model, dit_adaptation(model))


def _vit(num_classes: int | None, fuse_qkv: bool, **config) -> Backbone:
    from transformers import ViTConfig, ViTForImageClassification

    from onelora_vision.backbones.fuse import fuse_qkv as fuse
    from onelora_vision.backbones.vit import vit_adaptation

    model = ViTForImageClassification(ViTConfig(**config, num_labels=num_classes or 1000))
    if fuse_qkv:
        fuse(model)
    return Backbone(model, vit_adaptation(model))


def _classifier(kind: str, num_classes: int | None, fuse_qkv: bool, config: dict) -> Backbone:
    from transformers import AutoConfig, AutoModelForImageClassification

    from onelora_vision.backbones.fuse import fuse_qkv as fuse
    from onelora_vision.backbones.vit import leave_out_unused, vit_adaptation

    known = leave_out_unused(AutoConfig.for_model(**config))
    if num_classes:
        known.num_labels = num_classes
    model = AutoModelForImageClassification.from_config(known)
    if fuse_qkv:
        fuse(model)
    return Backbone(model, vit_adaptation(model))


def _depth_anything(num_classes: int | None, fuse_qkv: bool, config=None) -> Backbone:
    from transformers import DepthAnythingForDepthEstimation

    from onelora_vision.backbones.depth_anything import depth_adaptation
    from onelora_vision.backbones.fuse import fuse_qkv as fuse

    model = DepthAnythingForDepthEstimation(config)
    if fuse_qkv:
        fuse(model)
    return Backbone(model, depth_adaptation(model))


def _depth_anything_sized(width: int, depth: int, heads: int, neck: list[int], fusion: int) -> Callable:
    def build(num_classes: int | None, fuse_qkv: bool) -> Backbone:
        from transformers import DepthAnythingConfig, Dinov2Config

        last = {24: [5, 12, 18, 24], 12: [3, 6, 9, 12]}[depth]
        backbone = Dinov2Config(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            image_size=518,
            patch_size=14,
            out_indices=last,
            reshape_hidden_states=False,
        )
        config = DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=14,
            reassemble_hidden_size=width,
            neck_hidden_sizes=neck,
            fusion_hidden_size=fusion,
        )
        return _depth_anything(num_classes, fuse_qkv, config)

    return build


def _llama(num_classes: int | None, fuse_qkv: bool, **config) -> Backbone:
    from transformers import LlamaConfig, LlamaForCausalLM

    from onelora_vision.backbones.llama import llama_adaptation

    model = LlamaForCausalLM(LlamaConfig(**config))
    return Backbone(model, llama_adaptation(model))


def _timm(name: str, num_classes: int | None, model_args: dict | None = None) -> Backbone:
    import timm

    from onelora_vision.backbones.vit import vit_adaptation

    if not timm.is_model(name):
        known = [*NAMED, *timm.list_models("vit_*_patch*")]
        raise InputError(f"no backbone {name!r}: no built-in name, timm model, folder or hub id{_close(name, known)}")
    model_args = {**(model_args or {}), **({"num_classes": num_classes} if num_classes else {})}
    model = timm.create_model(name, pretrained=False, **model_args)
    return Backbone(model, vit_adaptation(model))


def _close(name: str, known: list[str]) -> str:
    hint = nearest(name, known)
    return hint if "did you mean" in hint else f"; built-in names: {', '.join(NAMED)}"


def _config_of(name_or_path: str) -> dict | None:
    """The config that tells the architecture: of a DiT pipeline's transformer, or of a transformers model."""
    folder = Path(name_or_path)
    if folder.is_dir():
        for candidate in (folder / "transformer" / "config.json", folder / "config.json"):
            if candidate.is_file():
                return json.loads(candidate.read_text(encoding="utf-8"))
        raise InputError(f"{name_or_path}: neither config.json nor transformer/config.json in this folder")
    if name_or_path.count("/") != 1 or name_or_path.startswith("timm/"):
        return None
    return _config_from_hub(name_or_path)


def _config_from_hub(repository: str) -> dict:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    expect_hub(repository)
    for name in ("transformer/config.json", "config.json"):
        try:
            return json.loads(Path(hf_hub_download(repository, name)).read_text(encoding="utf-8"))
        except LocalEntryNotFoundError as error:
            raise InputError(f"{repository}: no such folder, and the hub cannot be reached for its config") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise InputError(f"{repository}: its config cannot be fetched ({one_line(error)})") from error
    raise InputError(f"{repository}: the hub repository has no config.json")


def _from_config(where: str, config: dict, num_classes: int | None, fuse_qkv: bool) -> Backbone:
    if config.get("_class_name") in ("DiTTransformer2DModel", "Transformer2DModel"):
        known = {k: v for k, v in config.items() if k in _DIT_FIELDS}
        return _dit(num_classes, fuse_qkv, **known)
    kind = config.get("model_type")
    if kind == "vit":
        return _vit(num_classes, fuse_qkv, **{k: v for k, v in config.items() if k in _VIT_FIELDS})
    if kind == "depth_anything":
        from transformers import DepthAnythingConfig

        return _depth_anything(num_classes, fuse_qkv, DepthAnythingConfig.from_dict(config))
    if kind == "llama":
        return _llama(num_classes, fuse_qkv, **{k: v for k, v in config.items() if k in _LLAMA_FIELDS})
    if "architecture" in config and kind is None:  # a timm folder
        classes = num_classes or config.get("num_classes")
        return _timm(config["architecture"], classes, config.get("model_args") or {})
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return _classifier(kind, num_classes, fuse_qkv, config)
    raise InputError(
        f"{where}: a {kind or config.get('_class_name')!r} model; known are DiT, image classifiers, Depth Anything, LLaMA"
    )


_DIT_FIELDS = (
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "sample_size",
    "patch_size", "num_embeds_ada_norm", "attention_bias", "norm_type", "activation_fn",
)  # fmt: skip
_VIT_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
    "num_channels", "qkv_bias",
)  # fmt: skip
_LLAMA_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "attention_bias", "mlp_bias", "tie_word_embeddings", "head_dim",
)  # fmt: skip


def _sized(build: Callable, **config) -> Callable:
    return lambda num_classes, fuse_qkv: build(num_classes, fuse_qkv, **config)


def _dit_sizes() -> dict[str, Callable]:
    """DiT-S to DiT-XL with patches 2, 4 and 8 on 32 x 32 latents (arXiv 2212.09748, table 1)."""
    sizes = {"s": (12, 6, 64), "b": (12, 12, 64), "l": (24, 16, 64), "xl": (28, 16, 72)}
    latent = {"sample_size": 32, "in_channels": 4, "out_channels": 8}
    return {
        f"dit-{size}-{patch}": _sized(
            _dit, num_layers=depth, num_attention_heads=heads, attention_head_dim=width, patch_size=patch, **latent
        )
        for size, (depth, heads, width) in sizes.items()
        for patch in (2, 4, 8)
    }


NAMED: dict[str, Callable[[int | None, bool], Backbone]] = {
    **_dit_sizes(),
    "vit-b-16": _sized(_vit),  # ViTConfig's defaults are ViT-B/16 at 224 pixels
    "vit-l-16": _sized(_vit, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "depth-anything-s": _depth_anything_sized(384, 12, 6, [48, 96, 192, 384], 64),
    "depth-anything-b": _depth_anything_sized(768, 12, 12, [96, 192, 384, 768], 128),
    "depth-anything-l": _depth_anything_sized(1024, 24, 16, [256, 512, 1024, 1024], 256),
    "llama-2-7b": _sized(_llama, vocab_size=32000),  # LlamaConfig's defaults are LLaMA-2 7B otherwise
    "llama-2-13b": _sized(
        _llama,
        vocab_size=32000,
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
    ),
}
