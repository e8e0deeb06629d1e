"""Contact sheets: all images of a drawing in one picture, for the history and the comparison slider."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from onelora_vision.storage.files import atomic_file

_CELL, _GAP = 64, 2  # in pixels: smallest side of an image, and between them


def sheet(files: Sequence[Path]) -> Image.Image:
    """The images in a nearly square table without gaps at its end, small ones enlarged without smoothing."""
    columns = next(n for n in range(1, len(files) + 1) if n * n >= len(files) and len(files) % n == 0)
    images = [Image.open(file).convert("RGB") for file in files]
    width, height = images[0].size
    factor = max(1, -(-_CELL // min(width, height)))
    width, height = width * factor, height * factor
    rows = -(-len(images) // columns)
    table = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), "white")
    for number, image in enumerate(images):
        place = (number % columns * (width + _GAP), number // columns * (height + _GAP))
        table.paste(image.resize((width, height), Image.Resampling.NEAREST), place)
    return table


def write_pair(folder: Path, base: Sequence[Path], adapted: Sequence[Path]) -> tuple[Path, Path] | None:
    """Sheets of the base's and the adapted images, to lay one over the other; None if there is only one of the two."""
    if not base or len(base) != len(adapted):
        return None
    places = folder / "sheet-base.png", folder / "sheet-adapted.png"
    for place, files in zip(places, (base, adapted)):
        with atomic_file(place) as temporary:
            sheet(files).save(temporary, format="png")
    return places
