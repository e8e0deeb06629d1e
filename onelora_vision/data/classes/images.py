"""Images with their classes, opened but not read, with seeded splits and subsets."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset

from onelora_vision.data.images import read_image, shown, to_rgb, trimmed
from onelora_vision.data.paths import Paths
from onelora_vision.data.tar_images import TarImages
from onelora_vision.errors import InputError, MissingSplit, listed
from onelora_vision.seeding import mix


@dataclass(frozen=True, eq=False)
class ClassImages:
    """Images and their classes, opened but not read.

    Attributes:
        images: `Paths` (lists of paths are converted), `TarImages`, or a sequence of Pillow images, read when indexed.
        labels: the class of each image as an index into ``class_names``, converted to an array (N,) of int32.
        class_names: one name per class.
        name: name of the dataset, for messages and cards.
        split: "train", "validation" or "test".
    """

    images: Sequence[str | os.PathLike | Image.Image]
    labels: Sequence[int] | np.ndarray
    class_names: list[str]
    name: str
    split: str

    def __post_init__(self):
        try:
            labels = np.asarray(self.labels, dtype=np.int64)
        except TypeError:  # a table with empty cells
            labels = np.array([-1 if label is None else label for label in self.labels], dtype=np.int64)
        if len(self.images) != len(labels):
            raise InputError(f"{self.name}/{self.split}: {len(self.images)} images but {len(labels)} labels")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise InputError(
                f"{self.name}/{self.split}: labels from {labels.min()} to {labels.max()} for "
                f"{len(self.class_names)} classes; images without a label cannot be used"
            )
        object.__setattr__(self, "labels", labels.astype(np.int32))  # frozen
        if isinstance(self.images, list) and all(isinstance(image, (str, os.PathLike)) for image in self.images):
            object.__setattr__(self, "images", Paths(self.images))

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The origin of image ``index``: its file, or the dataset's name, split and index."""
        if isinstance(self.images, TarImages):
            return self.images.path(index)
        return self.images[index] if isinstance(self.images, Paths) else f"{self.name}/{self.split}[{index}]"

    def identity(self) -> str:
        """A hash of class names, labels, and names of files with their folders, wherever the dataset is stored."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for index, label in enumerate(self.labels.tolist()):
            name = "/".join(self.path(index).split(os.sep)[-2:])
            digest.update(f"{name} {label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        """Read image ``index`` as upright RGB, `trimmed`. Raises an `InputError` with its name if it cannot be read."""
        image = self.images[index]
        picture = read_image(image) if isinstance(image, (str, os.PathLike)) else to_rgb(image)
        return trimmed(picture, shown(self.path(index)))

    def subset(self, indices: Sequence[int] | np.ndarray, split: str | None = None) -> "ClassImages":
        """Select the images at ``indices``, in that order, with all class names; ``split`` renames the split."""
        indices = np.asarray(indices, dtype=np.int64)
        files = isinstance(self.images, (Paths, TarImages))
        images = self.images.take(indices) if files else Picked(self.images, indices)
        return replace(self, images=images, labels=self.labels[indices], split=split or self.split)

    def joined(self, other: "ClassImages") -> "ClassImages":
        """Append the images of ``other``, which must have the same classes."""
        both = (self.images, other.images)
        if all(isinstance(images, Paths) for images in both):
            images = Paths(itertools.chain(*both))
        else:
            tars = all(isinstance(images, TarImages) for images in both)
            images = self.images.joined(other.images) if tars else ConcatDataset(both)
        return replace(self, images=images, labels=np.concatenate([self.labels, other.labels]))

    def drawn(self, count: int, seed: int = 0) -> "ClassImages":
        """Draw at most ``count`` of the images by ``seed``, keeping their order."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(np.sort(order[:count].numpy()))

    def few_shot(self, per_class: int, seed: int = 0) -> "ClassImages":
        """Draw ``per_class`` images of each class by ``seed``. Raises `InputError` if a class has fewer."""
        chosen = []
        for label, members in enumerate(self._by_class(seed)):
            if len(members) < per_class:
                name = self.class_names[label]
                raise InputError(
                    f"{self.name}/{self.split}: class {name!r} has {len(members)} images, not {per_class}"
                )
            chosen.append(members[:per_class])
        return self.subset(np.sort(np.concatenate(chosen)))

    def split_off(self, fraction: float, *, split: str, seed: int = 0) -> tuple["ClassImages", "ClassImages"]:
        """Split off ``fraction`` of each class, at least one image, and return (the rest, a part named ``split``).

        A class with a single image stays in the rest.
        """
        taken = np.zeros(len(self), dtype=bool)
        for members in self._by_class(seed):
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            taken[members[: max(count, 0)]] = True
        return self.subset(np.flatnonzero(~taken)), self.subset(np.flatnonzero(taken), split)

    def _by_class(self, seed: int) -> list[np.ndarray]:
        """The indices of each class, shuffled by (seed, class)."""
        order = np.argsort(self.labels, kind="stable")
        bounds = np.searchsorted(self.labels[order], np.arange(1, len(self.class_names)))
        groups = np.split(order, bounds)
        return [np.random.default_rng(mix(seed, k)).permutation(group) for k, group in enumerate(groups)]


class Picked(Sequence):
    """Selected entries of a sequence, read when indexed."""

    def __init__(self, images: Sequence, indices: np.ndarray):
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.images[int(self.indices[index])]


def encoded_or_picture(images: Sequence, index: int) -> bytes | Image.Image:
    """The bytes of a picture's file if ``images`` has a method ``encoded`` for them; otherwise, the picture itself."""
    if isinstance(images, Picked):
        return encoded_or_picture(images.images, int(images.indices[index]))
    return images.encoded(index) if hasattr(images, "encoded") else images[index]


class Pixels(Sequence):
    """Pictures from an array (N, H, W, 3) of bytes."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[index]))


def require_split(name: str, split: str, splits: tuple[str, ...]) -> None:
    """Raise `MissingSplit` if the dataset does not have the split."""
    if split not in splits:
        raise MissingSplit(f"dataset {name} has no {split} split of its own; it has {' and '.join(splits)}")


def class_numbers(classes: Sequence, class_names: Sequence, name: str) -> list[int]:
    """Convert each class to its position in ``class_names``, those of the training split.

    Raises:
        InputError: a class is not among them.
    """
    position = {class_name: index for index, class_name in enumerate(class_names)}
    if unknown := {str(found) for found in classes if found not in position}:
        raise InputError(f"{name}: no such class in the training split: {listed(unknown)}")
    return [position[found] for found in classes]


def stratified_split(images: ClassImages, split: str, seed: int) -> ClassImages:
    """Split a dataset without splits into 80 % (train) and 20 % (test) of each class, and return one of them."""
    require_split(images.name, split, ("train", "test"))
    train, test = images.split_off(0.2, split="test", seed=seed)
    if split == "test" and not len(test):
        raise InputError(
            f"{images.name}: no class has two images, so none is left for testing; add images or a test split"
        )
    return train if split == "train" else test
