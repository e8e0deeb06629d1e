"""The messages that the troubleshooting page explains are those of the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
FOREIGN = {"KeyError: 'ONELORA'", "operator torchvision::nms does not exist"}  # raised by PEFT and by torch
QUOTED = [text for text in re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE) if text not in FOREIGN]


def with_gaps(node):
    """The text of a string expression, with ``…`` for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join("…" if isinstance(part, ast.FormattedValue) else part.value for part in node.values)
    if isinstance(node, ast.BinOp):
        return with_gaps(node.left) + with_gaps(node.right)
    return "…"


@cache
def strings():
    """Every message that the package, its scripts and the app could raise, and the pieces that some are put together from."""
    found = set()
    for folder in ("onelora_vision", "train_scripts", "app"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            found |= {with_gaps(n) for n in ast.walk(tree) if isinstance(n, (ast.JoinedStr, ast.Constant))}
    return found


def is_in(quote, text):
    """Whether ``quote``, whose ``…`` stand for anything, reads like ``text``, whose ``…`` do too."""
    parts = [re.escape(part.strip()) for part in quote.removeprefix("warning: ").split("…") if part.strip()]
    return re.search(".*".join(parts), text, re.DOTALL) is not None


def test_there_are_messages():
    assert len(QUOTED) > 50


@pytest.mark.parametrize("quote", QUOTED)
def test_the_message_is_in_the_code(quote):
    assert any(is_in(quote, text) for text in strings()), quote
