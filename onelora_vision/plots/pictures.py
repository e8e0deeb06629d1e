"""Images for viewing: grids of samples with class names, and samples that store how they were generated."""

import os
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from onelora_vision.errors import InputError, one_line
from onelora_vision.plots.figures import saved_figure
from onelora_vision.storage.files import atomic_file
from onelora_vision.storage.outputs import MARK, NOTE_PREFIX

MIN_CELL, MAX_CELL = 112, 192  # pixels; smaller images are enlarged, larger ones shrunk
_LONGEST = 30_000  # pixels; matplotlib cannot draw images of 65,536
_MOST_LETTERS = 24
_DPI, _LINE, _GAP, _PANEL_GAP = 96, 20, 3, 18  # pixels


def save_marked(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write pixels (H, W) or (H, W, 3) as a PNG for viewing, which never counts as a sample or as data."""
    text = PngInfo()
    text.add_text("Software", MARK)
    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="png", pnginfo=text)


def save_sample(path: str | os.PathLike, image: torch.Tensor, notes: Mapping[str, str]) -> None:
    """Write an image (3, H, W) in [0, 1] as a PNG with ``notes`` in its text fields ``onelora.<key>``."""
    pixels = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
    text = PngInfo()
    text.add_text("Software", MARK)
    for key, value in notes.items():
        text.add_itxt(f"{NOTE_PREFIX}{key}", value)
    with atomic_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="png", pnginfo=text)


def read_notes(path: str | os.PathLike) -> dict[str, str]:
    """The notes of a PNG written by `save_sample`; its pixels are not decoded.

    Raises:
        InputError: not a PNG, or one without notes.
    """
    name = os.path.basename(path)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            fields = {key: value for key, value in image.info.items() if isinstance(key, str)}
    # Pillow's decoder raises OSError, SyntaxError, ValueError and more for broken files.
    except Exception as error:
        raise InputError(f"{name}: cannot be read as a PNG ({one_line(error, 100)})") from error
    notes = {key.removeprefix(NOTE_PREFIX): str(v) for key, v in fields.items() if key.startswith(NOTE_PREFIX)}
    if not notes:
        raise InputError(
            f"{name}: this PNG does not say how it was generated; use the original file, not a screenshot"
        )
    return notes


def tile(images: torch.Tensor, columns: int, gap: int = 2) -> torch.Tensor:
    """Tile images (N, 3, H, W) in [0, 1] into one image (3, H', W'), row by row, with white gaps."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = torch.ones(c, rows * (h + gap) - gap, columns * (w + gap) - gap)
    for index, image in enumerate(images):
        top, left = index // columns * (h + gap), index % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


def save_comparison(
    path: str | os.PathLike,
    panels: Mapping[str, torch.Tensor],
    row_names: Sequence[str],
    caption: str = "",
    column_names: Sequence[str] = (),
) -> None:
    """Write a PNG of panels side by side, one row per class.

    Every cell has the same size, chosen for the first panel: small images are enlarged without smoothing, so their
    pixels are visible, and large ones are shrunk.

    Args:
        panels: title -> images (rows, columns, 3, H, W) in [0, 1], the same number of rows in each; NaN is blank.
        row_names: one per row. column_names: one per column of each panel, if columns have a meaning.
        caption: lines at the bottom, such as how the samples were made.
    """
    shapes = [images.shape for images in panels.values()]
    height, width = _cell_size(*shapes[0][-2:], _LONGEST // max(shapes[0][0], sum(shape[1] for shape in shapes)))
    sheets = {title: _sheet(images, height, width) for title, images in panels.items()}
    names = [one_line(name, _MOST_LETTERS) if name else "" for name in row_names]
    scale = max(1.0, height / 128)  # of the text
    line_height, letter = round(_LINE * scale), round(7 * scale)
    left = 12 + (letter + 1) * max(map(len, names))
    top = line_height * (1 + bool(column_names)) + 8
    total_width = left + sum(sheet.shape[2] + _PANEL_GAP for sheet in sheets.values())
    lines = [line for part in caption.splitlines() for line in textwrap.wrap(part, max(20, total_width // letter))]
    sheet_height = next(iter(sheets.values())).shape[1]
    size = (total_width, top + sheet_height + line_height * len(lines) + 8)
    with saved_figure(path, (size[0] / _DPI, size[1] / _DPI), _DPI) as figure:
        figure.set_layout_engine("none")  # each pixel of a sheet becomes one pixel of the image

        def write(x: float, y: float, text: str, points: float = 9, **options) -> None:
            options = {"ha": "center", "va": "center", "parse_math": False, **options}
            figure.text(x / size[0], 1 - y / size[1], text, fontsize=scale * points, **options)

        for row, name in enumerate(names):
            write(left - 8, top + row * (height + _GAP) + height / 2, name, ha="right")
        x = left
        for title, sheet in sheets.items():
            panel = (x / size[0], 1 - (top + sheet_height) / size[1], sheet.shape[2] / size[0], sheet_height / size[1])
            axes = figure.add_axes(panel)
            pixels = (sheet.permute(1, 2, 0) * 255).round().byte().numpy()
            axes.imshow(pixels, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
            write(
                x + sheet.shape[2] / 2,
                line_height / 2 + 2,
                one_line(title, sheet.shape[2] // letter),
                10.5,
                weight="bold",
            )
            for column, name in enumerate(column_names):
                write(x + column * (width + _GAP) + width / 2, 1.5 * line_height + 2, one_line(name, width // letter))
            x += sheet.shape[2] + _PANEL_GAP
        for number, line in enumerate(lines):
            place = (total_width / 2, top + sheet_height + 4 + (number + 0.5) * line_height)
            write(*place, line, 8, color="#555555")


def _cell_size(height: int, width: int, most: int) -> tuple[int, int]:
    """The size that images are shown at: an integer multiple of their own size, or smaller."""
    most = max(8, min(most, MAX_CELL))
    if max(height, width) > most:
        scale = most / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    factor = max(1, min(-(-MIN_CELL // height), most // max(height, width)))
    return height * factor, width * factor


def _sheet(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Images (rows, columns, 3, H, W), resized, as one sheet (3, H', W')."""
    flat = images.flatten(0, 1).float().cpu()
    grows = flat.shape[-2] <= height
    blank = flat.isnan().any(dim=1, keepdim=True).any(dim=2, keepdim=True).any(dim=3, keepdim=True)
    resized = F.interpolate(flat.nan_to_num(1), (height, width), mode="nearest" if grows else "area").clamp(0, 1)
    return tile(torch.where(blank, 1.0, resized), images.shape[1], _GAP)


def save_curves(
    path: str | os.PathLike, x: Sequence[float], curves: Mapping[str, Sequence[float]], xlabel: str, caption: str = ""
) -> None:
    """Write a PNG of curves over the same ``x``, each in a separate panel with its name as the title."""
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
