"""Images as a diffusion model is trained on them: cropped square, at the model's resolution, in [0, 1]."""

from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F


@dataclass(frozen=True)
class SquareCrop:
    """From a Pillow image to a tensor (3, resolution, resolution) in [0, 1].

    The image is first halved with a box filter while its short side is at least twice the resolution, then resized
    bicubically until its short side is the resolution: the preprocessing of ADM (arXiv 2105.05233) and of DiT, which
    keeps fine texture better than one large resize. The crop is the centre, or a random square. Randomness comes from
    torch's global generator, which `ClassImageDataset` seeds for each sample.
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
        """The image with its short side at the resolution, which nothing random is in; a second time, it stays as it is."""
        return _short_side(image, self.resolution)

    def draw_flip(self) -> bool:
        """Whether to mirror this sample: with a centred crop the one random choice, also where latents are cached."""
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
