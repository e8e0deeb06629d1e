"""Reading image files whatever their state: one upright RGB picture, or one error line that names the file."""

import functools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps

from onelora_vision.errors import InputError, one_line
from onelora_vision.storage.outputs import is_sheet

_log = logging.getLogger(__name__)
#: How many times as long as wide a picture may be before it is cut, or its resolution lowered: memory grows with it.
MAX_ASPECT = 8
IMAGE_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read a file as an upright 8-bit RGB picture.

    The EXIF rotation is applied, 16-bit values are scaled to 8 bits, transparency is laid on white, CMYK is converted,
    and of an animation the first frame is taken.

    Raises:
        InputError: the file is missing, unreadable, empty, truncated, no image, or above Pillow's
            decompression-bomb limit (about 179 million pixels); the message names the file.
    """
    return decode_image(path, shown(path))


def read_images(paths: Sequence[str], on_bad_image: str = "error") -> Iterator[tuple[str, Image.Image]]:
    """Paths and pictures, in order.

    Args:
        on_bad_image: "error" raises the `InputError` of an unreadable image; "skip" leaves it out, and logs its name and
            in the end how many there were.

    Raises:
        InputError: an image cannot be read, or with "skip": none can.
    """
    skipped = 0
    for path in paths:
        try:
            picture = read_image(path)
        except InputError as error:
            if on_bad_image == "error":
                raise InputError(f"{error}; --on_bad_image skip leaves such images out") from None
            _log.warning("skipped: %s", error)
            skipped += 1
            continue
        yield path, picture
    if skipped == len(paths):
        raise InputError(f"none of the {len(paths)} images can be read")
    if skipped:
        _log.warning("%d of %d images were skipped: they cannot be read", skipped, len(paths))


def trimmed(image: Image.Image, name: str) -> Image.Image:
    """The middle of a picture that is more than `MAX_ASPECT` times as long as wide; others as they are.

    For square inputs, whose shorter side is resized to the input's: all of a long picture would not fit into memory.
    """
    limit = MAX_ASPECT * min(image.size)
    if max(image.size) <= limit:
        return image
    _say_trimmed(name, image.size, limit)
    width, height = (min(side, limit) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@functools.cache  # once per picture, not once per epoch
def _say_trimmed(name: str, size: tuple[int, int], limit: int) -> None:
    width, height = size
    _log.warning("%s: of %dx%d pixels only the middle %d are used along the longer side", name, width, height, limit)


def decode_image(source: str | os.PathLike | IO[bytes], name: str) -> Image.Image:
    """`read_image` for a path or an open binary file; ``name`` stands for it in error messages."""
    try:
        with Image.open(source) as image:
            image.load()
            return to_rgb(_upright(image))
    except FileNotFoundError:
        raise InputError(f"{name}: no such image file") from None
    except PermissionError:
        raise InputError(f"{name}: no permission to read this image file") from None
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        size = f"{int(pixels[0]):,} pixels" if pixels else "too many pixels"
        most = 2 * Image.MAX_IMAGE_PIXELS
        raise InputError(f"{name}: {size}, and at most {most:,} are read; resize the image or leave it out") from None
    # Pillow's decoders answer broken files with OSError, SyntaxError, ValueError, EOFError, struct.error, and more.
    except Exception as error:
        raise InputError(f"{name}: cannot be read as an image ({_reason(source, error)})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image of any 8- or 16-bit mode to RGB; transparency is composited on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, image).convert("RGB")
    return image.convert("RGB")


def list_images(folder: str | os.PathLike) -> list[str]:
    """Paths of all image files (by extension) below ``folder``, sorted; hidden files and folders are left out.

    So are grids, plots and depth maps that this program drew to be looked at (`storage.outputs.is_sheet`).

    Links are followed; every real folder is visited once, so that a loop of links ends.

    Raises:
        InputError: ``folder`` or a folder below it does not exist or cannot be read.
    """
    found, visited, waiting = [], set(), [os.fspath(folder)]
    while waiting:
        current = waiting.pop()
        status = _checked(os.stat, current)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        folders = []
        for entry in _entries(current):
            if entry.is_dir():
                folders.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_EXTENSIONS and not is_sheet(entry.path):
                found.append(entry.path)
        waiting.extend(reversed(folders))
    return sorted(found)


def list_folders(folder: str | os.PathLike) -> list[str]:
    """Names of the folders in ``folder`` that are not hidden, sorted. Raises `InputError` as `list_images` does."""
    return [entry.name for entry in _entries(os.fspath(folder)) if entry.is_dir()]


def shown(path: str | os.PathLike) -> str:
    """A path as one printable line: bytes that are not Unicode and line breaks are escaped."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _entries(folder: str) -> list[os.DirEntry]:
    """What is in a folder, sorted by name, without hidden entries."""
    with _checked(os.scandir, folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _checked(call, folder: str):
    """``call(folder)``, its failure told as an `InputError` that names the folder."""
    try:
        return call(folder)
    except FileNotFoundError:
        raise InputError(f"{shown(folder)}: no such folder") from None
    except NotADirectoryError:
        raise InputError(f"{shown(folder)}: not a folder") from None
    except OSError as error:
        raise InputError(f"{shown(folder)}: folder cannot be read ({error.strerror})") from None


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation. Damaged EXIF data says nothing, and the picture itself may be sound."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale integer grey values from 0–65535 to 0–255 (Pillow's own conversion clips them)."""
    import numpy as np

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("grey values outside 0–65535; save it with 8 or 16 bits per channel")
    return Image.fromarray((values // 257).astype(np.uint8))


def _reason(source, error: Exception) -> str:
    """Why decoding failed, on one line. Pillow's own text for unknown data repeats the path, so it is replaced."""
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file() and Path(source).stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or a format that Pillow does not know"
    return one_line(error)
