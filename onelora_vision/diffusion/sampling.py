"""Class-conditional sampling of a DiT with an explicit null class.

Each image has its own seed: its initial noise, and the noise of stochastic samplers, come from that seed alone, so an
image does not depend on the batch it is made in, and a base and an adapted model can be compared on the same noise.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import nn

from onelora_vision import seeding
from onelora_vision.diffusion.guidance import GuidedModel
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError


class SpacedDDIM(DDIMScheduler):
    """DDIM with η = 0 (Song et al. 2020, arXiv 2010.02502, equation 12) from each visited timestep to the next.

    diffusers' own goes back by T // steps whatever timestep it visits next, so the two part where that does not divide
    the schedule evenly.
    """

    def step(self, output: torch.Tensor, t: torch.Tensor, x: torch.Tensor) -> DDIMSchedulerOutput:
        """From x_t (N, C, H, W) and the predicted noise to x at the next timestep, or to x_0 after the last."""
        index = int((self.timesteps == t).nonzero())
        following = self.timesteps[index + 1 : index + 2].cpu()
        now = self.alphas_cumprod[t.cpu()]
        then = self.alphas_cumprod[following].squeeze() if len(following) else torch.ones(())
        x0 = (x - (1 - now).sqrt() * output) / now.sqrt()
        return DDIMSchedulerOutput(then.sqrt() * x0 + (1 - then).sqrt() * output, x0)


def make_scheduler(sampler: str, base_config: dict, learned_variance: bool):
    """diffusers' scheduler for a sampler name, on the noise schedule that the model was trained with."""
    base = {key: base_config[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
    base["trained_betas"] = base_config.get("trained_betas")
    if sampler == "ddim":
        return SpacedDDIM(**base)
    if sampler == "dpm++":
        return DPMSolverMultistepScheduler(**base, algorithm_type="dpmsolver++", timestep_spacing="linspace")
    variance = "learned_range" if learned_variance else "fixed_small"
    return DDPMScheduler(**base, clip_sample=False, variance_type=variance)


def set_timesteps(scheduler, steps: int, device: torch.device | str = "cpu") -> None:
    """Choose the timesteps of a sampler: DDIM's and DDPM's evenly from T - 1 to 0, as the original DiT's, rounded.

    Raises:
        InputError: more steps than the schedule has timesteps.
    """
    total = scheduler.config.num_train_timesteps
    if steps > total:
        raise InputError(f"steps={steps}: the noise schedule has {total} timesteps")
    if isinstance(scheduler, DPMSolverMultistepScheduler):
        scheduler.set_timesteps(steps, device=device)
        return
    timesteps = torch.linspace(total - 1, 0, steps, dtype=torch.float64).round().long()
    if isinstance(scheduler, DDPMScheduler):
        scheduler.set_timesteps(timesteps=timesteps.tolist(), device=device)
    else:
        scheduler.timesteps = timesteps.to(device)


class Step(NamedTuple):
    """One denoising step: its ``number`` from 0, the latents ``x`` after it, and the ``clean`` ones that it predicts."""

    number: int
    x: torch.Tensor
    clean: torch.Tensor


@torch.no_grad()
def denoise(
    transformer: nn.Module,
    scheduler_config: dict,
    labels: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = SamplingSettings(),
    base: nn.Module | None = None,
) -> Iterator[Step]:
    """`sample_latents` step by step, for previews and progress; whoever stops asking stops the sampling."""
    config, parameter = transformer.config, next(transformer.parameters())
    channels, device, dtype = config.in_channels, parameter.device, parameter.dtype
    learned = transformer.out_channels == 2 * channels
    if (settings.guidance_channels or 0) > channels:
        raise InputError(f"guidance_channels={settings.guidance_channels}: the latents have {channels} channels")
    predict = GuidedModel(transformer, settings, base)
    scheduler = make_scheduler(settings.sampler, scheduler_config, learned)
    set_timesteps(scheduler, settings.steps, device)
    x = seeding.randn(seeds, (channels, config.sample_size, config.sample_size)).to(device)
    labels = torch.as_tensor(labels, device=device)
    noise = seeding.generators(seeds, stream=1)  # of stochastic samplers
    extra = {"generator": noise} if settings.sampler == "ddpm" else {}
    horizon = scheduler.config.num_train_timesteps
    for number, t in enumerate(scheduler.timesteps):
        low, high = settings.guidance_interval
        output = predict(x.to(dtype), t, labels, guided=bool(low * horizon <= t < high * horizon)).float()
        if settings.sampler != "ddpm":
            output = output[:, :channels]
        result = scheduler.step(output, t, x, **extra)
        x = result.prev_sample
        # DPM-Solver++ keeps its prediction of the clean latents instead of returning it.
        clean = result.pred_original_sample if settings.sampler != "dpm++" else scheduler.model_outputs[-1]
        yield Step(number, x, clean)


def sample_latents(
    transformer: nn.Module,
    scheduler_config: dict,
    labels: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = SamplingSettings(),
    base: nn.Module | None = None,
) -> torch.Tensor:
    """Latents (N, C, H, W) of classes ``labels``, one per seed, on the transformer's device.

    Args:
        transformer: a `DiT`, or a PEFT model around one, in eval mode.
        scheduler_config: config of the scheduler the model was trained with.
        base: the frozen base for ``settings.guidance_base``, see `diffusion.guidance.GuidedModel`.
    """
    for step in denoise(transformer, scheduler_config, labels, seeds, settings, base):
        x = step.x
    return x


@torch.no_grad()
def decode(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1], fp32 on CPU, of latents scaled to unit size."""
    parameter = next(vae.parameters())
    images = vae.decode(latents.to(parameter.device, parameter.dtype) / vae.config.scaling_factor).sample
    return (images.float() / 2 + 0.5).clamp(0, 1).cpu()


def sample(
    transformer: nn.Module,
    vae: nn.Module,
    scheduler_config: dict,
    labels: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = SamplingSettings(),
    *,
    batch_size: int = 64,
) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1] on CPU of classes ``labels``, one per seed, made ``batch_size`` at a time.

    Raises:
        InputError: for labels outside the model's classes, or if there are not as many seeds as labels.
    """
    images = iter_samples(transformer, vae, scheduler_config, labels, seeds, settings, batch_size=batch_size)
    return torch.cat(list(images))


def iter_samples(
    transformer: nn.Module,
    vae: nn.Module,
    scheduler_config: dict,
    labels: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = SamplingSettings(),
    *,
    batch_size: int = 64,
    autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> Iterator[torch.Tensor]:
    """The images of `sample` batch by batch, (n, 3, H, W). The network is in eval mode until the last one is made.

    ``autocast`` is entered for the network; the autoencoder stays in its own precision.

    Raises:
        InputError: as `sample`, when the first batch is asked for.
    """
    if len(labels) != len(seeds):
        raise InputError(f"{len(labels)} labels but {len(seeds)} seeds: each image needs one of each")
    wrong = [label for label in labels if not 0 <= label <= transformer.null_class]
    if wrong:
        raise InputError(
            f"labels {sorted(set(wrong))} are outside the model's classes 0 … {transformer.null_class - 1}"
        )
    training = transformer.training
    transformer.eval()
    try:
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            with autocast():
                latents = sample_latents(transformer, scheduler_config, labels[part], seeds[part], settings)
            yield decode(vae, latents)
    finally:
        transformer.train(training)
