"""Datasets with a folder of images for each class."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from onelora_vision.data.classes.images import ClassImages, stratified_split
from onelora_vision.data.images import list_folders, list_images, shown
from onelora_vision.data.paths import Paths
from onelora_vision.errors import InputError, MissingSplit, nearest


def imagefolder(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """Open class folders, either in train/ and test/ (or val/), or split by ``seed``."""
    folders = {folder.lower(): folder for folder in list_folders(root)}
    if "train" not in folders:
        return stratified_split(_class_folders(root, "train"), split, seed)
    wanted = {
        "train": ("train",),
        "validation": ("val", "valid", "validation") if "test" in folders else (),
        "test": ("test", "val", "valid", "validation"),
    }[split]
    there = next((folders[name] for name in wanted if name in folders), None)
    if there is None:
        raise MissingSplit(f"{shown(root)}: has train/ but no other folder that could be its {split} split")
    train_names = list_folders(root / folders["train"])
    class_names = None if split == "train" else train_names
    return replace(_class_folders(root / there, split, class_names), name=shown(root.name))


def _class_folders(root: Path, split: str, class_names: list[str] | None = None) -> ClassImages:
    """Open folders as classes. The training split needs images of every class.

    For other splits, ``class_names`` are those of the training split. Some of them may be missing, but there must be no
    others.
    """
    found = list_folders(root)
    names = found if class_names is None else class_names
    if not found:
        raise InputError(f"{shown(root)}: no class folders in it: one folder of images per class is needed")
    if unknown := sorted(set(found) - set(names)):
        raise InputError(
            f"{shown(root / unknown[0])}: no such class in the training split{nearest(unknown[0], names)}"
        )
    there, counts = set(found), []

    def paths() -> Iterator[str]:
        for name in names:
            images = list_images(root / name) if name in there else []
            if not images and class_names is None:
                raise InputError(f"{shown(root / name)}: class folder without images; add images or remove the folder")
            counts.append(len(images))
            yield from images

    images = Paths(paths())
    if not len(images):
        raise InputError(f"{shown(root)}: no images in its class folders")
    labels = np.repeat(np.arange(len(names)), counts)
    return ClassImages(images, labels, [shown(name) for name in names], shown(root.name), split)
