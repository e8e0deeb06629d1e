"""What the commands that read adapters and images have in common: their flags, and checks that need nothing slow."""

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
        help="an unreadable image ends the command, or is named on stderr and left out",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, which `runtime.device.choose_device` takes."""
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")


def require_adapter(source: str | Path) -> Path:
    """Where the adapter that a command was given is on this machine; one of the hub is downloaded.

    A place without a whole adapter file is refused here, before torch is imported to read it.

    Raises:
        InputError: see `adapters.container.read_contents` and `adapters.hub.local_adapter`.
    """
    from onelora_vision.adapters.container import read_contents
    from onelora_vision.adapters.hub import local_adapter

    path = local_adapter(source)
    read_contents(path)
    return path


def require_path(path: str, flag: str = "") -> None:
    """Raise an `InputError` unless there is something at ``path``."""
    if not Path(path).exists():
        raise InputError(f"{flag + ' ' if flag else ''}{path}: no such file or folder")
