"""What ends a run from outside: signals, as a request to write a checkpoint and leave, and another process's end."""

import contextlib
import signal
from collections.abc import Iterator

from torch.distributed import DistError

from onelora_vision.errors import TrainingError


@contextlib.contextmanager
def in_touch(process: int) -> Iterator[None]:
    """Tell the block's failure to reach the run's other processes as a `TrainingError` that says how to go on.

    Args:
        process: number of this process, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, DistError) or "gloo" in str(error)):  # gloo's errors have no class of their own
            raise
        raise TrainingError(
            f"process {process} lost touch with another process of this run, which was killed or has failed (its own "
            "output says why); go on with the same command and --resume_from_checkpoint latest"
        ) from error


class Interrupted(Exception):
    """Raised by a signal inside `Interruption.at_once`."""


class Interruption:
    """While entered, SIGTERM and SIGINT only set ``signal``. The handlers before are put back on leaving.

    Attributes:
        signal: number of the signal that came, or None.
    """

    def __init__(self):
        self.signal: int | None = None
        self._raises = False
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
            self._raises = False
            raise Interrupted

    @contextlib.contextmanager
    def at_once(self, possible: bool) -> Iterator[None]:
        """Where ``possible``, a signal inside this block raises `Interrupted`: for what can be done again in full."""
        if possible and self.signal is not None:
            raise Interrupted
        self._raises = possible
        try:
            yield
        finally:
            self._raises = False
