"""Results that are expensive to compute and kept between runs. A cache never costs a result: its failures are warnings."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from onelora_vision.errors import one_line

_log = logging.getLogger(__name__)


class NoHomeFolder(OSError):
    """The user has no home folder to keep a cache in."""


def default_cache() -> Path:
    """Where results are kept that runs share: ``onelora_vision`` in the user's cache folder.

    Raises:
        NoHomeFolder: the environment names none.
    """
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "onelora_vision"
    try:
        return Path.home() / ".cache" / "onelora_vision"
    except RuntimeError:
        raise NoHomeFolder("there is no home folder; set HOME or XDG_CACHE_HOME") from None


def combined_hash(parts: Iterable[str]) -> str:
    """One SHA-256 in hex of several texts, which depends on their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part} ".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def dispensable(errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """End the block with one line of warning where the cache that it reads or writes fails.

    Args:
        errors: what such a failure raises.
    """
    try:
        yield
    except errors as error:
        _log.warning("the cache is not used: %s", one_line(error, 400))
