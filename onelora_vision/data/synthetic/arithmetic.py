"""Arithmetic word problems: plain sums, and short stories that require calculating.

The embedded language model was trained on plain sums, and on stories whose questions repeat what the story says. Its
fine-tuning task is the combination: the same sums, told as stories. Answers end as in MetaMath, with
``The answer is: 42``.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from onelora_vision.seeding import mix

LARGEST = 29  # largest operand; differences are never negative
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas", "Lena", "Max")
THINGS = ("apples", "books", "coins", "eggs", "cards", "shells", "stones", "pears", "stamps", "balls", "nuts", "pens")
GAINS = (("finds", "find"), ("buys", "buy"), ("gets", "get"), ("wins", "win"))
LOSSES = (("loses", "lose"), ("sells", "sell"), ("gives away", "give away"), ("drops", "drop"))
SUMS = ("What is {a} plus {b}?", "Add {b} to {a}.", "What is the sum of {a} and {b}?", "How much is {a} and {b}?")
DIFFERENCES = (
    "What is {a} minus {b}?",
    "Subtract {b} from {a}.",
    "What is the difference of {a} and {b}?",
    "How much is {a} less {b}?",
)
_STORY = "{name} has {a} {things}. {name} {does} {b} {things}."


class Problem(NamedTuple):
    """A question and its full answer."""

    query: str
    response: str


def plain_sum(seed: int) -> Problem:
    """A plain question about a sum or a difference."""
    draw = random.Random(mix(seed, 0))
    a, b, sign, result = _numbers(draw)
    query = draw.choice(SUMS if sign == "+" else DIFFERENCES).format(a=a, b=b)
    return Problem(query, f"{a} {sign} {b} = {result}. The answer is: {result}")


def retold_story(seed: int) -> Problem:
    """A story and a question that it answers directly: the number at first, or the number gained or lost."""
    draw = random.Random(mix(seed, 1))
    a, b, sign, _ = _numbers(draw)
    name, things, does, do = _cast(draw, sign)
    story = _STORY.format(name=name, things=things, does=does, a=a, b=b)
    if draw.random() < 0.5:
        query, answer = f"How many {things} does {name} have at first?", f"{name} has {a} {things}."
        return Problem(f"{story} {query}", f"{answer} The answer is: {a}")
    query, answer = f"How many {things} does {name} {do}?", f"{name} {does} {b} {things}."
    return Problem(f"{story} {query}", f"{answer} The answer is: {b}")


def counted_story(seed: int) -> Problem:
    """A story and a question about the number in the end, a sum or difference of the story's two numbers."""
    draw = random.Random(mix(seed, 2))
    a, b, sign, result = _numbers(draw)
    name, things, does, _ = _cast(draw, sign)
    story = _STORY.format(name=name, things=things, does=does, a=a, b=b)
    query = f"How many {things} does {name} have now?"
    return Problem(f"{story} {query}", f"{a} {sign} {b} = {result}. The answer is: {result}")


def counted_stories(count: int, seed: int = 0) -> list[Problem]:
    """Make ``count`` different problems with `counted_story`, the same for every run with this seed."""
    found: dict[str, Problem] = {}
    number = 0
    while len(found) < count:
        problem = counted_story(mix(seed, number))
        found.setdefault(problem.query, problem)
        number += 1
    return list(found.values())


def _numbers(draw: random.Random) -> tuple[int, int, str, int]:
    a, b, sign = draw.randint(1, LARGEST), draw.randint(1, LARGEST), draw.choice("+-")
    if sign == "-":
        a, b = max(a, b), min(a, b)
    return a, b, sign, a + b if sign == "+" else a - b


def _cast(draw: random.Random, sign: str) -> tuple[str, str, str, str]:
    verbs: Sequence[tuple[str, str]] = GAINS if sign == "+" else LOSSES
    return draw.choice(NAMES), draw.choice(THINGS), *draw.choice(verbs)
