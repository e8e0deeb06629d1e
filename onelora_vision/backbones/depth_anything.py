"""Depth Anything v1 and v2 in transformers: what is adapted, and what the ``max_depth`` of its head means.

A metric checkpoint ends in ``max_depth * sigmoid(z)``, in metres. A relative one ends in ``relu(z)``, inverse depth up
to scale and shift, which cannot be used with a loss in metres. `set_max_depth` turns either into a metric head with a
given range.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from onelora_vision.backbones.base import Adaptation
from onelora_vision.backbones.depth import DepthBase, encoder_adaptation
from onelora_vision.errors import InputError


@dataclass(kw_only=True)
class DepthAnythingBase(DepthBase):
    """Depth Anything v1 or v2, metric or relative. Its images are normalised as for ImageNet."""

    model: DepthAnythingForDepthEstimation

    model_class, config_class, kind = DepthAnythingForDepthEstimation, DepthAnythingConfig, "Depth Anything"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    unused_weights = ("mask_token",)
    encoder, norms = "backbone.encoder.", "backbone."

    @property
    def is_metric(self) -> bool:
        return self.model.config.depth_estimation_type == "metric"

    @property
    def max_depth(self) -> int | None:
        return self.model.config.max_depth if self.is_metric else None

    def set_max_depth(self, max_depth: int) -> None:
        """See the function `set_max_depth`."""
        set_max_depth(self.model, max_depth)

    @property
    def image_size(self) -> int:
        return self.model.config.backbone_config.image_size

    def host_options(self) -> dict:
        return {"max_depth": self.max_depth, "depth_estimation_type": "metric"} if self.changed else {}


def small_depth_anything(max_depth: int) -> DepthAnythingForDepthEstimation:
    """The embedded base's architecture with fresh weights: a metric Depth Anything, 64 x 64 pixels, 1.7M parameters."""
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


def set_max_depth(model: DepthAnythingForDepthEstimation, max_depth: int) -> None:
    """Give the model a metric head up to ``max_depth`` metres.

    A metric head keeps its weights, and its last bias changes by ``-log(max_depth / old)``. This keeps the odds of the
    sigmoid proportional to metres: depths that are small compared to the old range stay the same, and depths that
    saturated at the old range extend towards the new one. The last layer of a relative head is reset to predict the
    same depth everywhere (0.27 max_depth), and has to be trained.

    Raises:
        InputError: ``max_depth`` is not a positive integer.
    """
    if max_depth < 1 or max_depth != int(max_depth):
        raise InputError(f"max_depth is {max_depth!r}, but must be a whole number of metres, at least 1")
    head, config = model.head, model.config
    with torch.no_grad():
        if config.depth_estimation_type == "metric":
            head.conv3.bias -= math.log(max_depth / head.max_depth)
        else:
            head.conv3.weight.zero_()
            head.conv3.bias.fill_(-1.0)
            head.activation2 = nn.Sigmoid()
    config.depth_estimation_type, config.max_depth, head.max_depth = "metric", int(max_depth), int(max_depth)


def depth_adaptation(model: DepthAnythingForDepthEstimation, train_head: bool = False) -> Adaptation:
    """The layers that the paper adapts: every linear of the encoder's blocks. Neck and head stay frozen.

    ViT-L: 144 layers with separate q, k, v (96 fused), with 221,184 parameters of b either way and 100,352 of norms.
    ``train_head`` additionally trains the three convolutions of the head (not the neck) whole.
    """
    return encoder_adaptation(model, DepthAnythingBase.encoder, DepthAnythingBase.norms, train_head)
