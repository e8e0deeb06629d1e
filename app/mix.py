"""A mix: adapters of one task with their weights."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from onelora_vision.adapters.algebra import belongs_to_classes, blend
from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.adapters.layout import layout_of
from onelora_vision.backbones.base import Base
from onelora_vision.errors import InputError

from .library import Entry


@dataclass(frozen=True)
class Mix:
    """A weighted sum of adapters; without adapters, the base alone.

    Attributes:
        info: the task, the base, and the classes and settings that the base is fitted to.
        terms: the adapters with their weights.
    """

    info: AdapterInfo
    terms: tuple[tuple[Entry, float], ...] = ()

    @classmethod
    def of(cls, terms: Iterable[tuple[Entry, float]], task: str) -> Self:
        """A mix on the base of its first adapter, or on the default base of ``task`` if there are no adapters."""
        terms = tuple(terms)
        return cls(terms[0][0].adapter.info if terms else AdapterInfo(task, "", ""), terms)

    def without_adapters(self) -> Self:
        """The base alone, fitted to the same classes."""
        return replace(self, terms=())

    def at_weight(self, weight: float) -> Self:
        """The same adapters, each at ``weight``."""
        return replace(self, terms=tuple((entry, weight) for entry, _ in self.terms))

    @property
    def fingerprint(self) -> tuple[tuple[str, float], ...]:
        """Tells the sums of adapters on one base apart; adapters at weight 0 do not count."""
        return tuple((entry.fingerprint, weight) for entry, weight in self.terms if weight)

    def adapter(self, base: Base) -> Adapter | None:
        """The sum as one adapter, as `onelora_vision.adapters.algebra` defines it; None if all weights are 0.

        Args:
            base: the base of the mix, whose values the sum of modules saved whole needs.

        Raises:
            InputError: the adapters have no sum.
        """
        parts = [(entry.adapter, weight) for entry, weight in self.terms if weight]
        if not parts:
            return None
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0]
        for adapter, _ in parts:
            _require_sum(adapter)
        return blend(parts, base=base.model, whole_from=_owner_of_classes(parts))

    def __str__(self) -> str:
        return " + ".join(f"{weight:g} × {entry.name}" for entry, weight in self.terms)


def _require_sum(adapter: Adapter) -> None:
    kind = kind_of(adapter.config)
    is_dora = getattr(adapter.config, "use_dora", False)
    if is_dora or kind.sum is None:
        name = "DoRA" if is_dora else kind.name
        raise InputError(
            f"{adapter.path}: {name} has no weights and no sums; use it alone, at weight 1, or disable it"
        )


def _owner_of_classes(parts: list[tuple[Adapter, float]]) -> Adapter | None:
    """The adapter whose head or label table is taken, where weights that sum to 0 cannot interpolate them.

    Raises:
        InputError: the weights sum to 0, and an adapter has other modules saved whole.
    """
    if abs(sum(weight for _, weight in parts)) > 1e-6:
        return None
    for adapter, _ in parts:
        whole = layout_of(adapter.config, adapter.tensors).whole
        if not all(belongs_to_classes(values, adapter.info.class_names) for values in whole.values()):
            raise InputError(
                f"{adapter.path}: trains whole modules, which have no sum with weights that add up to 0; "
                "move a slider a little"
            )
    return parts[0][0]
