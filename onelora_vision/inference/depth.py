"""Depth estimation by a base with an adapter."""

import numpy as np
import torch
from PIL import Image

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.depth import DepthBase
from onelora_vision.data.depth.dataset import InputSize, resized_image
from onelora_vision.metrics.depth import resized_depth


class DepthEstimator:
    """Estimates depth with an adapter, at the resolution that it was trained at.

    Attributes:
        base: the depth model with the adapter on its network.
        resolution: of the network's input, see `estimate_depth`.
    """

    def __init__(self, base: DepthBase, info: AdapterInfo):
        self.base, self.info, self.resolution = base, info, info.extra.get("resolution")

    @property
    def max_depth(self) -> int | None:
        """The model's maximum depth in metres; None for relative depth (inverse, without scale)."""
        return self.base.max_depth

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Depth (H, W) of an image at its original size, see `estimate_depth`."""
        return estimate_depth(self.base, image, self.resolution)


@torch.no_grad()
def estimate_depth(base: DepthBase, image: Image.Image, resolution: int | str | None = None) -> np.ndarray:
    """Depth (H, W) fp32 of an image at its original size: metres for a metric model, else inverse depth without scale.

    ``resolution`` is the size of the network's input as in training (default: the size that the network was made for).
    """
    size = InputSize.parse(base.resolution(resolution), base.patch_size)
    pixels = np.asarray(image.convert("RGB"))
    small = torch.from_numpy(resized_image(pixels, *size.of(*pixels.shape[:2]))).permute(2, 0, 1)[None]
    depth = base.depth(small.to(next(base.model.parameters()).device)).float()
    return resized_depth(depth, *pixels.shape[:2])[0].cpu().numpy()
