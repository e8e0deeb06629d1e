"""Start and end of a command: quiet libraries, one line on stderr for any failure, and an exit code."""

import argparse
import atexit
import functools
import itertools
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from onelora_vision.errors import InputError, Stopped, TrainingError, WriteError, message_of, nearest, one_message

_EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_computing = threading.Event()  # set if there are computing threads that nobody waits for


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help with each flag's default, if it has one that its text does not mention."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if "default" in text or isinstance(default, (bool, list)) or default in (None, "", argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)".strip()


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `InputError`s, so they are reported like any other bad input."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, formatter_class=_Help, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Like argparse's, but unknown flags are reported before missing required ones."""
        args = sys.argv[1:] if args is None else list(args)
        for flag in itertools.takewhile(lambda argument: argument != "--", args):
            name = flag.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                self.error(f"unknown flag {name}{nearest(name, self._option_string_actions, 'flag')}")
        return super().parse_args(args, namespace)

    def error(self, message: str):
        raise InputError(f"{message} (see {self.prog} --help)")


def exits_cleanly(main: Callable[..., int | None]) -> Callable[..., None]:
    """Make ``main`` a command that ends with an exit code and, unless it succeeds, with one line on stderr.

    The exit code is 2 for `InputError`, 1 for `TrainingError` and `WriteError`, 128 + number for SIGINT and SIGTERM,
    which are reported whenever they arrive, and 141 if the reader of stdout has closed it (``onelora … | head``).
    """

    @functools.wraps(main)
    def command(*args, **kwargs) -> None:
        quiet_libraries()
        _on_signals(_stop)
        try:
            code = main(*args, **kwargs) or 0
            sys.stdout.flush()
        except InputError as error:
            code = _report(f"error: {message_of(error)}", 2)
        except (TrainingError, WriteError) as error:
            code = _report(f"error: {error}", 1)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more at exit
            code = _EXIT_BROKEN_PIPE
        except KeyboardInterrupt as interrupt:
            stopped = interrupt if isinstance(interrupt, Stopped) else Stopped(signal.SIGINT)
            code = _report(stopped.message, 128 + stopped.signal)
        _end(code)

    return command


def computes_in_threads() -> None:
    """Make this process end without waiting for its threads, and without finalising Python.

    A daemon thread inside PyTorch that requests the interpreter lock during finalisation would abort the process.
    """
    _computing.set()


def _end(code: int) -> NoReturn:
    if _computing.is_set():
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _report(line: str, code: int) -> int:
    print(one_message(line), file=sys.stderr)
    return code


class _OnStderr(logging.StreamHandler):
    """Writes to the current stderr, not to the one from when the handler was made."""

    @property
    def stream(self):
        return sys.stderr

    @stream.setter
    def stream(self, stream) -> None:
        pass


def quiet_libraries() -> None:
    """Hide library messages meant for developers: deprecations, notes on settings, retries.

    This program itself reports whatever users can act on. ``PYTHONWARNINGS``, ``TRANSFORMERS_VERBOSITY`` and similar
    variables restore the libraries' messages. Call this before importing them.
    """
    for library in ("TRANSFORMERS", "DIFFUSERS", "HF_HUB", "DATASETS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    log = logging.getLogger("onelora_vision")
    if not log.handlers:
        handler = _OnStderr()
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
        log.addHandler(handler)


def ends_at_once(check: Callable[[], object]) -> None:
    """Run a script's ``check`` of its flags before slow imports, and make the imports interruptible.

    `InputError` ends the program with exit code 2. Until `exits_cleanly` takes over, signals end it immediately, as
    nothing is open that would need to be closed.
    """
    quiet_libraries()
    _on_signals(_exit)
    try:
        check()
    except InputError as error:
        sys.exit(_report(f"error: {message_of(error)}", 2))


def _on_signals(handler: Callable) -> None:
    """Handle SIGTERM and SIGINT, unless someone else already does."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _exit):
            signal.signal(number, handler)


def _stop(number: int, frame) -> None:
    raise Stopped(number)


def _exit(number: int, frame) -> None:
    os.write(2, f"{Stopped(number).message}\n".encode())
    os._exit(128 + number)
