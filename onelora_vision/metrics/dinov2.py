"""DINOv2 features for a Fréchet distance (Stein et al. 2023, arXiv 2306.04675), with timm."""

from pathlib import Path

import torch
from torch.nn import functional as F

from onelora_vision.errors import InputError, one_line
from onelora_vision.metrics.generative import Features, FeatureSet, weights_hash
from onelora_vision.metrics.inception import DOWNLOAD
from onelora_vision.storage.weights import read_weights

MODEL = "vit_large_patch14_dinov2.lvd142m"
SIDE = 224  # pixels


class DinoFeatures(Features):
    """The class token of DINOv2 ViT-L/14 at 224 pixels, or of another vision transformer in timm.

    Args:
        weights: the model's weights as published by timm on the hub (``model.safetensors``); "download" downloads them.
        model: its name in timm.

    Raises:
        InputError: no weights were given or found, they do not fit, or timm has no such transformer.
    """

    name = "dinov2"

    def __init__(self, weights: str | Path | None = None, model: str = MODEL):
        import timm

        if weights is None or not (weights == DOWNLOAD or Path(weights).is_file()):
            raise InputError(
                f"--fid_weights {weights}: no file; --fid_features dinov2 needs timm's weights of {model}: download "
                f"https://huggingface.co/timm/{model}/resolve/main/model.safetensors and give --fid_weights its path, "
                f"or --fid_weights {DOWNLOAD}"
            )
        try:
            self.model = timm.create_model(
                model,
                pretrained=True,
                pretrained_cfg_overlay=None if weights == DOWNLOAD else {"state_dict": read_weights(weights)},
                num_classes=0,
                img_size=SIDE,
                global_pool="token",
            )
        except InputError:
            raise
        except Exception as error:  # for unsuitable names and files, timm raises many kinds of errors
            reason = one_line(error, 300)
            raise InputError(f"{weights}: cannot be loaded into timm's {model} ({reason})") from error
        self.model.pretrained_cfg.pop("state_dict", None)  # otherwise it holds a second copy of the weights
        self.model.eval().requires_grad_(False)
        self.dim = self.model.num_features
        self.weights_hash = weights_hash(self.model)
        mean, std = (self.model.pretrained_cfg[key] for key in ("mean", "std"))
        self.mean, self.std = (torch.tensor(value)[:, None, None] for value in (mean, std))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> FeatureSet:
        device = next(self.model.parameters()).device
        images = (images * 255).round().to(device) / 255
        images = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
        return FeatureSet(self.model((images - self.mean.to(device)) / self.std.to(device)))
