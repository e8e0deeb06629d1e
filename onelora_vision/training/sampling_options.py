"""The flags for sampling from a generator, and for evaluating and showing the samples."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from onelora_vision.diffusion.settings import SamplingSettings, parse_numbers
from onelora_vision.training.config import option

GUIDANCE_SCALE = 4.0  # unless a flag or the training says otherwise
DINOV2 = "vit_large_patch14_dinov2.lvd142m"


@dataclass(kw_only=True)
class SamplingOptions:
    """How an evaluation samples, what the samples are compared with, and which of them are in the picture."""

    group: ClassVar[str] = "evaluation"

    sampler: Literal["auto", "dpm++", "ddim", "ddpm", "heun", "euler", "sde"] = option(
        "auto",
        "sampler of the evaluation and the picture: dpm++, ddim or ddpm for a DiT; heun, euler or sde for a SiT (auto: "
        "the first of these)",
    )
    num_inference_steps: int = option(12, "denoising steps of the sampler")
    guidance_scale: float | None = option(
        None, "guidance scale; 1: no guidance (default: 4, or 1 with --guidance_distillation)"
    )
    guidance_base: bool = option(False, "guide away from the frozen base instead of the adapted model's null class")
    guidance_channels: int | None = option(None, "number of guided latent channels; 3 in the original (default: all)")
    guidance_interval: str = option("0,1", "guide only in this range of timesteps, as fractions, such as 0.1,0.8")
    guidance_scales: str | None = option(None, "scales to evaluate at the end, such as 1.0,1.5,2.0, with a plot")
    fid_features: Literal["auto", "none", "embedded", "inception", "dinov2"] = option(
        "auto", "features of the Fréchet distance"
    )
    fid_weights: str | None = option(None, "weights of inception or dinov2: a file, or 'download'", may_change=True)
    fid_timm_model: str = option(DINOV2, "timm model of dinov2")
    fid_split: Literal["test", "validation", "train"] = option("test", "real images that samples are compared with")
    fid_reference: str | None = option(
        None, "npz file with published statistics of Inception features, instead of --fid_split", may_change=True
    )
    fid_num_samples: int = option(500, "samples per evaluation; 0: no evaluation")
    validation_classes: str | None = option(
        None, "comma-separated classes in the picture (default: ten, spread over all)"
    )
    num_validation_images: int = option(4, "images of each class in the picture")

    def sampling(self, default_scale: float = GUIDANCE_SCALE) -> SamplingSettings:
        """How to sample, with guidance at ``default_scale`` unless a flag says otherwise.

        Raises:
            InputError: a flag is out of range or has no effect.
        """
        interval = parse_numbers(self.guidance_interval, "--guidance_interval", count=2)
        scale = default_scale if self.guidance_scale is None else self.guidance_scale
        settings = SamplingSettings(
            self.sampler, self.num_inference_steps, scale, self.guidance_channels, interval, self.guidance_base
        )
        if all(swept == 1 for swept in self.swept_scales()):
            settings.require_effect()
        return settings

    def swept_scales(self) -> tuple[float, ...]:
        return parse_numbers(self.guidance_scales, "--guidance_scales") if self.guidance_scales else ()
