"""Text files as users' editors save them: with a byte-order mark, any line endings, backslashes in paths."""

import codecs
import os
from pathlib import Path

from onelora_vision.errors import InputError, one_line

_ENCODINGS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: str | os.PathLike, what: str = "") -> str:
    """The text of a UTF-8 file, or of a UTF-16 file with a byte-order mark, as written by PowerShell.

    Args:
        what: precedes the path in messages, such as the flag that the path was given with.

    Raises:
        InputError: it cannot be read, or is in another encoding.
    """
    name = f"{what} {one_line(path)}".strip()
    try:
        data = Path(path).read_bytes()
        encoding = next((found for mark, found in _ENCODINGS.items() if data.startswith(mark)), "utf-8")
        return data.decode(encoding)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: cannot be read as text; save it as UTF-8 ({error.reason})") from None


def read_lines(path: str | os.PathLike, what: str = "") -> list[str]:
    """The stripped lines of `read_text`; empty lines are kept, so line numbers are correct."""
    return [line.strip() for line in read_text(path, what).splitlines()]


def named_file(folder: Path, name: str) -> Path:
    """A file named in a text file, relative to ``folder``; backslashes separate folders unless such a file exists."""
    path = folder / name
    return path if "\\" not in name or path.exists() else folder / name.replace("\\", "/")


def file_below(folder: Path, name: str) -> Path:
    """`named_file`, for untrusted names.

    Raises:
        InputError: the name leads out of ``folder``.
    """
    path = named_file(folder, name)
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
        raise InputError(f"{one_line(name)}: this file is listed, but lies outside of {one_line(folder)}")
    return path


def require_unicode(text: str, what: str) -> None:
    """Refuse text that no file can contain: with half a surrogate pair, from a broken escape or argument.

    Raises:
        InputError: ``what`` is such a text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} is not Unicode: its character {error.start + 1:,} is half a surrogate pair, as text in another encoding "
            "leaves it; give it as UTF-8"
        ) from None
