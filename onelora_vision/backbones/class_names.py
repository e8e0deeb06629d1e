"""Matching the classes of a dataset to those of a base, by name."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from onelora_vision.errors import listed


class Matches(NamedTuple):
    """The result of `match_classes`.

    Attributes:
        rows: class of the dataset -> number of the base's class.
        ambiguous: classes of the dataset that match several of the base's classes, or share a match.
    """

    rows: dict[str, int]
    ambiguous: list[str]

    def describe(self, base_names: Sequence[str]) -> str:
        """Describe for users which classes come from which classes of the base."""
        taken = [
            name if base_names[row] == name else f"{name} from {base_names[row]!r}" for name, row in self.rows.items()
        ]
        unclear = f"; not taken, as their names are ambiguous: {listed(self.ambiguous)}" if self.ambiguous else ""
        return f"{len(taken)} of them known to the base{': ' if taken else ''}{listed(taken, 20)}{unclear}"


def match_classes(names: Sequence[str], base_names: Sequence[str]) -> Matches:
    """Find the classes of a dataset among those of a base, whose names may be comma-separated synonyms.

    A name is first compared exactly with the base's full names, then with each synonym, ignoring case, accents,
    underscores and hyphens ("ice_cream" is "ice cream, icecream"), and then in the singular ("strawberries" is
    "strawberry"). The first of these steps that finds a class decides; if it finds several, none is used. Words in
    parentheses are part of a name: "crane (bird)" is not "crane".
    """
    steps = [
        _index(base_names, lambda name: [name]),
        _index(base_names, _synonyms),
        _index(base_names, lambda name: map(_singular, _synonyms(name))),
    ]
    rows, ambiguous = {}, []
    for name in names:
        keys = (name, _normalised(name), _singular(_normalised(name)))
        found = next((index[key] for index, key in zip(steps, keys) if key in index), set())
        if len(found) == 1:
            rows[name] = next(iter(found))
        elif found:
            ambiguous.append(name)
    users = defaultdict(list)
    for name, row in rows.items():
        users[row].append(name)
    shared = {name for sharers in users.values() if len(sharers) > 1 for name in sharers}
    return Matches({name: row for name, row in rows.items() if name not in shared}, [*ambiguous, *sorted(shared)])


def _index(base_names: Sequence[str], keys: Callable) -> dict[str, set[int]]:
    index = defaultdict(set)
    for row, name in enumerate(base_names):
        for key in keys(name):
            index[key].add(row)
    return dict(index)


def _synonyms(name: str) -> list[str]:
    """Split a name at commas outside parentheses and normalise the parts: "drake (bird, male), duck" has two.

    A part that another one specifies more precisely is left out: "mouse, computer mouse" is not the animal.
    """
    parts = [_normalised(part) for part in re.split(r",(?![^(]*\))", name)]
    return [part for part in parts if not any(other.endswith(f" {part}") for other in parts)]


def _normalised(name: str) -> str:
    """A name's words in lower case, without the accents of Latin letters.

    Single characters stay as they are, since "a" and "A" can be different classes of letters.
    """
    if len(name.strip()) < 2:
        return name.strip()
    letters = unicodedata.normalize("NFKD", name.casefold())
    letters = unicodedata.normalize("NFC", re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", letters))
    return " ".join(
        re.sub(r"[\W_]+", " ", letters.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")).split()
    )


def _singular(name: str) -> str:
    """Put the last word into the singular, if its plural is regular in English and long enough to be sure."""
    head, space, word = name.rpartition(" ")
    if len(word) > 3 and word.isascii():
        if word.endswith("ies") and len(word) > 4:
            word = f"{word[:-3]}y"
        elif re.search(r"(ch|sh|x|ss|to)es$", word):
            word = word[:-2]
        elif re.search(r"[^siu]s$", word):
            word = word[:-1]
    return head + space + word
