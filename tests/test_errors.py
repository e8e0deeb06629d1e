"""Messages stay one printable line of bounded length, whatever a file or a library brings into them."""

import pickle
import sys
import unicodedata

import pytest
import torch

from onelora_vision.errors import (
    InputError,
    TrainingError,
    WriteError,
    listed,
    message_of,
    nearest,
    one_line,
)
from onelora_vision.runtime.command import exits_cleanly

HOSTILE = [
    "x" * 10**6,
    "a\nb",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "\x7f\b\b\r",
    "\u202eevil",
    "\u2028",
    "a\tb " * 10**5,
    "\0",
]


def is_harmless(text, limit=1500):
    return len(text) <= limit and not any(unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" for c in text)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_of_files_are_bounded_in_every_message(name, capsys):
    for error in (InputError(f"file: tensor {name!s} is bad; do this"), TrainingError(f"{name} is lost; do this"),
                  WriteError(name, "full; do this")):  # fmt: skip

        def main(error=error):
            raise error

        with pytest.raises(SystemExit) as caught:
            exits_cleanly(main)()
        assert caught.value.code == (2 if isinstance(error, InputError) else 1)
        line = capsys.readouterr().err
        assert line.endswith("do this\n") and is_harmless(line[:-1]) and line.count("\n") == 1
        if not isinstance(error, WriteError):
            assert is_harmless(str(error)) and str(error).endswith("do this")
    assert (
        is_harmless(one_line(name, 60), 60)
        and is_harmless(listed([name] * 9))
        and is_harmless(nearest(name, [name] * 9))
    )


def test_a_list_of_names_is_bounded_by_their_number():
    names = [f"name{k}" for k in range(10**5)]
    assert listed(names) == ", ".join(names[:8]) + " and 99992 more"
    assert len(nearest("zzz", names)) < 800 and nearest("nam1", names) == "; did you mean 'name1'?"


@pytest.mark.parametrize(("what", "plural"), [("class", "classes"), ("axis", "axes"), ("adapter", "adapters")])
def test_the_names_that_are_known_are_plural(what, plural):
    assert nearest("zzz", ["a", "b"], what) == f"; known {plural}: a, b"


def test_the_message_of_a_loader_process_is_the_error_s_own():
    error = InputError("picture a\nb.png: broken")
    assert message_of(error) == str(error) == "picture a b.png: broken"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    try:
        raise InputError("picture.png: broken")
    except InputError:
        again = torch._utils.ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process 0")
    with pytest.raises(InputError) as caught:
        again.reraise()
    assert message_of(caught.value) == "picture.png: broken"
