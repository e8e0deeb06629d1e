"""The dataset of transformed images and their classes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.decoded import PICTURE, DecodedArrays, decode_all
from onelora_vision.data.stream import BadItems, SampleRef, SeededDataset


class ClassImageDataset(SeededDataset):
    """Transformed images with their labels, indexed by `SampleRef`.

    An item is ``{"image": transform(picture), "label": int, "seed": int, "index": int, "path": str}``. The global
    generators are seeded by the reference before the transform runs. The random transforms of torchvision and timm draw
    from them, and so depend on nothing else.

    Args:
        source: the images.
        transform: maps a Pillow image to a float tensor (3, H, W).
        on_bad_image: "error" raises the `InputError` of an unreadable image; "skip" logs its name once and uses the
            next readable image instead, with that image's label and index. To exclude replacements, an evaluation
            counts each index once.
    """

    def __init__(
        self, source: ClassImages, transform: Callable[[Image.Image], torch.Tensor], on_bad_image: str = "error"
    ):
        self.source = source
        self.transform = transform
        self.on_bad_image = on_bad_image
        self._bad = BadItems(len(source), on_bad_image, f"{source.name}/{source.split}")
        self._decoded: DecodedArrays | None = None

    def keep_decoded(self, hidden: bool = False) -> None:
        """Decode all images into memory shared by a loader's workers. Items stay the same, bit for bit.

        If the transform has a method ``prepare(picture)``, it is applied to each picture first, and must change nothing
        when the transform applies it again. Unreadable images are handled on access, as without this.

        Args:
            hidden: show no progress bar.

        Raises:
            InputError: the images need more memory than is available.
        """
        prepare = getattr(self.transform, "prepare", lambda picture: picture)
        name = f"{self.source.name}/{self.source.split}"

        def read(index: int) -> tuple[np.ndarray]:
            return (np.asarray(prepare(self.source.read(index))),)

        self._decoded = decode_all(read, len(self), PICTURE, name, hidden)

    def _read(self, index: int) -> Image.Image:
        kept = self._decoded[index] if self._decoded else None
        return self.source.read(index) if kept is None else Image.fromarray(kept[0])

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    def identity(self) -> str:
        """`ClassImages.identity` of the source."""
        return self.source.identity()

    @property
    def num_bad_images(self) -> int:
        """The number of unreadable images found so far, by this process and its loader's workers."""
        return self._bad.count

    def __len__(self) -> int:
        return len(self.source)

    def _item(self, ref: SampleRef, seed: Callable[[int], None]) -> dict[str, Any]:
        index, picture = self._bad.first_readable(ref.index, self._read)
        seed(ref.seed)
        image = self.transform(picture)
        label = int(self.source.labels[index])
        return {"image": image, "label": label, "seed": ref.seed, "index": index, "path": self.source.path(index)}
