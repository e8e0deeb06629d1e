"""The flag of every command that reads folders of images: what to do about those that cannot be read."""

import argparse


def add_on_bad_image(parser: argparse.ArgumentParser) -> None:
    """Add ``--on_bad_image``."""
    parser.add_argument(
        "--on_bad_image",
        "--on-bad-image",
        choices=("error", "skip"),
        default="error",
        help="an unreadable image ends the command, or is named on stderr and left out",
    )
