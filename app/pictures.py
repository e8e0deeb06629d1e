"""Batches of pictures: one that cannot be read does not stop the others."""

from collections.abc import Sequence
from pathlib import Path

from onelora_vision.data.images import read_image
from onelora_vision.errors import InputError, message_of


def readable(pictures: Sequence[Path], most: int) -> tuple[list[Path], list[str]]:
    """The pictures that can be read, and for each other one a message that starts with its name.

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
            read_image(picture)
            good.append(picture)
        except InputError as error:
            refused.append(message_of(error).replace(str(picture), picture.name))
    if not good:
        raise InputError(f"none of {len(pictures)} pictures can be read: {refused[0]}")
    return good, refused
