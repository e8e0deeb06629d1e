"""Progress bars: tqdm on a terminal, and a line every 30 seconds if the output goes to a file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30
_UNKNOWN = "{desc}{n_fmt} {unit}s, {elapsed} elapsed"
_LINE = "{desc}{n_fmt}/{total_fmt} {unit}s, {elapsed} elapsed, {remaining} left{postfix}"

Item = TypeVar("Item")


class _Lines:
    """A text stream that turns each redraw of a progress bar into a line, and drops empty lines."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if text := text.strip():
            self.stream.write(f"{text}\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(total: int | None, *, desc: str = "", unit: str = "item", hidden: bool = False, **options) -> tqdm:
    """A progress bar on stderr: redrawn on a terminal, lines elsewhere. ``TQDM_DISABLE=1`` always hides it.

    Set numbers with ``set_postfix(…, refresh=False)``; they appear on the next redraw.

    Args:
        total: number of items; None if unknown.
        hidden: hide it, for example on all processes of a run but the first.
        options: of tqdm, such as ``initial`` and ``leave``.
    """
    if hidden:
        options["disable"] = True
    if total is None:
        options["bar_format"] = _UNKNOWN
    if not sys.stderr.isatty():
        seconds = SECONDS_BETWEEN_LINES
        options |= {"mininterval": seconds, "maxinterval": seconds, "delay": seconds, "leave": False}
        options = {"bar_format": _LINE, **options, "file": _Lines(sys.stderr)}
    return tqdm(total=total, desc=f"{desc}: " if desc else None, unit=unit, **options)


def progress(items: Iterable[Item], total: int, **options) -> Iterator[Item]:
    """Iterate over ``items`` with a `progress_bar`, which disappears at the end."""
    with progress_bar(total, **{"leave": False, **options}) as bar:
        for item in items:
            yield item
            bar.update()
