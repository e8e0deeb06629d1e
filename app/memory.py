"""Return freed memory to the system, so that a server's memory stays flat over days."""

import ctypes
import sys
import threading
import time


def trim_regularly(seconds: float = 30) -> threading.Thread | None:
    """Have glibc return free memory regularly, in a background thread; None with another C library.

    glibc keeps what each thread has freed. Requests run on many threads that come and go, so that without this the
    process grows by some 20 kB per request although nothing is held.
    """
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        return None
    trim = ctypes.CDLL(None).malloc_trim

    def go() -> None:
        while True:
            time.sleep(seconds)
            trim(0)

    thread = threading.Thread(target=go, name="trim", daemon=True)
    thread.start()
    return thread
