"""Pictures for people: grids of samples with their classes named, and samples that say how they were drawn."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from onelora_vision.errors import InputError, one_line
from onelora_vision.plots.figures import saved_figure
from onelora_vision.storage.files import atomic_file
from onelora_vision.storage.outputs import MARK, NOTE_PREFIX

MIN_CELL = 96  # pixels; smaller images are enlarged, without smoothing, so that their own pixels show


def save_marked(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write pixels (H, W) or (H, W, 3) as a PNG to look at, which never counts as a sample or as data."""
    text = PngInfo()
    text.add_text("Software", MARK)
    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="png", pnginfo=text)


def save_sample(path: str | os.PathLike, image: torch.Tensor, notes: Mapping[str, str]) -> None:
    """Write an image (3, H, W) in [0, 1] as a PNG whose text fields ``onelora.<key>`` hold ``notes``."""
    pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    text = PngInfo()
    text.add_text("Software", MARK)
    for key, value in notes.items():
        text.add_itxt(f"{NOTE_PREFIX}{key}", value)
    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="png", pnginfo=text)


def read_notes(path: str | os.PathLike) -> dict[str, str]:
    """The notes of a PNG that `save_sample` wrote; its pixels are not decoded.

    Raises:
        InputError: no PNG, or one without notes.
    """
    name = os.path.basename(path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            fields = {key: value for key, value in image.info.items() if isinstance(key, str)}
    # Pillow's decoder answers broken files with OSError, SyntaxError, ValueError and more.
    except Exception as error:
        raise InputError(f"{name}: cannot be read as a PNG ({one_line(error, 100)})") from error
    notes = {key.removeprefix(NOTE_PREFIX): str(v) for key, v in fields.items() if key.startswith(NOTE_PREFIX)}
    if not notes:
        raise InputError(f"{name}: this PNG does not say how it was drawn; take one as it was saved, not a screenshot")
    return notes


def tile(images: torch.Tensor, columns: int, gap: int = 2) -> torch.Tensor:
    """One image (3, H', W') of images (N, 3, H, W) in [0, 1], row by row, with white gaps."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(c, rows * (h + gap) - gap, columns * (w + gap) - gap)
    for index, image in enumerate(images):
        top, left = index // columns * (h + gap), index % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


def save_comparison(
    path: str | os.PathLike, panels: Mapping[str, torch.Tensor], row_names: Sequence[str], caption: str = ""
) -> None:
    """Write a PNG of panels side by side, one row per class.

    Args:
        panels: title -> images (rows, columns, 3, H, W) in [0, 1], the same number of rows in each.
        row_names: one per row.
        caption: a line below, such as how the samples were made.
    """

    first = next(iter(panels.values()))
    rows, columns, _, height, _ = first.shape
    cell = max(height, MIN_CELL) / 96  # inches at 96 dpi
    gap = max(1, height // 32)
    with saved_figure(path, (len(panels) * columns * cell + 1.2, rows * cell + 0.9), dpi=96) as figure:
        for axes, (title, images) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            sheet = tile(images.reshape(-1, *images.shape[2:]), columns, gap)
            axes.imshow(sheet.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set_title(title)
            axes.set_xticks([])
            axes.set_yticks([row * (height + gap) + height / 2 for row in range(rows)], row_names)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        if caption:
            figure.supxlabel(caption, fontsize=8, color="#555555")


def save_curves(
    path: str | os.PathLike, x: Sequence[float], curves: Mapping[str, Sequence[float]], xlabel: str, caption: str = ""
) -> None:
    """Write a PNG of curves over the same ``x``, each in a panel of its own with its name as the title."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    with saved_figure(path, (3 * columns, 2.4 * rows + 0.3)) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (name, values) in zip(panels, curves.items()):
            axes.plot(x, values, marker="o", color="#1f4e8c")
            axes.set(title=name, xlabel=xlabel)
            axes.grid(alpha=0.2)
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        if caption:
            figure.supxlabel(caption, fontsize=5, color="#555555", wrap=True)
