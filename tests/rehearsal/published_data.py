"""The datasets that the recipes and the documentation name, in their published layouts, with a few random images or rows."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from data_layouts import (
    noise,
    save_image,
    write_cifar,
    write_diode,
    write_food101,
    write_kitti,
    write_nyu_frame,
    write_nyu_mat,
)
from recipe_steps import METAMATH
from tiny_benchmarks import write_fgvc, write_vtab

_RNG = np.random.default_rng(0)


def _food101(stage: Path, small: bool) -> None:
    names = ["sushi", "waffles", *(f"dish_{number}" for number in range(2 if small else 99))]
    write_food101(stage / "data", names, train=1, test=2 if small else 1, size=(384, 512))


def _cifar(name: str, classes: int) -> Callable[[Path, bool], None]:
    def add(stage: Path, small: bool) -> None:
        labels = 2 * list(range(classes))  # validation_fraction takes one of two
        pixels = np.stack([noise(32, 32, seed=number) for number in range(len(labels))])
        write_cifar(stage / "data", name, [f"thing_{number}" for number in range(classes)], labels, pixels)

    return add


def _vtab(stage: Path, small: bool) -> None:
    write_vtab(stage / "vtab-1k", ("caltech101", "eurosat"))


def _fgvc(stage: Path, small: bool) -> None:
    write_fgvc(stage / "fgvc", ("CUB_200_2011",))


def _nyu(stage: Path, small: bool) -> None:
    """The folders of the Eigen split, and the labelled .mat file in ``nyu_mat``."""
    for split in ("train", "test"):
        for number in range(2):
            millimetres = _RNG.integers(700, 9500, (480, 640))
            write_nyu_frame(stage / "nyu" / split / "kitchen", number, noise(480, 640, number), millimetres, "jpg")
    images, depths = np.stack([noise(480, 640, number) for number in range(4)]), _RNG.uniform(0.7, 9.9, (4, 480, 640))
    write_nyu_mat(stage / "nyu_mat", images, depths.astype(np.float32), train=[0, 2], test=[1, 3])


def _kitti(stage: Path, small: bool) -> None:
    for split in ("train", "test"):
        depths = [_RNG.integers(0, 79 * 256, (375, 1242)) for _ in range(2)]
        write_kitti(stage / "kitti", split, [noise(375, 1242, number) for number in range(2)], depths)


def _diode(stage: Path, small: bool) -> None:
    for split in ("train", "val"):
        for number in range(2):
            folder = stage / "diode" / split / "outdoor" / "scene_00022" / "scan_00193"
            depth = _RNG.uniform(2, 79, (768, 1024, 1)).astype(np.float32)
            mask = (_RNG.random((768, 1024)) > 0.2).astype(np.float32)
            write_diode(folder, f"00022_00193_outdoor_{number:03d}", noise(768, 1024, number), depth, mask)


def _pictures(stage: Path, small: bool) -> None:
    """A reader's own images in class folders, and two without classes."""
    for number, name in enumerate(("ice_cream", "breakfast")):
        for image in range(4):
            save_image(stage / "my-images" / name / f"{image}.jpg", noise(300, 400, 10 * number + image))
    for image in range(2):
        save_image(stage / "pictures" / f"{image}.png", noise(480, 640, image))


def _metamath(stage: Path, small: bool) -> None:
    """MetaMathQA's file: enough rows for the recipes' 0.5 % of those to train on to be one."""
    rows = []
    for number in range(160):
        apples, bought = 3 + number % 40, 2 + number % 7
        question = (
            f"Mia has {apples} apples and buys {bought} bags of {number % 5 + 1} apples each. How many does she have?"
        )
        total = apples + bought * (number % 5 + 1)
        answer = (
            f"The bags hold {bought} * {number % 5 + 1} = {total - apples} apples.\nWith the {apples} that she has, these "
            f"are {apples} + {total - apples} = {total} apples.\n#### {total}\nThe answer is: {total}"
        )
        rows.append({"type": "GSM_AnsAug", "query": question, "original_question": question, "response": answer})
    (stage / METAMATH).write_text(json.dumps(rows, indent=4))


#: Called with the folder of the rehearsal, and whether it is a small one.
DATA: dict[str, Callable[[Path, bool], None]] = {
    "food101": _food101,
    "cifar10": _cifar("cifar10", 10),
    "cifar100": _cifar("cifar100", 100),
    "vtab": _vtab,
    "fgvc": _fgvc,
    "nyu": _nyu,
    "kitti": _kitti,
    "diode_outdoor": _diode,
    "pictures": _pictures,
    METAMATH: _metamath,
}
