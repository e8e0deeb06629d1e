"""Opening datasets of images with classes by name: ``open_class_images("food101", folder, "test")``.

Importing this module is fast, so a command line knows the names, and the flags that have no effect with them, before it
imports torch.
"""

import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from onelora_vision.errors import InputError, MissingSplit, nearest

if TYPE_CHECKING:
    from onelora_vision.data.classes.images import ClassImages

#: Names of the built-in datasets: handwritten digits, and the glyphs that the embedded bases were trained on.
EMBEDDED, GLYPHS = "embedded", "glyphs"
SPLITS = ("train", "validation", "test")
_HUB_ONLY = frozenset({"image_column", "label_column", "cache_dir"})
_DECODED = frozenset({"on_bad_image", "cache_images"})  # no effect on pixels that are already in memory
_BUILTIN = _HUB_ONLY | _DECODED | {"data_dir", "download", "validation_fraction"}


class ClassFormat(NamedTuple):
    """How a dataset is opened.

    Attributes:
        open: called as ``open(root, split, download=…, seed=…)``.
        ignores: arguments of `open_class_images`, `open_training_images` and `ClassImageDataset` (and flags of the same
            names) that have no effect with it, and ``cache_images`` if its images are in memory anyway.
    """

    open: Callable[..., "ClassImages"]
    ignores: frozenset[str] = _HUB_ONLY


def _reader(module: str, function: str) -> Callable[..., "ClassImages"]:
    """A function of this package, imported when it is called."""

    def read(*args, **options) -> "ClassImages":
        return getattr(importlib.import_module(f"{__package__}.{module}"), function)(*args, **options)

    return read


FORMATS = {
    EMBEDDED: ClassFormat(_reader("builtin", "digits"), _BUILTIN),
    GLYPHS: ClassFormat(_reader("builtin", "glyphs"), _BUILTIN),
    "cifar10": ClassFormat(_reader("cifar", "cifar10"), _HUB_ONLY | _DECODED),
    "cifar100": ClassFormat(_reader("cifar", "cifar100"), _HUB_ONLY | _DECODED),
    "food101": ClassFormat(_reader("torchvision", "food101")),
    "flowers102": ClassFormat(_reader("torchvision", "flowers102"), _HUB_ONLY | {"validation_fraction"}),
    "oxford_iiit_pet": ClassFormat(_reader("torchvision", "oxford_iiit_pet")),
    "imagefolder": ClassFormat(_reader("folders", "imagefolder"), _HUB_ONLY | {"download"}),
    "webdataset": ClassFormat(_reader("webdataset", "webdataset"), _HUB_ONLY | {"download"}),
}
#: Benchmarks with several tasks, where each task is a dataset ``BENCHMARK/TASK``. Their ``open`` also takes ``task``.
BENCHMARKS = {
    name: ClassFormat(_reader(name, name), _HUB_ONLY | {"download", "validation_fraction"})
    for name in ("vtab", "fgvc")
}


def ignored_by(dataset_name: str) -> frozenset[str]:
    """The flags that have no effect with a dataset (`ClassFormat.ignores`); none with the `datasets` package."""
    found = format_of(dataset_name)
    return found.ignores if found else frozenset()


def needs_folder(dataset_name: str) -> bool:
    """Whether a dataset is one of ours and needs a folder."""
    found = format_of(dataset_name)
    return found is not None and "data_dir" not in found.ignores


def format_of(dataset_name: str) -> ClassFormat | None:
    """How one of our datasets is opened; None for the `datasets` package."""
    benchmark, _, task = dataset_name.partition("/")
    if benchmark in BENCHMARKS:
        found = BENCHMARKS[benchmark]
        return found._replace(open=functools.partial(found.open, task=task))
    return FORMATS.get(dataset_name)


def open_class_images(
    dataset_name: str,
    data_dir: str | os.PathLike | None = None,
    split: str = "train",
    *,
    download: bool = False,
    seed: int = 0,
    image_column: str = "image",
    label_column: str = "label",
    cache_dir: str | None = None,
) -> "ClassImages":
    """Open a dataset by name.

    Args:
        dataset_name: a key of `FORMATS` ("embedded", 5,000 MNIST digits, and "glyphs" need no folder), ``vtab/TASK`` or
            ``fgvc/NAME``, or the id or local folder of a dataset for the `datasets` package.
        data_dir: the dataset's folder or its parent. For imagefolder: a folder of class folders, or of train/ and test/
            (or val/) with class folders in them. For webdataset: a folder of tar files, or a pattern for their names.
        split: "train", "validation" (if the dataset has one in addition to its test split) or "test".
        download: download the dataset into ``data_dir`` if it is not there.
        seed: seed of the stratified split (80 % train, 20 % test) of an imagefolder or of tar files without splits.
        image_column, label_column: columns of a `datasets` dataset.
        cache_dir: download cache of `datasets`.

    Raises:
        MissingSplit: the dataset has no such split.
        InputError: the name is unknown, there is nothing at ``data_dir``, or a class has no images.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}{nearest(split, SPLITS, 'split')}")
    found = format_of(dataset_name)
    if found is None:
        columns = {"image_column": image_column, "label_column": label_column}
        from_hub = _reader("hub", "hub")
        images = from_hub(dataset_name, data_dir, split, download=download, seed=seed, cache_dir=cache_dir, **columns)
        return _with_images(images, split)
    if data_dir is None and needs_folder(dataset_name):
        raise InputError(f"dataset {dataset_name!r} needs --data_dir: the folder that it is in")
    return _with_images(found.open(Path(data_dir or "."), split, download=download, seed=seed), split)


def _with_images(found: "ClassImages", split: str) -> "ClassImages":
    if not len(found):
        raise MissingSplit(f"dataset {found.name}: its {split} split holds no images")
    return found


def open_training_images(
    dataset_name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    validation_fraction: float,
    seed: int = 0,
    **options,
) -> tuple["ClassImages", "ClassImages | None"]:
    """Open the images for training and for validation.

    The latter are the dataset's own validation split or, without one, ``validation_fraction`` of each class of the
    training split, drawn by ``seed``. They are None if that is 0, or if no class has two images. ``options`` are those
    of `open_class_images`.
    """
    opened = functools.partial(open_class_images, dataset_name, data_dir, seed=seed, **options)
    train = opened("train")
    try:
        return train, opened("validation")
    except MissingSplit:
        if validation_fraction == 0:
            return train, None
        rest, part = train.split_off(validation_fraction, split="validation", seed=seed)
        return rest, part if len(part) else None


def open_split(
    dataset_name: str, data_dir: str | os.PathLike | None = None, *, split: str, validation_fraction: float, **options
) -> "ClassImages":
    """Open one split, with ``validation_fraction`` held out as in `open_training_images` unless it is 0.

    Raises:
        MissingSplit, InputError: as in `open_class_images`.
    """
    if not validation_fraction or split == "test":
        return open_class_images(dataset_name, data_dir, split, **options)
    train, validation = open_training_images(
        dataset_name, data_dir, validation_fraction=validation_fraction, **options
    )
    if split == "validation" and validation is None:
        raise MissingSplit(f"dataset {train.name}: no class has two images, so none is held out")
    return train if split == "train" else validation
