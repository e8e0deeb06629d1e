"""Real images of the classes that an adapter learned, shown next to its drawings if there are any."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.images import IMAGE_EXTENSIONS, read_image
from onelora_vision.errors import InputError
from onelora_vision.storage.files import atomic_file

from .cards import picture_of
from .drawing import Picture
from .library import Entry
from .mix import Mix
from .trainings.images import SPLITS
from .trainings.run import DATA

PER_CLASS, MAX_CLASSES = 2, 16
_SIDE, _WIDE = 256, 1400  # pixels of an image, and of a sheet, at most
_DIGITS = ("embedded", "digits")  # what files call the built-in handwriting


@dataclass(frozen=True)
class RealImages:
    """Images that were not drawn.

    Attributes:
        text: where they are from, in words.
    """

    pictures: list[Picture]
    text: str


def real_images(mix: Mix, classes: Sequence[str], folder: Path) -> RealImages | None:
    """Real images of ``classes``, or else the picture in an adapter's folder; None if there is neither.

    The first adapter of the mix that has some counts. What a file says of its data opens nothing but the built-in
    handwriting.

    Args:
        folder: for copies of the images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for entry, _ in mix.terms:
        for find in (_sent, _built_in, _card):
            found = find(entry, classes[:MAX_CLASSES], folder)
            if found is not None and found.pictures:
                return found
    return None


def _sent(entry: Entry, classes: Sequence[str], folder: Path) -> RealImages | None:
    """Images that were uploaded for a training in this app."""
    if entry.source != "training":
        return None
    folders = _class_folders(entry.path.parents[1] / DATA)
    pictures = []
    for name in classes:
        files = sorted(folders[name].iterdir()) if name in folders else []
        for file in [file for file in files if file.suffix.lower() in IMAGE_EXTENSIONS][:PER_CLASS]:
            picture = _copy(file, folder, _SIDE)
            pictures += [Picture(picture, name)] if picture else []
    return RealImages(pictures, f"Real images, of those sent for {entry.name}")


def _class_folders(data: Path) -> dict[str, Path]:
    """The folder of each class, in the split for training where there are splits."""
    found = {path.name: path for path in data.iterdir() if path.is_dir()} if data.is_dir() else {}
    if found and set(found) <= set(SPLITS) and "train" in found:
        return {path.name: path for path in found["train"].iterdir() if path.is_dir()}
    return found


def _built_in(entry: Entry, classes: Sequence[str], folder: Path) -> RealImages | None:
    """Handwriting that no training on the built-in data has seen."""
    training = entry.adapter.info.extra.get("training")
    if not isinstance(training, dict) or training.get("dataset") not in _DIGITS:
        return None
    try:
        images = open_class_images("embedded", split="test")
    except InputError:  # not installed
        return None
    pictures = []
    for name in (name for name in classes if name in images.class_names):
        of_class = (images.labels == images.class_names.index(name)).nonzero()[0]
        for number, index in enumerate(of_class[:PER_CLASS].tolist()):
            place = folder / f"handwriting-{name}-{number}.png"
            pictures.append(Picture(_write(images.read(index), place), name))
    return RealImages(pictures, "Real handwriting, of the built-in test images")


def _card(entry: Entry, classes: Sequence[str], folder: Path) -> RealImages | None:
    """The picture that is in the adapter's own folder."""
    file = picture_of(entry.path)
    picture = file and _copy(file, folder, _WIDE)
    return RealImages([Picture(picture, file.name)], f"From the folder of {entry.name}") if picture else None


def _copy(file: Path, folder: Path, side: int) -> Path | None:
    """A copy of at most ``side`` pixels; None if the file is a link or cannot be read."""
    key = hashlib.sha256(f"{file} {file.lstat().st_mtime_ns}".encode()).hexdigest()[:16]
    if file.is_symlink():
        return None
    try:
        image = read_image(file)
    except (InputError, OSError):
        return None
    image.thumbnail((side, 2 * side))
    return _write(image, folder / f"{key}.png")


def _write(image: Image.Image, place: Path) -> Path:
    if not place.exists():
        with atomic_file(place) as temporary:
            image.save(temporary, format="png")
    return place
