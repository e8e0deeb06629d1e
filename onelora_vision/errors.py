"""The one error that a user's bad input ends in, and how a command turns it into one line and an exit code."""

import functools
import sys
from collections.abc import Callable, Collection

_NAMES_IN_ERROR = 8


class InputError(ValueError):
    """Bad input: the message is one line that says what was wrong, where, and what to do about it."""


class TrainingError(RuntimeError):
    """A run that cannot go on for a reason that is not bad input (NaN loss, full disk): one line, exit code 1."""


class WriteError(OSError):
    """A file that could not be written (full disk, quota, rights): one line that names it, exit code 1."""

    def __init__(self, path, reason):
        super().__init__(f"could not write {path}: {reason}")
        self.strerror = str(reason)


def exits_cleanly(main: Callable[..., int | None]) -> Callable[..., None]:
    """Make ``main`` a command: exit 0 on success, else one line on stderr and 2 for `InputError`, 1 for `TrainingError`
    and `WriteError`."""

    @functools.wraps(main)
    def command(*args, **kwargs) -> None:
        try:
            sys.exit(main(*args, **kwargs) or 0)
        except InputError as error:
            print(f"error: {_one_line(error)}", file=sys.stderr)
            sys.exit(2)
        except (TrainingError, WriteError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return command


def _one_line(error: InputError) -> str:
    # torch raises a loader worker's error again with the worker's traceback as its text, whose last line is the message
    kind = f"{type(error).__module__}.{type(error).__qualname__}: "
    return (str(error).strip().splitlines() or [""])[-1].removeprefix(kind)


def nearest(name: str, known, what: str = "name") -> str:
    """``"; did you mean 'x'?"`` when a known name is close to ``name``, else ``"; known: a, b, …"``."""
    import difflib

    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known {what}s: {', '.join(known)}"


def listed(names: Collection[str]) -> str:
    """Names for an error message: the first few in order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - _NAMES_IN_ERROR} more" if len(names) > _NAMES_IN_ERROR else ""
    return ", ".join(names[:_NAMES_IN_ERROR]) + more
