"""Settings that a browser keeps. They are not trusted: each value is checked, and invalid ones are ignored."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A number from ``low`` to ``high``."""

    low: float
    high: float
    whole: bool = False

    def takes(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        return not self.whole or value == int(value)


@dataclass(frozen=True)
class Choice:
    """One of some texts."""

    choices: Collection[str]

    def takes(self, value: object) -> bool:
        return isinstance(value, str) and value in self.choices


class Switch:
    """On or off."""

    def takes(self, value: object) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Texts:
    """At most ``most`` texts of at most ``longest`` letters."""

    most: int
    longest: int

    def takes(self, value: object) -> bool:
        is_short = isinstance(value, list) and len(value) <= self.most
        return is_short and all(isinstance(text, str) and len(text) <= self.longest for text in value)


Kind = Number | Choice | Switch | Texts


def accepted(said: object, kinds: Mapping[str, Kind]) -> dict:
    """The valid values of known settings among those that a browser sent."""
    known = said if isinstance(said, dict) else {}
    return {name: known[name] for name, kind in kinds.items() if name in known and kind.takes(known[name])}
