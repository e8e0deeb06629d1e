"""Settings for changes of the training loss, checked without slow imports."""

import math
from dataclasses import dataclass

from onelora_vision.errors import InputError, nearest

TIMESTEP_SAMPLINGS = ("uniform", "logit_normal")


@dataclass(frozen=True)
class LossSettings:
    """Settings of a generator's training loss. The defaults are DiT's own loss.

    Attributes:
        snr_gamma: weight the loss of the noise by min(SNR, γ) / SNR (arXiv 2303.09556), see `schedule.min_snr_weights`.
        timestep_sampling: ``uniform``, or ``logit_normal`` (arXiv 2403.03206), see `schedule.draw_shares`.
        logit_mean, logit_std: mean and standard deviation of the normal distribution behind ``logit_normal``.
        guidance_distillation: train towards guidance from the base (DogFit, arXiv 2508.05685), see
            `guidance.distilled_target`. Must be greater than 1, which means none, and less than 2, from where on there
            is no optimum.
        guidance_channels, guidance_interval: channels and times that are guided, as in `settings.SamplingSettings`.
    """

    snr_gamma: float | None = None
    timestep_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    guidance_distillation: float | None = None
    guidance_channels: int | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        if self.timestep_sampling not in TIMESTEP_SAMPLINGS:
            hint = nearest(str(self.timestep_sampling), TIMESTEP_SAMPLINGS, "distribution")
            raise InputError(f"timestep_sampling={self.timestep_sampling!r} is unknown{hint}")
        if self.snr_gamma is not None and not 0 < self.snr_gamma < math.inf:
            raise InputError(f"snr_gamma={self.snr_gamma!r}: must be greater than 0; 5 is the paper's")
        if not math.isfinite(self.logit_mean) or not 0 < self.logit_std < math.inf:
            raise InputError(
                f"logit_mean={self.logit_mean!r}, logit_std={self.logit_std!r}: need a normal distribution"
            )
        if (self.logit_mean, self.logit_std) != (0, 1) and self.timestep_sampling != "logit_normal":
            raise InputError("logit_mean and logit_std have no effect without timestep_sampling=logit_normal")
        if self.guidance_distillation is not None and not 1 < self.guidance_distillation < 2:
            raise InputError(
                f"guidance_distillation={self.guidance_distillation!r}: must be greater than 1 and less than 2, since "
                "the trained model approaches guidance from the base at the scale 1 / (2 - guidance_distillation)"
            )

    def facts(self) -> dict[str, str | float]:
        """The settings that differ from the plain loss, for an adapter's file and card."""
        found = {"guidance_distillation": self.guidance_distillation, "snr_gamma": self.snr_gamma}
        if self.timestep_sampling == "logit_normal":
            found["timesteps"] = f"logit-normal, mean {self.logit_mean:g}, deviation {self.logit_std:g}"
        return {name: value for name, value in found.items() if value is not None}
