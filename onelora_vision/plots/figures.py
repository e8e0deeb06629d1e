"""Matplotlib figures that need no display and are saved atomically."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onelora_vision.storage.files import atomic_file
from onelora_vision.storage.outputs import MARK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def saved_figure(
    path: str | os.PathLike, size: tuple[float, float], dpi: int = 120, metadata: dict | None = None, **options
) -> "Iterator[Figure]":
    """An empty figure of ``size`` inches to draw on; written to ``path`` as a PNG when the block ends.

    Args:
        metadata: text fields of the PNG. options: of ``savefig``, such as ``transparent``.

    Raises:
        WriteError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot's, which would keep the figure and may need a display
    yield figure
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": MARK, **(metadata or {})}, **options)
