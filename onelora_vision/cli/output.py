"""The flags of all commands that write: the output path, and whether to replace an earlier output."""

import argparse


def add_output(parser: argparse.ArgumentParser, help: str) -> None:
    """Add ``-o``, which is required, and ``--overwrite``."""
    parser.add_argument("-o", "--output", type=a_path, required=True, help=help)
    add_overwrite(parser)


def add_plot(parser: argparse.ArgumentParser, help: str) -> None:
    """Add ``--plot`` and ``--overwrite``."""
    parser.add_argument("--plot", type=a_png, help=help)
    add_overwrite(parser)


def a_path(text: str) -> str:
    """Type of flags for output paths. It rejects an empty path, for example from an unset shell variable."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return text


def a_png(text: str) -> str:
    """Type of flags for PNG files."""
    if not a_path(text).lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text} must end in .png")
    return text


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier output of this command; never other files"
    )
