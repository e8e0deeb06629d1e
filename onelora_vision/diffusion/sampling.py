"""Class-conditional sampling of a DiT with an explicit null class.

Each image has its own seed. Its initial noise, and the noise of stochastic samplers, depend on that seed alone. An
image therefore does not depend on its batch, and a base and an adapted model can be compared on the same noise.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import nn

from onelora_vision import seeding
from onelora_vision.diffusion.flow import Flow, integrate
from onelora_vision.diffusion.guidance import GuidedModel
from onelora_vision.diffusion.latents import LatentScale
from onelora_vision.diffusion.objective import objective_of
from onelora_vision.diffusion.schedulers import make_scheduler, require_steps, set_timesteps
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError


class Step(NamedTuple):
    """A denoising step: its ``number`` from 0, the latents ``x`` after it, and the predicted ``clean`` latents."""

    number: int
    x: torch.Tensor
    clean: torch.Tensor


def fitting(settings: SamplingSettings, channels: int, scheduler_config: dict) -> SamplingSettings:
    """Check the settings for a network with ``channels`` latent channels, and replace ``auto`` by its default sampler.

    Raises:
        InputError: the sampler is for other networks, more channels are guided than there are, or there are more steps
            than timesteps in the noise schedule.
    """
    objective = objective_of(scheduler_config)
    settings = settings.resolved(objective.name)
    if (settings.guidance_channels or 0) > channels:
        raise InputError(f"guidance_channels={settings.guidance_channels}: the latents have {channels} channels")
    if not isinstance(objective, Flow):
        require_steps(settings.steps, scheduler_config["num_train_timesteps"])
    return settings


@torch.no_grad()
def denoise(
    transformer: nn.Module,
    scheduler_config: dict,
    labels: Sequence[int],
    seeds: Sequence[int],
    settings: SamplingSettings = SamplingSettings(),
    base: nn.Module | None = None,
) -> Iterator[Step]:
    """`sample_latents` as a generator of steps, for previews and progress. Sampling stops when it is not consumed."""
    config, parameter = transformer.config, next(transformer.parameters())
    channels, device, dtype = config.in_channels, parameter.device, parameter.dtype
    objective = objective_of(scheduler_config)
    settings = fitting(settings, channels, scheduler_config)
    predict = GuidedModel(transformer, settings, base)
    x = seeding.randn(seeds, (channels, config.sample_size, config.sample_size)).to(device)
    labels = torch.as_tensor(labels, device=device)
    noise = seeding.generators(seeds, stream=1)  # for stochastic samplers
    if isinstance(objective, Flow):

        def velocity(x: torch.Tensor, t: float, is_guided: bool) -> torch.Tensor:
            timestep = torch.tensor(objective.timestep(t), device=device)
            output = predict(x.to(dtype), timestep, labels, guided=is_guided).float()
            return objective.velocity(output[:, :channels])

        for number, after in enumerate(integrate(velocity, x, settings, noise)):
            yield Step(number, *after)
        return
    scheduler = make_scheduler(settings.sampler, scheduler_config, transformer.out_channels == 2 * channels)
    set_timesteps(scheduler, settings.steps, device)
    extra = {"generator": noise} if settings.sampler == "ddpm" else {}
    horizon = scheduler.config.num_train_timesteps
    for number, t in enumerate(scheduler.timesteps):
        low, high = settings.guidance_interval
        output = predict(x.to(dtype), t, labels, guided=bool(low * horizon <= t < high * horizon)).float()
        if settings.sampler != "ddpm":
            output = output[:, :channels]
        result = scheduler.step(output, t, x, **extra)
        x = result.prev_sample
        # DPM-Solver++ stores its prediction of the clean latents instead of returning it.
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
    """Sample latents (N, C, H, W) of classes ``labels``, one per seed, on the transformer's device.

    Args:
        transformer: a `DiT`, or a PEFT model around one, in eval mode.
        scheduler_config: config of the scheduler that the model was trained with, see `objective.objective_of`.
        base: the frozen base for ``settings.guidance_base``, see `diffusion.guidance.GuidedModel`.
    """
    for step in denoise(transformer, scheduler_config, labels, seeds, settings, base):
        x = step.x
    return x


@torch.no_grad()
def decode(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents of unit scale to images (N, 3, H, W) in [0, 1], fp32 on the CPU."""
    parameter = next(vae.parameters())
    images = vae.decode(LatentScale.of(vae).restore(latents.to(parameter.device, parameter.dtype))).sample
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
    """Sample images (N, 3, H, W) in [0, 1] on the CPU, of classes ``labels``, one per seed, in batches.

    Raises:
        InputError: labels are outside the model's classes, or the numbers of seeds and labels differ.
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
    """Yield the images of `sample` batch by batch, (n, 3, H, W). The network is in eval mode until the end.

    ``autocast`` applies to the network only; the autoencoder keeps its own precision.

    Raises:
        InputError: as in `sample`, when the first batch is requested.
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
