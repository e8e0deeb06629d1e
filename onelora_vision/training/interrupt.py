"""What can end a run from outside: signals, and the failure of another process of the run or of a data worker."""

import contextlib
import signal
from collections.abc import Iterator

from torch.distributed import DistError

from onelora_vision.errors import Stopped, TrainingError


@contextlib.contextmanager
def in_touch(process: int) -> Iterator[None]:
    """Turn a failure to reach the run's other processes into a `TrainingError` that says how to resume.

    Args:
        process: index of this process, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, DistError) or "gloo" in str(error)):  # gloo's errors have no separate class
            raise
        raise TrainingError(
            f"process {process} lost contact with another process of this run, which was killed or has failed (its own "
            "output says why); resume with the same command and --resume_from_checkpoint latest"
        ) from error


class Interruption:
    """While entered, SIGTERM and SIGINT raise `Stopped` when they arrive; inside `deferred` they only set ``signal``.

    The previous handlers are restored on exit.

    Attributes:
        signal: number of the signal that arrived, or None.
    """

    def __init__(self):
        self.signal: int | None = None
        self._raises = True
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.signal = number
        if self._raises:
            raise Stopped(number)

    @contextlib.contextmanager
    def deferred(self, raise_after: bool = False) -> Iterator[None]:
        """Let the block finish if a signal arrives; the caller checks ``signal``, or ``raise_after`` raises it then."""
        before, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = before
        if raise_after and self.signal is not None:
            raise Stopped(self.signal)

    @contextlib.contextmanager
    def at_once(self, possible: bool) -> Iterator[None]:
        """Inside `deferred`, let a signal in this block raise `Stopped`, for work that can be repeated from scratch.

        Has no effect if ``possible`` is false, as with several processes, which all have to stop at the same place.
        """
        if possible and self.signal is not None:
            raise Stopped(self.signal)
        before, self._raises = self._raises, possible or self._raises
        try:
            yield
        finally:
            self._raises = before
