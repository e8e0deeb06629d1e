"""The flags that change the training loss of a generator, and how they affect its sampling."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from onelora_vision.diffusion.loss_settings import LossSettings
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.training.config import option
from onelora_vision.training.sampling_options import GUIDANCE_SCALE, SamplingOptions


@dataclass(kw_only=True)
class LossOptions(SamplingOptions):
    """Settings of the loss; without these flags it is the original DiT loss."""

    group: ClassVar[str] = "optimization"

    snr_gamma: float | None = option(
        None, "weight the noise's loss by min(SNR, gamma) / SNR (min-SNR); 5 in the paper (default: equal weights)"
    )
    timestep_sampling: Literal["uniform", "logit_normal"] = option(
        "uniform", "distribution of the training's timesteps"
    )
    logit_mean: float = option(0.0, "mean of logit_normal; above 0: more noise")
    logit_std: float = option(1.0, "standard deviation of logit_normal")
    guidance_distillation: float | None = option(
        None,
        "train towards guidance from the base at the scale 1 / (2 - VALUE), so that sampling needs none (DogFit); "
        "between 1 and 2, 1.5 in the paper's code (default: 1.8 for the embedded job, unless a flag or --peft_config says "
        "how to guide or adapt; else off)",
    )

    def sampling(self, default_scale: float = GUIDANCE_SCALE) -> SamplingSettings:
        """How to sample. A model that was trained towards guidance is sampled without guidance.

        Raises:
            InputError: a flag is out of range or has no effect, or both training and sampling are guided.
        """
        if self.guidance_distillation is None:
            return super().sampling(default_scale)
        twice = {
            "guidance_base": self.guidance_base,
            "guidance_scale": self.guidance_scale not in (None, 1),
            "guidance_scales": any(scale != 1 for scale in self.swept_scales()),
        }
        for flag, is_guided in twice.items():
            if is_guided:
                raise InputError(f"--{flag} with --guidance_distillation would guide twice: leave out one of them")
        return super().sampling(1.0)

    def loss_settings(self) -> LossSettings:
        """The settings of the loss; its guidance follows the sampling flags.

        Raises:
            InputError: a flag is out of range or has no effect.
        """
        sampling = self.sampling()
        return LossSettings(
            self.snr_gamma,
            self.timestep_sampling,
            self.logit_mean,
            self.logit_std,
            self.guidance_distillation,
            sampling.guidance_channels,
            sampling.guidance_interval,
        )
