"""Which classes of a base the classes of a dataset are, by their names."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from onelora_vision.errors import listed


class Matches(NamedTuple):
    """What `match_classes` found.

    Attributes:
        rows: class of the dataset -> number of the base's class.
        ambiguous: classes of the dataset that several of the base's are called, or share one of the base's.
    """

    rows: dict[str, int]
    ambiguous: list[str]

    def describe(self, base_names: Sequence[str]) -> str:
        """Which classes come from where, for people."""
        taken = [
            name if base_names[row] == name else f"{name} from {base_names[row]!r}" for name, row in self.rows.items()
        ]
        unclear = f"; not taken, as their names are ambiguous: {listed(self.ambiguous)}" if self.ambiguous else ""
        return f"{len(taken)} of them known to the base{': ' if taken else ''}{listed(taken, 20)}{unclear}"


def match_classes(names: Sequence[str], base_names: Sequence[str]) -> Matches:
    """Find the classes of a dataset among those of a base, whose names may be synonyms with commas between them.

    A name is compared as it is with the base's whole names, then without regard to case, accents, underscores and
    hyphens with each synonym ("ice_cream" is "ice cream, icecream"), then in the singular ("strawberries" is
    "strawberry"). The first of these that finds a class decides; if it finds several, none is taken. Words in brackets
    are part of a name: "crane (bird)" is not "crane".
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
    """The parts between commas outside brackets, normalised: "drake (bird, male), duck" has two.

    A part that another one makes more precise is left out: "mouse, computer mouse" is not the animal.
    """
    parts = [_normalised(part) for part in re.split(r",(?![^(]*\))", name)]
    return [part for part in parts if not any(other.endswith(f" {part}") for other in parts)]


def _normalised(name: str) -> str:
    """A name's words in lower case, without the accents of Latin letters. Single characters stay as they are: in some
    alphabets "a" and "A" are classes."""
    if len(name.strip()) < 2:
        return name.strip()
    letters = unicodedata.normalize("NFKD", name.casefold())
    letters = unicodedata.normalize("NFC", re.sub(r"(?<=[a-z])[\u0300-\u036f]+", "", letters))
    return " ".join(
        re.sub(r"[\W_]+", " ", letters.replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")).split()
    )


def _singular(name: str) -> str:
    """The last word in the singular, where English forms it regularly and the word is long enough to be sure."""
    head, space, word = name.rpartition(" ")
    if len(word) > 3 and word.isascii():
        if word.endswith("ies") and len(word) > 4:
            word = f"{word[:-3]}y"
        elif re.search(r"(ch|sh|x|ss|to)es$", word):
            word = word[:-2]
        elif re.search(r"[^siu]s$", word):
            word = word[:-1]
    return head + space + word
