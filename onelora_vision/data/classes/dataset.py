"""Images with their classes as a data set that training reads."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.stream import BadItems, SampleRef, SeededDataset


class ClassImageDataset(SeededDataset):
    """Transformed images with their labels, indexed by `SampleRef`.

    An item is ``{"image": transform(picture), "label": int, "seed": int, "index": int, "path": str}``. The transform
    runs under generators seeded by the reference, so that torchvision's and timm's random transforms, which draw from
    the global ones, depend on nothing else.

    Args:
        source: the images.
        transform: from a Pillow image to a float tensor (3, H, W).
        on_bad_image: "error" raises the `InputError` of an unreadable image; "skip" logs its name once and takes the
            next readable image instead, with that image's label and index. An evaluation that must not count the
            replacement counts each index once.
    """

    def __init__(
        self, source: ClassImages, transform: Callable[[Image.Image], torch.Tensor], on_bad_image: str = "error"
    ):
        self.source = source
        self.transform = transform
        self.on_bad_image = on_bad_image
        self._bad = BadItems(len(source), on_bad_image, f"{source.name}/{source.split}")

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    def identity(self) -> str:
        """`ClassImages.identity` of the source."""
        return self.source.identity()

    @property
    def num_bad_images(self) -> int:
        """How many unreadable images have been met so far, by this process and its loader's workers."""
        return self._bad.count

    def __len__(self) -> int:
        return len(self.source)

    def _item(self, ref: SampleRef, seed: Callable[[int], None]) -> dict[str, Any]:
        index, picture = self._bad.first_readable(ref.index, self.source.read)
        seed(ref.seed)
        image = self.transform(picture)
        label = int(self.source.labels[index])
        return {"image": image, "label": label, "seed": ref.seed, "index": index, "path": self.source.path(index)}
