"""Settings for sampling a diffusion model, checked without slow imports."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from onelora_vision.errors import InputError, nearest

MAX_SEED = 2**63 - 1
MAX_STEPS = 10_000
#: Samplers by what a base's network predicts (see `objective`); the first one is the default.
SAMPLERS = {"epsilon": ("dpm++", "ddim", "ddpm"), "velocity": ("heun", "euler", "sde")}
AUTO = "auto"  # the default sampler of the base's objective
SAMPLER_NAMES = (AUTO, *(name for names in SAMPLERS.values() for name in names))


def parse_numbers(text: str, flag: str, count: int | None = None) -> tuple[float, ...]:
    """Parse the comma-separated numbers of a flag that takes ``count`` of them (None: any number).

    Raises:
        InputError: the text is invalid; the message names the flag.
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or count not in (None, len(numbers)):
        wanted = f"{count} numbers" if count else "numbers"
        raise InputError(f"{flag} is {text!r}, but must be {wanted} with a comma between them, such as 0.1,0.8")
    return numbers


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample. The defaults are DiT's usual evaluation settings with a short sampler.

    Attributes:
        sampler: for bases that predict the noise, ``ddim`` (η = 0, deterministic), ``dpm++`` (DPM-Solver++ 2M,
            deterministic), or ``ddpm`` (the original's ancestral sampler, with the learned variance if the network has
            one). For bases that predict the velocity, ``euler``, ``heun`` or ``sde`` (see `flow.integrate`). ``auto``
            is the base's first sampler in `SAMPLERS`.
        steps: denoising steps.
        guidance_scale: scale of classifier-free guidance (arXiv 2207.12598); 1 means no guidance.
        guidance_channels: guide only the first N latent channels; None for all. The original DiT guides 3 of 4.
        guidance_interval: guide only at timesteps t with low <= t/T < high (arXiv 2404.07724) or, for bases that
            predict the velocity, with t from 0 to 1, at low <= t <= high.
        guidance_base: guide away from the frozen base instead of the adapted model's own null class (arXiv 2504.01521),
            see `diffusion.guidance`.
    """

    sampler: str = AUTO
    steps: int = 20
    guidance_scale: float = 1.5
    guidance_channels: int | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_base: bool = False

    def __post_init__(self):
        if self.sampler not in SAMPLER_NAMES:
            hint = nearest(str(self.sampler), SAMPLER_NAMES, "sampler")
            raise InputError(f"sampler={self.sampler!r} is unknown{hint}")
        if not _is_count(self.steps):
            raise InputError(f"steps={self.steps!r}: a sampler needs at least 1 step, and at most {MAX_STEPS}")
        if not _is_number(self.guidance_scale):
            raise InputError(f"guidance_scale={self.guidance_scale!r}: must be a finite number; 1 means no guidance")
        if self.guidance_channels is not None and not _is_count(self.guidance_channels):
            raise InputError(f"guidance_channels={self.guidance_channels!r}: guide at least 1 channel, or all (null)")
        if not isinstance(self.guidance_base, bool):
            raise InputError(f"guidance_base={self.guidance_base!r}: must be true or false")
        interval = self.guidance_interval
        if not (isinstance(interval, tuple) and len(interval) == 2 and all(map(_is_number, interval))):
            raise InputError(f"guidance_interval={interval!r}: must be two numbers, such as 0.1,0.8")
        if not 0 <= interval[0] < interval[1] <= 1:
            raise InputError(f"guidance_interval={interval}: needs 0 <= low < high <= 1")

    @property
    def uses_base(self) -> bool:
        """Whether sampling uses the base. At a scale of 1, there is no guidance."""
        return self.guidance_base and self.guidance_scale != 1

    def require_effect(self, flag: str = "--guidance_scale") -> None:
        """Check that guidance from the base, if requested, has an effect. ``flag`` names the scale in the message.

        Raises:
            InputError: the scale is 1.
        """
        if self.guidance_base and not self.uses_base:
            raise InputError(
                f"guidance from the base has no effect with {flag} 1: give another scale, or leave it out"
            )

    def guidance_text(self) -> str:
        """The guidance in words, for captions: ``guidance 2.5 from the base``."""
        return f"guidance {self.guidance_scale:g}{' from the base' if self.uses_base else ''}"

    def resolved(self, objective: str) -> Self:
        """Replace ``auto`` by the default sampler for a base of ``objective``, a key of `SAMPLERS`.

        Raises:
            InputError: the sampler is for bases of another objective.
        """
        own = SAMPLERS[objective]
        if self.sampler == AUTO:
            return replace(self, sampler=own[0])
        if self.sampler not in own:
            raise InputError(
                f"sampler {self.sampler!r} is not for this base, which predicts {objective}: choose {', '.join(own)}, "
                f"or {AUTO}"
            )
        return self

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """Read settings from a JSON object, ignoring other keys. Missing settings have their defaults.

        Raises:
            InputError: a value is invalid.
        """
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        if isinstance(known.get("guidance_interval"), list):
            known["guidance_interval"] = tuple(known["guidance_interval"])
        return cls(**known)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_STEPS
