"""How commands begin and end: exit codes, one line on stderr, quiet libraries. Each in a process of its own."""

import signal
import subprocess
import sys

import pytest

# A shell's background jobs, and what they start, ignore SIGINT: here it is as at a terminal.
START = """
import logging, os, signal, sys, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)
from onelora_vision.runtime.command import ends_at_once, exits_cleanly
from onelora_vision.errors import InputError, Stopped, TrainingError, WriteError
"""


def run(code: str, *options: str) -> tuple[int, str]:
    """Exit code and stderr of a program that begins with `START`."""
    done = subprocess.run([sys.executable, *options, "-c", START + code], capture_output=True, text=True)
    return done.returncode, done.stderr


def main_that(statement: str) -> str:
    return f"@exits_cleanly\ndef main():\n    {statement}\nmain()"


@pytest.mark.parametrize(
    ("statement", "code", "line"),
    [
        ("return", 0, ""),
        ("return 3", 3, ""),
        ("raise InputError('no such file')", 2, "error: no such file\n"),
        ("raise TrainingError('NaN')", 1, "error: NaN\n"),
        ("raise WriteError('a', 'full')", 1, "error: could not write a: full\n"),
        ("raise KeyboardInterrupt", 130, "stopped by SIGINT\n"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "stopped by SIGTERM\n"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "stopped by SIGINT\n"),
        ("raise BrokenPipeError", 128 + signal.SIGPIPE, ""),
    ],
)
def test_every_end_has_its_exit_code_and_at_most_one_line(statement, code, line):
    assert run(main_that(statement)) == (code, line)


def test_flags_are_checked_before_the_imports():
    check = (
        "def check():\n    raise InputError('no such flag')\nends_at_once(check)\nprint('imports', file=sys.stderr)"
    )
    assert run(check) == (2, "error: no such flag\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_the_imports_ends_in_one_line(name):
    number = signal.Signals[name]
    code = f"ends_at_once(lambda: None)\nos.kill(os.getpid(), signal.{name})\n" + main_that("pass")
    assert run(code) == (128 + number, f"stopped by {name}\n")


def test_after_the_imports_a_signal_is_raised_where_it_arrives():
    statement = "\n    ".join(
        [
            "try:",
            "    os.kill(os.getpid(), signal.SIGTERM)",
            "except Stopped:",
            "    sys.stderr.write('saved ')",
            "    raise",
        ]
    )
    assert run("ends_at_once(lambda: None)\n" + main_that(statement)) == (143, "saved stopped by SIGTERM\n")


WARN = main_that(
    "warnings.warn('deprecated', FutureWarning); logging.getLogger('onelora_vision.x').warning('skipped a')"
)


def test_only_what_this_program_says_reaches_the_user():
    assert run(WARN) == (0, "warning: skipped a\n")
    code, text = run(WARN, "-W", "default")
    assert code == 0 and "FutureWarning: deprecated" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--bakbone", "x"], "unknown flag --bakbone; did you mean '--backbone'?"),
        (["--bakbone=x"], "unknown flag --bakbone; did you mean '--backbone'?"),
        ([], "the following arguments are required: --backbone, -o/--output"),
        (["--backbone", "x", "-o", ""], "argument -o/--output: the path is empty"),
    ],
)
def test_a_misspelt_flag_is_named_before_one_that_is_missing(flags, message):
    code = f"""
from onelora_vision.cli.output import add_output
from onelora_vision.runtime.command import Parser
@exits_cleanly
def main():
    parser = Parser(prog="x")
    parser.add_argument("--backbone", required=True)
    add_output(parser, "folder")
    parser.parse_args({flags})
main()"""
    found, text = run(code)
    assert found == 2 and text == f"error: {message} (see x --help)\n"
