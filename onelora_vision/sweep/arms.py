"""What a sweep compares: methods, optionally with their own flags, named as in ``lora:rank=4``."""

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
        method: as in ``--method``.
        flags: pairs of names and values, in the given order.
        rate_of: the arm whose best learning rate this one uses; None to search for its own.
    """

    method: str
    flags: tuple[tuple[str, str], ...] = ()
    rate_of: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``METHOD[:FLAG=VALUE…][@ARM]``, such as ``lora:rank=4`` or ``lora:target_modules=attn@lora``.

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
        """Its name in tables, as read by `parse`."""
        own = ":".join([self.method, *(f"{name}={value}" for name, value in self.flags)])
        return f"{own}@{self.rate_of}" if self.rate_of else own

    @property
    def folder(self) -> str:
        """Its folder name."""
        return quote(self.name.replace(":", ","), safe="=,@+")


def arm_names(texts: Sequence[str]) -> list[str]:
    """The names of arms as in tables, in the given order.

    Raises:
        InputError: see `Arm.parse`; or an arm is given twice.
    """
    names = [Arm.parse(text).name for text in texts]
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise InputError(f"a method is given twice: {twice[0]}")
    return names


def parse_arms(texts: Sequence[str]) -> dict[str, Arm]:
    """The arms by name, in the given order.

    Raises:
        InputError: see `arm_names`; or an arm uses the rate of one that does not search for its own.
    """
    arms = dict(zip(arm_names(texts), map(Arm.parse, texts)))
    for arm in arms.values():
        if arm.rate_of is not None and (arm.rate_of not in arms or arms[arm.rate_of].rate_of is not None):
            raise InputError(
                f"{arm.name}: takes the learning rate of {arm.rate_of}, which this sweep does not search for"
            )
    return arms
