"""Benchmarks of a few noisy images, in the layouts that people have them in."""

import json

import numpy as np
from PIL import Image

COUNTS = {"train": 6, "val": 3, "test": 4}  # images of a split


def _write_image(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)


def write_vtab(root, tasks=("dtd", "kitti")):
    """Tasks of VTAB-1k, of three classes each."""
    rng = np.random.default_rng(0)
    for task in tasks:
        for name, count in zip(("train800", "val200", "test"), COUNTS.values()):
            paths = [f"images/{name}/{number} a.jpg" for number in range(count)]
            for path in paths:
                _write_image(root / task / path, rng)
            lines = "".join(f"{path} {number % 3}\n" for number, path in enumerate(paths))
            (root / task / f"{name}.txt").write_text(lines)
    return root


#: Folders as the README of VPT's splits names them, with the place of the images and the classes.
FGVC = {
    "CUB_200_2011": ("images", ["001", "020", "132"]),
    "nabirds": ("images", [295, 1008, 36]),
    "Stanford-cars": ("", [1, 2, 196]),
}


def write_fgvc(root, folders=("CUB_200_2011", "nabirds", "Stanford-cars")):
    """Datasets of FGVC, of three classes each."""
    rng = np.random.default_rng(0)
    for folder in folders:
        place, classes = FGVC[folder]
        for split, count in COUNTS.items():
            found = {f"{split}/{number}.jpg": classes[number % 3] for number in range(count)}
            for path in found:
                _write_image(root / folder / place / path, rng)
            (root / folder / f"{split}.json").write_text(json.dumps(found))
    return root
