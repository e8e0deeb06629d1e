"""The flags of every command that writes: where to, and whether an earlier output may be replaced."""

import argparse


def add_output(parser: argparse.ArgumentParser, help: str, default: str | None = None) -> None:
    """Add ``-o`` (required without a default) and ``--overwrite``."""
    parser.add_argument("-o", "--output", required=default is None, default=default, help=help)
    add_overwrite(parser)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier output of this command; never other files"
    )
