"""Common flags and fast checks of the commands that read adapters and images."""

import argparse
from pathlib import Path

from onelora_vision.errors import InputError


def add_on_bad_image(parser: argparse.ArgumentParser) -> None:
    """Add ``--on_bad_image``."""
    parser.add_argument(
        "--on_bad_image",
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="stop at an unreadable image, or name it on stderr and leave it out",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, for `runtime.device.choose_device`."""
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")


def require_adapter(source: str | Path) -> Path:
    """Return the local path of the adapter that a command was given. An adapter on the hub is downloaded.

    Incomplete adapter files are reported here, before torch is imported to read them.

    Raises:
        InputError: see `adapters.container.read_contents` and `adapters.hub.local_adapter`.
    """
    from onelora_vision.adapters.container import read_contents
    from onelora_vision.adapters.hub import local_adapter

    path = local_adapter(source)
    read_contents(path)
    return path


def require_path(path: str, flag: str = "") -> None:
    """Raise an `InputError` if ``path`` does not exist."""
    if not Path(path).exists():
        raise InputError(f"{flag + ' ' if flag else ''}{path}: no such file or folder")
