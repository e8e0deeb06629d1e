"""What a sweep compares: methods, each perhaps with flags of its own, as ``lora:rank=4`` names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote

from onelora_vision.errors import InputError
from onelora_vision.methods.names import find_method


@dataclass(frozen=True)
class Arm:
    """A method with the flags that only its runs have.

    Attributes:
        method: as ``--method`` takes it.
        flags: pairs of names and values, in the order they were given.
        rate_of: the arm whose best learning rate this one takes; None: it is searched.
    """

    method: str
    flags: tuple[tuple[str, str], ...] = ()
    rate_of: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``METHOD[:FLAG=VALUE…][@ARM]``, such as ``lora:rank=4`` or ``lora:target_modules=attn@lora``.

        Raises:
            InputError: an unknown method, or a flag without a value.
        """
        own, at, rate_of = text.strip().partition("@")
        method, *pairs = own.split(":")
        flags = []
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or not name or not value:
                raise InputError(
                    f"{text}: expected METHOD:FLAG=VALUE, such as lora:rank=4, but {pair!r} is not FLAG=VALUE"
                )
            flags.append((name.strip().removeprefix("--").replace("-", "_"), value.strip()))
        return cls(find_method(method.strip()).name, tuple(flags), cls.parse(rate_of).name if at else None)

    @property
    def name(self) -> str:
        """How tables call it, and `parse` reads it."""
        own = ":".join([self.method, *(f"{name}={value}" for name, value in self.flags)])
        return f"{own}@{self.rate_of}" if self.rate_of else own

    @property
    def folder(self) -> str:
        """Its name as that of a folder."""
        return quote(self.name.replace(":", ","), safe="=,@+")


def arm_names(texts: Sequence[str]) -> list[str]:
    """The names of arms as tables have them, in the order given.

    Raises:
        InputError: see `Arm.parse`; one is given twice.
    """
    names = [Arm.parse(text).name for text in texts]
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise InputError(f"a method is given twice: {twice[0]}")
    return names


def parse_arms(texts: Sequence[str]) -> dict[str, Arm]:
    """The arms by name, in the order given.

    Raises:
        InputError: see `arm_names`; one takes the rate of another that does not search for its own.
    """
    arms = dict(zip(arm_names(texts), map(Arm.parse, texts)))
    for arm in arms.values():
        if arm.rate_of is not None and (arm.rate_of not in arms or arms[arm.rate_of].rate_of is not None):
            raise InputError(
                f"{arm.name}: takes the learning rate of {arm.rate_of}, which this sweep does not search for"
            )
    return arms
