"""Robust reading of image files: the result is an upright RGB picture, or a one-line error that names the file."""

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
#: Largest aspect ratio of a picture; beyond it, the picture is cut or its resolution lowered to save memory.
MAX_ASPECT = 8
IMAGE_EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read a file as an upright 8-bit RGB picture.

    The EXIF rotation is applied, 16-bit values are scaled to 8 bits, transparency is composited on white, CMYK is
    converted, and the first frame of an animation is used.

    Raises:
        InputError: the file is missing, unreadable, empty, truncated, not an image, or above Pillow's
            decompression-bomb limit (about 179 million pixels); the message names the file.
    """
    return decode_image(path, shown(path))


def read_images(paths: Sequence[str], on_bad_image: str = "error") -> Iterator[tuple[str, Image.Image]]:
    """Yield paths and pictures, in order.

    Args:
        on_bad_image: "error" raises the `InputError` of an unreadable image; "skip" leaves it out, logs its name and,
            in the end, the number of such images.

    Raises:
        InputError: an image cannot be read or, with "skip", none can.
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
    """Cut a picture that is more than `MAX_ASPECT` times as long as wide to its middle; return others unchanged.

    This is for square inputs, where the shorter side is resized to the input's side. A very long picture would then not
    fit into memory.
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
    """Implement `read_image` for a path or an open binary file, called ``name`` in error messages."""
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
        raise InputError(f"{name}: {size}, but at most {most:,} are read; resize the image or leave it out") from None
    # On broken files, Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, and more.
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
    """List all image files (by extension) below ``folder``, sorted by path.

    Hidden files and folders are left out, and so are grids, plots and depth maps that this program drew for viewing
    (`storage.outputs.is_sheet`). Links are followed. Every real folder is visited only once, so loops of links end.

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
    """List the names of the visible folders in ``folder``, sorted. Raises `InputError` like `list_images`."""
    return [entry.name for entry in _entries(os.fspath(folder)) if entry.is_dir()]


def shown(path: str | os.PathLike) -> str:
    """A path as one printable line, with line breaks and bytes that are not Unicode escaped."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _entries(folder: str) -> list[os.DirEntry]:
    """The visible entries of a folder, sorted by name."""
    with _checked(os.scandir, folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _checked(call, folder: str):
    """Return ``call(folder)``, or raise an `InputError` that names the folder."""
    try:
        return call(folder)
    except FileNotFoundError:
        raise InputError(f"{shown(folder)}: no such folder") from None
    except NotADirectoryError:
        raise InputError(f"{shown(folder)}: not a folder") from None
    except OSError as error:
        raise InputError(f"{shown(folder)}: folder cannot be read ({error.strerror})") from None


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF rotation. Damaged EXIF data is ignored, since the picture itself may be fine."""
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
    """The reason why decoding failed, on one line. Pillow's text for unknown data repeats the path and is replaced."""
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file() and Path(source).stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or a format that Pillow does not know"
    return one_line(error)
