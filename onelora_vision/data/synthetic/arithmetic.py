"""Arithmetic in words: sums that are asked for plainly, and small stories whose end has to be counted.

The embedded language model was trained on the first kind and on stories that ask for what they say. Its job is the second
kind: the same sums, told as stories. Answers end like MetaMath's, in ``The answer is: 42``.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from onelora_vision.seeding import mix

LARGEST = 29  # of the numbers that are added; differences are not negative
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
    """A question and its answer in full."""

    query: str
    response: str


def plain_sum(seed: int) -> Problem:
    """A sum or a difference that is asked for plainly."""
    draw = random.Random(mix(seed, 0))
    a, b, sign, result = _numbers(draw)
    query = draw.choice(SUMS if sign == "+" else DIFFERENCES).format(a=a, b=b)
    return Problem(query, f"{a} {sign} {b} = {result}. The answer is: {result}")


def retold_story(seed: int) -> Problem:
    """A story and a question whose answer stands in it: what there was at first, or what was won or lost."""
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
    """A story and the question what there is in the end, which is a sum or a difference of its two numbers."""
    draw = random.Random(mix(seed, 2))
    a, b, sign, result = _numbers(draw)
    name, things, does, _ = _cast(draw, sign)
    story = _STORY.format(name=name, things=things, does=does, a=a, b=b)
    query = f"How many {things} does {name} have now?"
    return Problem(f"{story} {query}", f"{a} {sign} {b} = {result}. The answer is: {result}")


def counted_stories(count: int, seed: int = 0) -> list[Problem]:
    """``count`` different `counted_story`s, the same for each run with this seed."""
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
