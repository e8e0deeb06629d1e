"""The Hugging Face hub: checks whether it is reachable, and downloads files of a repository up to a size limit."""

import contextlib
import functools
import logging
import os
import re
import socket
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from onelora_vision.errors import InputError, one_line

HUB_ID = re.compile(r"[\w\-]+/[\w\-.]+")

_log = logging.getLogger(__name__)


def expect_hub(source: str | os.PathLike) -> None:
    """Call this before loading ``source``: if it is not a path and the hub is unreachable, only the cache is used.

    Otherwise the hub's library would retry six times, for half a minute, before looking there.
    """
    if not os.path.exists(source):
        _look_for_hub()


@functools.cache
def _look_for_hub() -> None:
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
        _log.warning("%s cannot be reached: only files that were downloaded before are found", address.hostname)


def fetch(repo_id: str, wanted: Callable[[Iterable[str]], list[str]], limit: int, how_to_allow: str) -> Path:
    """Download the ``wanted`` files of a repository in one revision, if the hub reports that they fit the limit.

    If the hub is unreachable, previously downloaded files are used.

    Args:
        wanted: selects from the repository's file names; may refuse with an `InputError`.
        limit: total size in bytes. how_to_allow: end of the message about files that are larger.

    Returns the folder of the files.

    Raises:
        InputError: no such repository, files of unknown size or too large, or the hub is unreachable.
    """
    from huggingface_hub import HfApi, snapshot_download

    expect_hub(repo_id)
    try:
        info = HfApi().model_info(repo_id, files_metadata=True, timeout=10)
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        names = wanted(sizes)
        if (unknown := [name for name in names if sizes[name] is None]) or sum(sizes[n] for n in names) > limit:
            size = "of unknown size" if unknown else f"{sum(sizes[n] for n in names) / 1e6:.0f} MB"
            raise InputError(f"{repo_id}: {size}, and at most {limit / 1e6:.0f} MB are taken{how_to_allow}")
        return Path(snapshot_download(repo_id, revision=info.sha, allow_patterns=names, etag_timeout=10))
    except InputError:
        raise
    # the hub client's errors come from requests, httpx and its own tree, depending on its version
    except Exception as error:
        with contextlib.suppress(Exception):  # unreachable, but downloaded before
            folder = Path(snapshot_download(repo_id, local_files_only=True))
            wanted([path.relative_to(folder).as_posix() for path in folder.rglob("*")])
            return folder
        raise InputError(f"{repo_id}: could not be fetched from the hub ({one_line(error)})") from error
