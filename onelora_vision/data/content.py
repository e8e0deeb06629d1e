"""Which images these are, by their content: what is computed from an image is kept under its hash."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.images import shown
from onelora_vision.errors import InputError
from onelora_vision.runtime.progress import progress

_THREADS = 8  # hashing frees the interpreter's lock, so files are read side by side


def content_hash(image: str | os.PathLike | Image.Image) -> str:
    """SHA-256, in hex, of a file's bytes, or of a picture's mode, size and pixels.

    Raises:
        InputError: the file cannot be opened.
    """
    if isinstance(image, Image.Image):
        digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
        digest.update(image.tobytes())
        return digest.hexdigest()
    try:
        return hashlib.sha256(Path(image).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{shown(image)}: the image cannot be read ({error.strerror})") from None


def content_hashes(source: ClassImages, hidden: bool = True) -> list[str]:
    """`content_hash` of every image, in order; a file that cannot be opened is hashed by its path instead, so that
    reading it later says what is wrong with it."""
    return _hashes(len(source), lambda index: source.images[index], source.path, hidden)


def file_hashes(paths: Sequence[str | os.PathLike]) -> list[str]:
    """`content_hashes` of files."""
    return _hashes(len(paths), paths.__getitem__, paths.__getitem__, hidden=True)


def _hashes(count: int, image: Callable, name: Callable, hidden: bool) -> list[str]:
    def hash_of(index: int) -> str:
        try:
            return content_hash(image(index))
        except InputError:
            return hashlib.sha256(f"unreadable {name(index)}".encode(errors="surrogateescape")).hexdigest()

    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(hash_of, range(count))
        return list(progress(hashes, count, desc="hashing images", unit="image", hidden=hidden))
