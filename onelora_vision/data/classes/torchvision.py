"""Datasets with lists of files that torchvision can download: Food-101, Flowers-102, Oxford-IIIT Pet."""

import os
from pathlib import Path

from onelora_vision.data.classes.images import ClassImages, class_numbers, require_split
from onelora_vision.data.images import shown
from onelora_vision.errors import InputError
from onelora_vision.storage.textfiles import read_lines


def food101(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """food-101/{images/<class>/<id>.jpg, meta/{train,test}.txt}."""
    require_split("food101", split, ("train", "test"))
    folder = _dataset_folder("food101", root, "food-101", "meta/train.txt", download, "Food101")
    lines = _lines(folder / "meta" / f"{split}.txt")
    class_names = sorted({line.split("/")[0] for line in _lines(folder / "meta" / "train.txt")})
    paths = [str(folder / "images" / f"{line}.jpg") for line in lines]
    labels = class_numbers([line.split("/")[0] for line in lines], class_names, f"food101/{split}")
    return _present("food101", split, paths, labels, class_names)


def flowers102(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """flowers-102/{jpg/image_<id>.jpg, imagelabels.mat, setid.mat}; train and validation hold 10 images per class."""
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    folder = _dataset_folder("flowers102", root, "flowers-102", "setid.mat", download, "Flowers102")
    ids = loadmat(folder / "setid.mat")[{"train": "trnid", "validation": "valid", "test": "tstid"}[split]].ravel()
    all_labels = loadmat(folder / "imagelabels.mat")["labels"].ravel()
    paths = [str(folder / "jpg" / f"image_{number:05d}.jpg") for number in ids]
    names = list(getattr(Flowers102, "classes", [str(number) for number in range(1, 103)]))
    return _present("flowers102", split, paths, [int(all_labels[number - 1]) - 1 for number in ids], names)


def oxford_iiit_pet(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """oxford-iiit-pet/{images/<Breed>_<id>.jpg, annotations/{trainval,test}.txt}.

    The lists have lines "name class species breed".
    """
    require_split("oxford_iiit_pet", split, ("train", "test"))
    folder = _dataset_folder(
        "oxford_iiit_pet", root, "oxford-iiit-pet", "annotations/trainval.txt", download, "OxfordIIITPet"
    )
    file = folder / "annotations" / "trainval.txt"
    breeds = {int(row[1]): _breed(row) for row in map(str.split, _lines(file))}
    if sorted(breeds) != list(range(1, len(breeds) + 1)):
        raise InputError(f"{shown(file)}: its classes are not numbered 1 to {len(breeds)}")
    class_names = [breeds[number] for number in sorted(breeds)]
    rows = [line.split() for line in _lines(file if split == "train" else file.with_name("test.txt"))]
    paths = [str(folder / "images" / f"{row[0]}.jpg") for row in rows]
    labels = class_numbers([_breed(row) for row in rows], class_names, f"oxford_iiit_pet/{split}")
    return _present("oxford_iiit_pet", split, paths, labels, class_names)


def _breed(row: list[str]) -> str:
    return row[0].rsplit("_", 1)[0]


def _dataset_folder(name: str, root: Path, base: str, landmark: str, download: bool, torchvision_name: str) -> Path:
    """The folder that holds ``landmark``: ``root`` or ``root/base``. With ``download``, torchvision fetches it."""
    for folder in (root, root / base):
        if (folder / landmark).is_file():
            return folder
    if not download:
        raise missing(name, root, f"{base}/{landmark}")
    download_by_torchvision(torchvision_name, root)
    return root / base


def download_by_torchvision(torchvision_name: str, root: Path) -> None:
    """Download and unpack a dataset with torchvision, which verifies it and does not touch an existing one."""
    import torchvision

    try:
        getattr(torchvision.datasets, torchvision_name)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{torchvision_name} cannot be fetched into {shown(root)}: {error}") from error


def missing(name: str, root: Path, looked_for: str) -> InputError:
    """The error for a dataset that is not in its folder."""
    return InputError(f"dataset {name}: not found in {shown(root)} (looked for {looked_for}); --download fetches it")


def _lines(file: Path) -> list[str]:
    return [line for line in read_lines(file) if line]


def _present(name: str, split: str, paths: list[str], labels: list[int], class_names: list[str]) -> ClassImages:
    """Open a dataset from a list of files, after checking that the first one exists: the images may be missing."""
    if not paths:
        raise InputError(f"dataset {name}: its list of {split} images is empty")
    if not os.path.isfile(paths[0]):
        raise InputError(f"dataset {name}: {shown(paths[0])} is listed but not there; is the dataset complete?")
    return ClassImages(paths, labels, class_names, name, split)
