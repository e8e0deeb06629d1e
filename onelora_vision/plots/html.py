"""Self-contained HTML pages: styles and images are embedded, and nothing is loaded from elsewhere."""

import base64
import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from onelora_vision.storage.outputs import MARK

if TYPE_CHECKING:
    from jinja2 import Environment

_LARGE = 1_500_000  # bytes; a larger picture is embedded as a JPEG
_MOST_PIXELS = 200_000_000


def render(template: str, **values) -> str:
    """Render a page from ``templates``; escapes all ``values``, as names of classes and files may come from anyone."""
    return _environment().get_template(template).render(mark=MARK, **values)


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def embedded_picture(path: str | os.PathLike, longest: int | None = None) -> str | None:
    """A PNG as the address of an ``img`` element, or None if it cannot be read.

    Args:
        longest: make a thumbnail with sides of at most this many pixels.
    """
    from PIL import Image

    try:
        if longest is None and os.path.getsize(path) <= _LARGE:
            with Image.open(path, formats=["PNG"]):
                return _address("png", Path(path).read_bytes())
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            if longest:
                image.thumbnail((longest, longest))
            image = image.convert("RGBA")
            buffer, white = io.BytesIO(), Image.new("RGBA", image.size, "white")
            Image.alpha_composite(white, image).convert("RGB").save(buffer, "JPEG", quality=88)
            return _address("jpeg", buffer.getvalue())
    except Exception:  # Pillow may raise anything for damaged files
        return None


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
