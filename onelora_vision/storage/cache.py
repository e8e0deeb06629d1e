"""Caches of expensive results, shared between runs. A failing cache only causes a warning, never a lost result."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from onelora_vision.errors import one_line

_log = logging.getLogger(__name__)


class NoHomeFolder(OSError):
    """The user has no home folder for a cache."""


def default_cache() -> Path:
    """The cache shared by runs: ``onelora_vision`` in the user's cache folder.

    Raises:
        NoHomeFolder: the environment defines none.
    """
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "onelora_vision"
    try:
        return Path.home() / ".cache" / "onelora_vision"
    except RuntimeError:
        raise NoHomeFolder("there is no home folder; set HOME or XDG_CACHE_HOME") from None


def combined_hash(parts: Iterable[str]) -> str:
    """SHA-256 of several texts, in hex; depends on their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part} ".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def dispensable(errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """If the cache used in the block fails, end the block with a one-line warning.

    Args:
        errors: the exceptions that count as such a failure.
    """
    try:
        yield
    except errors as error:
        _log.warning("the cache is not used: %s", one_line(error, 400))
