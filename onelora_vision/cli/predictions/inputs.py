"""The picture arguments of ``onelora predict``."""

import os

from onelora_vision.cli.inputs import require_path
from onelora_vision.data.images import list_images
from onelora_vision.errors import InputError


def pictures_of(given: list[str]) -> list[str]:
    """Return the paths of pictures, including those in folders.

    Raises:
        InputError: a path does not exist, or a folder has no pictures.
    """
    paths = []
    for path in given:
        require_path(path)
        found = list_images(path) if os.path.isdir(path) else [path]
        if not found:
            raise InputError(f"{path}: no pictures in this folder")
        paths += found
    return paths


def refuse_for_pictures(max_new_tokens: int | None, adapter: object) -> None:
    """Raise an `InputError` if the flag for language models is given with an adapter that takes pictures."""
    if max_new_tokens is not None:
        raise InputError(f"--max_new_tokens is for language models; {adapter} takes pictures")
