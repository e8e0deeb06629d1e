"""Batches of pictures: one that cannot be read does not stop the others."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from onelora_vision.errors import InputError, message_of


def readable(
    pictures: Sequence[Path], most: int, read: Callable[[Path], Image.Image]
) -> tuple[list[tuple[Path, Image.Image]], list[str]]:
    """The pictures that ``read`` can read, and for each other one a message that starts with its name.

    Raises:
        InputError: no pictures, more than ``most``, or none that can be read.
    """
    if not pictures:
        raise InputError("choose pictures first")
    if len(pictures) > most:
        raise InputError(f"{len(pictures)} pictures: at most {most} at a time")
    good, refused = [], []
    for picture in pictures:
        try:
            good.append((picture, read(picture)))
        except InputError as error:
            refused.append(message_of(error).replace(str(picture), picture.name))
    if not good:
        raise InputError(f"none of {len(pictures)} pictures can be read: {refused[0]}")
    return good, refused
