"""The Hugging Face hub, before it is asked for anything."""

import functools
import logging
import os
import socket
import urllib.request
from urllib.parse import urlsplit

_log = logging.getLogger(__name__)


def expect_hub(source: str | os.PathLike) -> None:
    """To be called before ``source`` is loaded: if it is no path, and the hub is out of reach, its cache answers at once.

    The hub's library would ask six times, in half a minute, before it looked there.
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
