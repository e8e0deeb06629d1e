"""Preprocessing of transformers bases: their own image processor, and the settings that training needs from it."""

from typing import Any

import torch
from PIL import Image

from onelora_vision.errors import InputError, listed, one_line

_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
# Raised by libraries for unusable settings: wrong types, unknown or contradictory values, missing packages.
_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)


class ProcessorTransform:
    """Inference transform of a transformers base: Pillow image -> (3, H, W), using the base's image processor."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return self.processor(images=picture, return_tensors="pt")["pixel_values"][0].float()


class ReversedChannels:
    """A transform that reverses the order of the channels (BGR)."""

    def __init__(self, transform: Any):
        self.transform = transform

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return self.transform(picture).flip(0)


def load_processor(base: str) -> Any | None:
    """Load the image processor of a transformers model; None if it has none.

    Raises:
        InputError: the processor cannot be loaded.
    """
    from transformers import AutoImageProcessor
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        ImageProcessingMixin.get_image_processor_dict(base)
    except OSError:
        return None
    try:
        return AutoImageProcessor.from_pretrained(base, trust_remote_code=False)
    except _ERRORS as error:
        raise InputError(f"{base}: its image processor cannot be loaded ({one_line(error, 300)})") from error


def measure(base: str, processor: Any) -> tuple[dict[str, Any], bool]:
    """Run a processor to find out its settings as a timm data config, and whether it reverses the channels.

    Raises:
        InputError: it does not return a single image (3, H, W) of the same size for every picture.
    """
    try:
        wide, tall = (dict(processor(images=Image.new("RGB", s), return_tensors="pt")) for s in ((96, 64), (64, 160)))
    except _ERRORS as error:
        raise InputError(f"{base}: its image processor takes no picture ({one_line(error, 300)})") from error
    if set(wide) != {"pixel_values"}:
        raise InputError(
            f"{base}: its image processor gives {listed(wide)}; only bases that take pixel_values alone can be trained"
        )
    shapes = [tuple(found["pixel_values"][0].shape) for found in (wide, tall)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][0] != 3:
        raise InputError(
            f"{base}: its image processor gives {shapes[0]} for one picture and {shapes[1]} for another; "
            "training needs images (3, H, W) of one size"
        )
    transform = ProcessorTransform(processor)
    black, white, red = (_centre(transform(Image.new("RGB", (64, 64), c))) for c in ("black", "white", "red"))
    is_reversed = bool(red[0] == black[0] and red[2] == white[2])
    std = 1 / (white - black)
    mean = -black * std
    if is_reversed:  # timm normalises before the channels are reversed
        mean, std = mean.flip(0), std.flip(0)
    config = {
        "input_size": shapes[0],
        "mean": _rounded(mean),
        "std": _rounded(std),
        "interpolation": _interpolation(processor),
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    return config, is_reversed


def plain_config(model_config: Any) -> dict[str, Any]:
    """timm data config for a transformers base without an image processor: images squashed to its size, in [-1, 1]."""
    height, width = image_size(model_config) or (224, 224)
    return {
        "input_size": (3, height, width),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


def image_size(config: Any) -> tuple[int, int] | None:
    """Height and width in pixels from a transformers config or the config of its vision tower; None without a size."""
    for part in (config, getattr(config, "vision_config", None), getattr(config, "backbone_config", None)):
        size = getattr(part, "image_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, (list, tuple)) and len(size) == 2:
            return tuple(size)
    return None


def _centre(image: torch.Tensor) -> torch.Tensor:
    return image[:, image.shape[1] // 2, image.shape[2] // 2].double()


def _rounded(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())  # digits that fp32 preserves


def _interpolation(processor: Any) -> str:
    number = getattr(processor, "resample", None)
    return _RESAMPLING[int(number)] if number is not None else "bilinear"
