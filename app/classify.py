"""The most probable classes of pictures by the base's own head and by each enabled adapter."""

import contextlib
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.vit import ViTBase, predict_classes
from onelora_vision.data.images import read_image, trimmed
from onelora_vision.data.synthetic.digits import HandwrittenDigits
from onelora_vision.errors import InputError
from onelora_vision.plots.pictures import save_sample
from onelora_vision.storage.files import atomic_file

from .bases import Bases
from .library import Entry
from .mix import Mix
from .pictures import readable
from .sessions import Session
from .strips import at_strengths

TOP = 5
MAX_PICTURES = 256


@dataclass(frozen=True)
class Answer:
    """The most probable classes of one picture by one model: (name, probability), most probable first."""

    model: str
    classes: list[tuple[str, float]]


class Classifier:
    """Classifies for sessions on the shared bases."""

    def __init__(self, bases: Bases):
        self.bases = bases

    def classify(self, session: Session, pictures: Sequence[Path], base: str = "") -> list[list[Answer]]:
        """For each picture, the answers of the base with its own head and of each enabled adapter alone, at its weight.

        Raises:
            InputError: no pictures, too many, or one that cannot be read.
        """
        if not pictures:
            raise InputError("choose a picture first, or take the example")
        if len(pictures) > MAX_PICTURES:
            raise InputError(f"{len(pictures)} pictures: at most {MAX_PICTURES} at a time")
        return self._answers(session, [_read(path) for path in pictures], base)

    def classify_readable(
        self, session: Session, pictures: Sequence[Path]
    ) -> tuple[list[Path], list[list[Answer]], list[str]]:
        """As `classify`, but pictures that cannot be read are left out: the others, their answers, and a message for each.

        Raises:
            InputError: no pictures, too many, or none that can be read.
        """
        found, refused = readable(pictures, MAX_PICTURES, _read)
        files, images = zip(*found)
        return list(files), self._answers(session, images), refused

    def _answers(self, session: Session, images: Sequence[Image.Image], base: str = "") -> list[list[Answer]]:
        mix = session.mix(ViTBase.task)
        own_head = Mix(AdapterInfo(ViTBase.task, "", mix.info.base))
        models = [("base", own_head), *((_title(*term), Mix.of([term], ViTBase.task)) for term in mix.terms)]
        views = [self.bases.view(model, base) for _, model in models]  # all before the first is used
        is_one = len(images) == 1  # what a change of weights is answered with
        with session.pace.timed(mix) if is_one else contextlib.nullcontext():
            columns = [
                [Answer(title, classes) for classes in predict_classes(view, images, top=TOP)]
                for (title, _), view in zip(models, views)
            ]
        return [list(row) for row in zip(*columns)]

    def strip(self, session: Session, name: str, picture: Path | None) -> list[Answer]:
        """The answers for one picture of one adapter at each of `app.strips.STRENGTHS`.

        Raises:
            InputError: no picture, or an adapter that has no other weights.
        """
        if picture is None:
            raise InputError("choose a picture first, or take the example")
        images, mixes = [_read(picture)], at_strengths(session.alone(name))
        views = [self.bases.view(mix) for _, mix in mixes]
        return [Answer(title, predict_classes(view, images, top=TOP)[0]) for (title, _), view in zip(mixes, views)]


def _read(picture: Path) -> Image.Image:
    return trimmed(read_image(picture), str(picture))


def _title(entry: Entry, weight: float) -> str:
    return entry.name + (f" × {weight:g}" if weight != 1 else "")


def write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[Answer]]) -> Path:
    """Write the answers as CSV: a line per picture, model and class, most probable first, with its probability."""
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "model", "rank", "class", "probability"])
        for name, answers in zip(names, rows, strict=True):
            for answer in answers:
                for rank, (label, share) in enumerate(answer.classes, start=1):
                    writer.writerow([name, answer.model, rank, label, f"{share:.6f}"])
    return path


def write_examples(folder: Path, labels: Sequence[int] = (4, 2, 7)) -> list[Path]:
    """Handwritten digits that no training has seen, one of each label."""
    images, paths = HandwrittenDigits("test"), []
    items = [images[index] for index in range(len(images))]
    for label in labels:
        image = next(item["image"] for item in items if item["label"] == label)
        paths.append(folder / f"handwriting-{len(paths) + 1}.png")
        save_sample(paths[-1], image, {"class": str(label)})
    return paths
