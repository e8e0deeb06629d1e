"""Depth Anything v1 and v2 by transformers: loading, what is adapted, and what its head's ``max_depth`` means.

A metric checkpoint ends in ``max_depth * sigmoid(z)``, metres. A relative one ends in ``relu(z)``, inverse depth up to
scale and shift, which no loss in metres can use. `set_max_depth` turns either into a metric head of another range.
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.utils import logging as transformers_logging

from onelora_vision import embedded
from onelora_vision.backbones.base import Adaptation, norms_with_parameters
from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.hub import expect_hub

#: The mean and standard deviation that every Depth Anything checkpoint's images are normalised with (ImageNet's).
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: The name of the base that ships with the package: rendered rooms up to 10 m, 64 x 64 pixels.
EMBEDDED = "embedded/depth"


def load_depth_anything(
    pretrained_model_name_or_path: str | Path = EMBEDDED,
    *,
    max_depth: int | None = None,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | None = None,
) -> DepthAnythingForDepthEstimation:
    """Load a Depth Anything folder or hub id in fp32; ``max_depth`` in metres gives it a metric head of that range.

    Raises:
        InputError: there is no such model, it is no Depth Anything, or its file does not hold all of its weights.
    """
    source = str(pretrained_model_name_or_path)
    if source == EMBEDDED:
        source = str(embedded.DEPTH)
    if not Path(source).exists() and source.count("/") != 1:
        raise InputError(f"{source}: no such folder, and no hub id, which reads owner/name")
    if Path(source).exists() and not (Path(source) / "config.json").is_file():
        raise InputError(f"{source}: no config.json there; give the folder of a transformers Depth Anything model")
    where = {"revision": revision, "cache_dir": cache_dir}
    try:
        config = DepthAnythingConfig.get_config_dict(source, **where)[0]
        if config.get("model_type") != "depth_anything":
            raise InputError(f"{source}: a {config.get('model_type')!r} model, not a Depth Anything (depth_anything)")
        model, report = _quietly(source, variant=variant, **where)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = one_line(error, 300)
        raise InputError(f"{source}: cannot be loaded as Depth Anything ({type(error).__name__}: {reason})") from error
    # no input ever reaches the mask token: converted checkpoints leave it out
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("mask_token"))
    if missing or report["mismatched_keys"]:
        named = ", ".join([*missing, *(str(key) for key in report["mismatched_keys"])][:3])
        raise InputError(f"{source}: the weights do not fit the model: missing or of another shape are {named}, …")
    if max_depth is not None:
        set_max_depth(model, max_depth)
    return model


def _quietly(source: str, **options) -> tuple[DepthAnythingForDepthEstimation, dict]:
    """``from_pretrained`` in fp32 with its loading report, without transformers' progress bar."""
    expect_hub(source)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return DepthAnythingForDepthEstimation.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **options
        )
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def small_depth_anything(max_depth: int) -> DepthAnythingForDepthEstimation:
    """The embedded base's architecture with fresh weights: a metric Depth Anything for 64 x 64 pixels, 1.7M values."""
    backbone = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        out_indices=[2, 3, 5, 6],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=8,
        reassemble_hidden_size=128,
        neck_hidden_sizes=[32, 64, 128, 128],
        fusion_hidden_size=32,
        head_hidden_size=16,
        depth_estimation_type="metric",
        max_depth=max_depth,
    )
    return DepthAnythingForDepthEstimation(config)


def is_metric(model: DepthAnythingForDepthEstimation) -> bool:
    """Whether the model predicts metres (else inverse depth up to scale and shift)."""
    return model.config.depth_estimation_type == "metric"


def require_metric(model: DepthAnythingForDepthEstimation, source: str, loss: str) -> None:
    """Refuse a relative checkpoint where metres are needed, and say what can be done."""
    if not is_metric(model):
        raise InputError(
            f"{source} is a relative checkpoint (inverse depth without scale), but the loss {loss!r} is in metres: "
            "give --max_depth (10 indoors, 80 outdoors) to turn its head into a metric one, start from a metric "
            "checkpoint, or train with --loss ssi"
        )


def set_max_depth(model: DepthAnythingForDepthEstimation, max_depth: int) -> None:
    """Give the model a metric head that reaches ``max_depth`` metres.

    A metric head keeps its weights; its last bias moves by ``-log(max_depth / old)``, which keeps the odds of the
    sigmoid in proportion to metres: depths that are small against the old range stay what they were, and what
    saturated at the old range opens towards the new one. A relative head's last layer starts anew, at the same depth
    everywhere (0.27 max_depth), and has to be trained.
    """
    if max_depth < 1 or max_depth != int(max_depth):
        raise InputError(f"max_depth is {max_depth!r}, but must be a whole number of metres, at least 1")
    head, config = model.head, model.config
    with torch.no_grad():
        if is_metric(model):
            head.conv3.bias -= math.log(max_depth / head.max_depth)
        else:
            head.conv3.weight.zero_()
            head.conv3.bias.fill_(-1.0)
            head.activation2 = nn.Sigmoid()
    config.depth_estimation_type, config.max_depth, head.max_depth = "metric", int(max_depth), int(max_depth)


def depth_adaptation(model: DepthAnythingForDepthEstimation, train_head: bool = False) -> Adaptation:
    """What the paper adapts: every linear of the encoder's blocks; neck and head stay frozen.

    ViT-L: 144 layers with q, k, v apart (96 fused), 221,184 values of b either way, 100,352 of norms.
    ``train_head`` has the three convolutions of the head (not the neck) trained whole besides.
    """
    linears = [
        name
        for name, module in model.named_modules()
        if name.startswith("backbone.encoder.") and isinstance(module, nn.Linear)
    ]
    norms = norms_with_parameters(model, prefix="backbone.")
    return Adaptation(target_modules=linears, norm_modules=norms, whole_modules=["head"] if train_head else [])


def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Depth (B, H, W) of images (B, 3, H, W) in [0, 1]; H and W multiples of the patch size; metres if metric."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return model(pixel_values=(images - mean) / std).predicted_depth
