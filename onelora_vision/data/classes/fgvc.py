"""FGVC, the five fine-grained datasets of VPT (arXiv 2203.12119), in the layout of its released splits.

Each dataset has a folder with ``train.json``, ``val.json`` and ``test.json``, which map image paths to classes.
"""

import re
from pathlib import Path

from onelora_vision.data.classes.images import ClassImages, class_numbers
from onelora_vision.data.images import list_folders, shown
from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.storage.safetensors_file import parse_json
from onelora_vision.storage.textfiles import file_below, read_text

#: The datasets in the order of published tables, and the subfolder that each one's image paths are relative to.
DATASETS = {
    "CUB_200_2011": "images",
    "NABirds": "images",
    "OxfordFlowers": "",
    "StanfordDogs": "Images",
    "StanfordCars": "",
}
_LISTS = {"train": "train.json", "validation": "val.json", "test": "test.json"}
_MOST_BYTES = 64 << 20  # NABirds' lists have 3 MB


def fgvc(root: Path, split: str, *, task: str, download: bool, seed: int) -> ClassImages:
    """Open one of the `DATASETS`. ``root`` is its folder or the parent of its folder.

    Classes are the sorted numbers or names in the training split.

    Raises:
        InputError: the dataset, folder or list does not exist, or a list is not JSON of paths and classes, or names a
            file outside the dataset's folder or a class that is not in the training split.
    """
    name = next((known for known in DATASETS if _plain(known) == _plain(task)), None)
    if name is None:
        raise InputError(f"fgvc/{task}: no such dataset{nearest(task, DATASETS, 'dataset')}")
    folder = _folder_of(root, name)
    if folder is None:
        raise InputError(f"{shown(root)}: no folder {name} with train.json in it, so fgvc/{name} is not there")
    classes = sorted({*_classes_in(folder / _LISTS["train"]).values()})
    found = _classes_in(folder / _LISTS[split])
    labels = class_numbers([*found.values()], classes, shown(folder / _LISTS[split]))
    images = [str(file_below(folder / DATASETS[name], path)) for path in found]
    return ClassImages(images, labels, [shown(str(known)) for known in classes], name=f"fgvc/{name}", split=split)


def tasks_in(root: Path) -> list[str]:
    """The datasets found in ``root``, in the order of `DATASETS`."""
    return [name for name in DATASETS if _folder_of(root, name)]


def _folder_of(root: Path, name: str) -> Path | None:
    """Find a dataset's folder, ignoring case, hyphens, underscores and a plural s: ``Stanford-cars``, ``nabirds``."""
    places = [root / folder for folder in list_folders(root)] + [root.resolve()]
    named = (place for place in places if _plain(place.name) == _plain(name))
    return next((place for place in named if (place / _LISTS["train"]).is_file()), None)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower().removesuffix("s")


def _classes_in(path: Path) -> dict[str, int] | dict[str, str]:
    """Read the class of each image in a list.

    Raises:
        InputError: see `fgvc`.
    """
    name = shown(path)
    if path.is_file() and path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{name}: over {_MOST_BYTES >> 20} MiB, too large for a list of images")
    try:
        found = parse_json(read_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{name}: not JSON ({one_line(error)})") from None
    if not isinstance(found, dict) or not found:
        raise InputError(f"{name}: expected an object of image paths and their classes")
    kinds = {type(value) for value in found.values()}
    if not (kinds == {int} or kinds == {str}):
        raise InputError(f"{name}: the classes are neither all whole numbers nor all names")
    return found
