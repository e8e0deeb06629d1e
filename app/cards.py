"""What the card of an adapter shows: a thumbnail of its own pictures, and its main metric in plain words."""

import base64
import functools
import io
from collections.abc import Iterable
from pathlib import Path

from onelora_vision.data.images import read_image
from onelora_vision.errors import InputError
from onelora_vision.metrics.direction import higher_is_better, main_metric

PICTURES = ("samples.png", "pictures.png", "predictions.png")  # of an adapter's folder, the best first
_WIDTH, _HEIGHT = 420, 150  # of a thumbnail, at most
_WORDS = {
    "fd_": "distance to the real images",
    "fid": "distance to the real images",
    "kid_": "kernel distance to the real images",
    "top1": "right answers",
    "class_accuracy": "samples that show their class",
    "delta1": "depth within 25 % of the true one",
    "abs_rel": "relative error of the depth",
    "rmse": "error of the depth in metres",
    "nll": "surprise at the right answer",
}
_SHARES = ("top1", "class_accuracy", "delta1")  # from 0 to 1


def metric_in_words(task: str, metrics: Iterable[tuple[str, float | None, float]]) -> str:
    """The main metric before and after training, and which way is better; empty without metrics.

    Args:
        metrics: (name, before, after), as `library.Entry.facts` has them.
    """
    found = {name: (before, after) for name, before, after in metrics}
    name = main_metric(task, found)
    if name is None:
        return ""
    return in_words(name, *found[name])


def in_words(name: str, before: float | None, after: float | None) -> str:
    """A metric before and after training, and which way is better."""
    before, after = _number(name, before), _number(name, after)
    words = next((text for start, text in _WORDS.items() if name.startswith(start)), name.replace("_", " "))
    better = {True: ", higher is better", False: ", lower is better", None: ""}[higher_is_better(name)]
    return f"{words}: {f'{before} → ' if before else ''}{after}{better}"


def thumbnail(place: Path) -> str | None:
    """The picture of an adapter's folder, small, as a data URL; None if it has none that can be read."""
    file = picture_of(place)
    return None if file is None else small_copy(file, _WIDTH, _HEIGHT)


def picture_of(place: Path) -> Path | None:
    """The best picture in an adapter's folder, if there is one."""
    files = (place / name for name in PICTURES) if place.is_dir() else ()
    return next((file for file in files if file.is_file() and not file.is_symlink()), None)


def small_copy(file: Path, width: int, height: int) -> str | None:
    """The upper part of a picture at ``width``, as a data URL; None if it cannot be read."""
    return _small(file, width, height, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _small(file: Path, width: int, height: int, changed: int) -> str | None:
    try:
        image = read_image(file)
    except (InputError, OSError):
        return None
    image.thumbnail((width, 10 * width))
    buffer = io.BytesIO()
    image.crop((0, 0, image.width, min(image.height, height))).convert("RGB").save(buffer, "webp", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if name in _SHARES else f"{value:.3g}"


def is_wanted(row: dict, task: str, words: str) -> bool:
    """Whether a card is shown: it belongs to ``task`` (empty: any task), and its text contains each of ``words``."""
    said = " ".join(map(str, (row["name"], row["task"], row["method"], row["base"], *row["class_names"]))).lower()
    return task in ("", row["task"]) and all(word in said for word in words.lower().split())
