"""Preprocessing of images for diffusion models: square crops at the model's resolution, in [0, 1]."""

from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class SquareCrop:
    """Transform a Pillow image to a tensor (3, resolution, resolution) in [0, 1].

    The image is halved with a box filter as long as its short side is at least twice the resolution, and then resized
    bicubically so its short side equals the resolution. This preprocessing of ADM (arXiv 2105.05233) and DiT preserves
    fine texture better than a single large resize. The crop is central or random. Randomness comes from torch's global
    generator, which `ClassImageDataset` seeds for each sample.
    """

    resolution: int
    center_crop: bool = True
    random_flip: bool = False

    def __call__(self, image: Image.Image) -> torch.Tensor:
        image = self.prepare(image)
        left, top = (side - self.resolution for side in image.size)
        share = (0.5, 0.5) if self.center_crop else torch.rand(2).tolist()
        left, top = round(left * share[0]), round(top * share[1])
        image = image.crop((left, top, left + self.resolution, top + self.resolution))
        if self.draw_flip():
            image = F.horizontal_flip(image)
        return F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)

    def prepare(self, image: Image.Image) -> Image.Image:
        """Resize the short side to the resolution, without randomness. Applied again, it changes nothing."""
        return _short_side(image, self.resolution)

    def draw_flip(self) -> bool:
        """Draw whether to mirror a sample, the only random choice with a centred crop. Cached latents use it, too."""
        return self.random_flip and torch.rand(()).item() < 0.5

    def __str__(self) -> str:
        crop = "center crop" if self.center_crop else "random crop"
        return f"{crop} {self.resolution}, box halving + bicubic{', random flip' if self.random_flip else ''}"


def _short_side(image: Image.Image, resolution: int) -> Image.Image:
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = resolution / min(image.size)
    size = (max(resolution, round(image.width * scale)), max(resolution, round(image.height * scale)))
    return image.resize(size, resample=Image.Resampling.BICUBIC)
