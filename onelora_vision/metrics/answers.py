"""Checks whether a written answer ends in the right number."""

import re
from fractions import Fraction

_MARK = "The answer is:"  # how MetaMath's answers end (arXiv 2309.12284)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")


def final_number(text: str) -> Fraction | None:
    """The first number after the last ``The answer is:``, or without these words the last number; None without any.

    Commas between digits are removed; ``3/4`` is a fraction. A fraction with denominator zero is not a number.
    """
    _, mark, after = text.rpartition(_MARK)
    found = _NUMBER.findall(after)
    if not found:
        return None
    written = (found[0] if mark else found[-1]).replace(",", "").replace(" ", "")
    try:
        return _value(written)
    except ZeroDivisionError:
        return None


def _value(written: str) -> Fraction:
    above, _, below = written.partition("/")
    return Fraction(above) / Fraction(below or 1)


def same_number(answer: str, truth: str) -> bool:
    """Whether both end in the same number; an answer without a number is always wrong."""
    found = final_number(answer)
    return found is not None and found == final_number(truth)
