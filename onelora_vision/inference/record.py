"""How a sample was generated, stored in the text fields of its PNG so that it can be reproduced."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError


class UsedAdapter(NamedTuple):
    """An adapter used for a sample.

    Attributes:
        name: its name; for ``onelora sample``, the path of its only adapter.
        fingerprint: a hash of its values; empty if only the name is known.
    """

    name: str
    weight: float = 1.0
    fingerprint: str = ""


@dataclass(frozen=True)
class SampleRecord:
    """The information in the PNG of a sample, or of a grid of samples.

    Attributes:
        settings: the sampling settings.
        adapters: the adapters in the request.
        adapted: whether they were used; False for images of the base alone.
        class_name, label, seed: of a single sample; None for a grid.
        request: further settings of the request, as in JSON.
    """

    settings: SamplingSettings
    adapters: tuple[UsedAdapter, ...] = ()
    adapted: bool = True
    class_name: str | None = None
    label: int | None = None
    seed: int | None = None
    request: Mapping[str, Any] = field(default_factory=dict)

    def to_notes(self) -> dict[str, str]:
        """The text fields for `plots.pictures.save_sample`."""
        sample = {"seed": self.seed, "class": self.class_name, "label": self.label}
        notes = {key: str(value) for key, value in sample.items() if value is not None}
        return {**notes, "settings": json.dumps(self.to_json())}

    def to_json(self) -> dict[str, Any]:
        """The settings shared by the samples of one request."""
        return {**self.request, **self._adapters_to_json(), "adapted": self.adapted, **asdict(self.settings)}

    def _adapters_to_json(self) -> dict[str, Any]:
        if len(self.adapters) == 1 and not self.adapters[0].fingerprint:
            return {"adapter": self.adapters[0].name}
        return {"adapters": [{"name": a.name, "digest": a.fingerprint, "weight": a.weight} for a in self.adapters]}

    @classmethod
    def from_notes(cls, notes: Mapping[str, str], where: str = "the PNG") -> Self:
        """Parse the output of `to_notes`; ``where`` names the file in messages.

        Raises:
            InputError: the settings are missing, damaged, or unusable for sampling.
        """
        try:
            record = json.loads(notes["settings"])
            return cls(
                settings=_read_settings(record),
                adapters=tuple(_read_adapters(record)),
                adapted=bool(record.get("adapted")),
                class_name=notes.get("class"),
                label=int(notes["label"]) if "label" in notes else None,
                seed=int(notes["seed"]) if "seed" in notes else None,
                request={key: value for key, value in record.items() if key not in _NOT_OF_THE_REQUEST},
            )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{where}: the settings in this PNG are damaged") from error


_NOT_OF_THE_REQUEST = {*SamplingSettings.__dataclass_fields__, "adapter", "adapters", "adapted"}


def _read_settings(record: dict) -> SamplingSettings:
    channels = record.get("guidance_channels")
    low, high = record.get("guidance_interval", (0, 1))
    return SamplingSettings(
        sampler=str(record["sampler"])[:40],
        steps=int(record["steps"]),
        guidance_scale=float(record["guidance_scale"]),
        guidance_channels=None if channels is None else int(channels),
        guidance_interval=(float(low), float(high)),
        guidance_base=record.get("guidance_base", False),
    )


def _read_adapters(record: dict) -> list[UsedAdapter]:
    if "adapter" in record:  # `onelora sample` names it even if asked to sample without it
        return [UsedAdapter(str(record["adapter"]))] if record.get("adapted") else []
    found = record.get("adapters", [])
    return [UsedAdapter(str(a["name"]), float(a["weight"]), str(a.get("digest", ""))) for a in found]
