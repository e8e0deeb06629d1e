"""A classifier's predictions for single images, before and after training, with errors highlighted."""

import os
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from onelora_vision.errors import one_line
from onelora_vision.plots.figures import saved_figure

CELL = 128  # pixels
_COLUMNS, _DPI, _LINE, _GAP = 6, 96, 17, 14
_RIGHT, _WRONG = "#1a7f37", "#c62828"


class Answer(NamedTuple):
    """The class that a classifier predicted for an image, whether it is correct, and its confidence (0 to 1)."""

    name: str
    is_right: bool
    confidence: float


class Judged(NamedTuple):
    """An image with its true class and two predictions."""

    image: Image.Image
    truth: str
    base: Answer
    adapted: Answer


def save_predictions(path: str | os.PathLike, cells: Sequence[Judged], caption: str = "") -> None:
    """Write a PNG of images with their true classes and both predictions; wrong ones are red and marked with a cross.

    The frame of an image has the colour of the adapted model's prediction.
    """
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    step, pitch = CELL + _GAP + 44, CELL + 3 * _LINE + _GAP
    width = max(columns * step + _GAP, 420)
    lines = [line for part in caption.splitlines() for line in textwrap.wrap(part, width // 7)]
    height = rows * pitch + _GAP + _LINE * len(lines)
    with saved_figure(path, (width / _DPI, height / _DPI), _DPI) as figure:
        figure.set_layout_engine("none")

        def write(x: float, y: float, text: str, color: str, points: float = 8.5, align: str = "left") -> None:
            place = {"ha": align, "va": "center", "fontsize": points, "parse_math": False}
            figure.text(x / width, 1 - y / height, text, color=color, **place)

        for number, cell in enumerate(cells):
            left, top = _GAP + number % columns * step, _GAP + number // columns * pitch
            axes = figure.add_axes((left / width, 1 - (top + CELL) / height, CELL / width, CELL / height))
            axes.imshow(_square(cell.image), interpolation="nearest", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=_RIGHT if cell.adapted.is_right else _WRONG, linewidth=2)
            write(left, top + CELL + 0.7 * _LINE, f"truth: {one_line(cell.truth, 16)}", "#222222")
            for line, (title, answer) in enumerate((("base", cell.base), ("adapted", cell.adapted)), start=1):
                text = (
                    f"{'✓' if answer.is_right else '✗'} {title}: {one_line(answer.name, 10)} {answer.confidence:.0%}"
                )
                write(left, top + CELL + (line + 0.7) * _LINE, text, _RIGHT if answer.is_right else _WRONG)
        for number, line in enumerate(lines):
            write(width / 2, rows * pitch + _GAP / 2 + (number + 0.5) * _LINE, line, "#555555", 8, "center")


def _square(image: Image.Image) -> np.ndarray:
    """The whole image as ``CELL`` x ``CELL`` pixels on white; small ones are enlarged without smoothing."""
    image = image.convert("RGB")
    factor = CELL // max(image.size)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    method = Image.Resampling.BOX if max(image.size) > CELL else Image.Resampling.NEAREST
    return np.asarray(ImageOps.pad(image, (CELL, CELL), method, color="white"))
