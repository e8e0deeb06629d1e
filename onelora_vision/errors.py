"""Errors that users can act on, and helpers for their messages. `command` reports them when a program ends."""

import itertools
import signal
from collections.abc import Iterable, Set

_MOST_KNOWN = 2000  # maximum number of names to search for a close match


class InputError(ValueError):
    """Bad input: the message is one line that says what is wrong, where, and what to do about it. Exit code 2.

    Whatever the message contains from files, ``str`` returns one printable line of at most 1500 characters.
    """

    def __str__(self) -> str:
        return one_message(super().__str__())


class MissingSplit(InputError):
    """A dataset does not have the requested split."""


class NotApplicable(InputError):
    """A method that has nothing to train on a model; bad input if it was requested by name."""


class TrainingError(RuntimeError):
    """A run that cannot continue for a reason other than bad input (NaN loss, full disk): one line, exit code 1."""

    def __str__(self) -> str:
        return one_message(super().__str__())


class WriteError(OSError):
    """A file that could not be written (full disk, quota, permissions): one line with its name, exit code 1."""

    def __init__(self, path, reason):
        super().__init__(f"could not write {path}: {reason}")
        self.strerror = str(reason)


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM, raised where it arrived. Not an `Exception`, so error handlers do not swallow it.

    Attributes:
        signal: number of the signal.
        message: what a command prints on stderr.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(number)
        self.signal = number
        self.message = message or f"stopped by {signal.Signals(number).name}"


def message_of(error: Exception) -> str:
    """The one-line message of an `InputError`, even if it was raised in a data worker."""
    text = str(error.args[0]) if error.args else ""
    if text.startswith("Caught ") and "\nOriginal Traceback" in text:
        # torch re-raises a data worker's error with the worker's traceback as text; its last line is the message
        kind = f"{type(error).__module__}.{type(error).__qualname__}: "
        text = text.strip().splitlines()[-1].removeprefix(kind)
    return one_message(text)


_LONGEST, _WORD, _MESSAGE = 100_000, 300, 1500


def one_message(text: str) -> str:
    """One printable line; long words and long lines lose their middle, so the advice at the end remains."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … {text[-_WORD:]}"
    words = printable(text).split()
    line = " ".join(word if len(word) <= _WORD else f"{word[:100]}…{word[-40:]}" for word in words)
    return line if len(line) <= _MESSAGE else f"{line[:1000]} … {line[-400:]}"


def printable(text: str) -> str:
    """``text`` with characters that terminals interpret (control characters, line breaks, …) replaced by spaces."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def one_line(text: object, limit: int = 200) -> str:
    """Make external text safe for a message: one printable line of at most ``limit`` characters.

    Use it for every name, value or exception text that comes from a file or a library. An exception without text
    becomes the name of its type.
    """
    whole = str(text) or (type(text).__name__ if isinstance(text, BaseException) else "")
    line = " ".join(whole[: 8 * limit].split())
    line = " ".join(printable(line[: limit + 1]).split())
    return line if len(line) <= limit and len(whole) <= 8 * limit else f"{line[: limit - 1]}…"


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names for a message: the first ``most`` of them (sorted if they are a set), and how many more there are."""
    names = sorted(names) if isinstance(names, Set) else list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(one_line(name, 100) for name in names[:most]) + more


def nearest(name: str, known, what: str = "name") -> str:
    """``"; did you mean 'x'?"`` if a known name is close to ``name``, else ``"; known names: a, b, …"``."""
    import difflib

    known = [str(k)[:100] for k in itertools.islice(known, _MOST_KNOWN)]
    close = difflib.get_close_matches(str(name)[:100], known, n=1, cutoff=0.5)
    plural = f"{what[:-2]}es" if what.endswith("is") else f"{what}es" if what.endswith("s") else f"{what}s"
    return f"; did you mean {close[0]!r}?" if close else f"; known {plural}: {listed(known, 40)}"
