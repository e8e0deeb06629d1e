"""How long answers take. If the last one was quick, a changed weight is answered at once."""

import contextlib
import time
from collections.abc import Iterator

from onelora_vision import embedded

from .mix import Mix

LIVE_SECONDS = 2.0  # of the last answer, at most, for the next to come without being asked for


class Pace:
    """The time that the last answer of a session took, by task and base."""

    def __init__(self):
        self._seconds: dict[tuple[str, str], float] = {}

    @contextlib.contextmanager
    def timed(self, mix: Mix) -> Iterator[None]:
        """Measure the block, which answers with ``mix``, unless it raises or is given up."""
        start = time.perf_counter()
        yield
        self._seconds[mix.info.task, mix.info.base] = time.perf_counter() - start

    def is_live(self, mix: Mix) -> bool:
        """Whether the last answer with ``mix`` was quick. Embedded bases count as quick until one was slow."""
        seconds = self._seconds.get((mix.info.task, mix.info.base))
        if seconds is not None:
            return seconds < LIVE_SECONDS
        return mix.info.base in ("", *embedded.names_of(mix.info.task))
