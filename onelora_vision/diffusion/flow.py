"""Flow matching on the straight line between an image and noise, as in SiT (Ma et al. 2024, arXiv 2401.08740).

For an image's latents x, noise ε and a time t in [0, 1]:

    x_t = (1 - t) x + t ε,    v = dx_t/dt = ε - x

The network predicts v. Everything here uses this direction of time: t = 0 is the image and t = 1 the noise. Only `Flow`
knows the direction that a network was trained with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError

LAST_STEP = 0.04  # size of the last step of the sampler ``sde``, as published for SiT


@dataclass(frozen=True)
class Flow:
    """The objective of a network that predicts the velocity, and its convention for time.

    Attributes:
        data_at: the network's time of the image. 0 is REPA's convention (arXiv 2410.06940) and the one used here. 1 is
            that of SiT's published code, where the velocity points from the noise to the image and so has the opposite
            sign.
        scale: factor between the time in [0, 1] and the network's timestep; 1 for SiT and REPA.
    """

    data_at: int = 0
    scale: float = 1.0
    name = "velocity"

    @classmethod
    def of(cls, config: dict) -> Self:
        """Make the objective from the config of diffusers' ``FlowMatchEulerDiscreteScheduler``.

        ``invert_sigmas`` means that time ends at the image, and ``num_train_timesteps`` is the scale.

        Raises:
            InputError: the config shifts the time, which is not supported.
        """
        if config.get("shift", 1.0) != 1.0 or config.get("use_dynamic_shifting"):
            raise InputError("its scheduler shifts the time (shift, use_dynamic_shifting), which is not supported")
        return cls(int(bool(config.get("invert_sigmas"))), float(config.get("num_train_timesteps", 1000)))

    def __str__(self) -> str:
        times = "" if self.scale == 1 else f" times {self.scale:g}"
        return f"{self.name}, image at t={self.data_at}{times}"

    def times(self, uniform: Tensor) -> Tensor:
        """The times of training samples, from uniform numbers in [0, 1)."""
        return uniform

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of latents (N, C, H, W) at times (N,)."""
        t = t.reshape(-1, *[1] * (x0.ndim - 1))
        return (1 - t) * x0 + t * noise

    def timestep(self, t: Tensor | float) -> Tensor | float:
        """The network's timestep for the time ``t``."""
        return self.scale * (1 - t if self.data_at else t)

    def velocity(self, output: Tensor) -> Tensor:
        """Convert the network's output to v."""
        return -output if self.data_at else output

    def share(self, t: Tensor) -> Tensor:
        """The times as fractions of the way from an image (0) to noise (1)."""
        return t

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """v for an image's latents and its noise."""
        return noise - x0

    def predicted(self, output: Tensor, channels: int) -> Tensor:
        """Convert the network's output to v in fp32.

        If the output has 2C channels, the second half is dropped: SiT's network has it only because DiT's does.
        """
        return self.velocity(output.float()[:, :channels])

    def losses(
        self, output: Tensor, x0: Tensor, xt: Tensor, noise: Tensor, t: Tensor, target: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``mse`` of each sample, (N,): the mean of |v - v_θ(x_t, t)|², in fp32. ``target`` replaces v if given."""
        target = self.target(x0, noise) if target is None else target
        return {"mse": (self.predicted(output, x0.shape[1]) - target).square().flatten(1).mean(1)}


def image_of(x: Tensor, v: Tensor, t: float) -> Tensor:
    """E[x | x_t] = x_t - t v."""
    return x - t * v


def noise_of(x: Tensor, v: Tensor, t: float) -> Tensor:
    """E[ε | x_t] = x_t + (1 - t) v; the score is -E[ε | x_t] / t."""
    return x + (1 - t) * v


Velocity = Callable[[Tensor, float, bool], Tensor]


def integrate(
    velocity: Velocity, x: Tensor, settings: SamplingSettings, generators: Sequence[torch.Generator]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Integrate from noise ``x`` (N, C, H, W) at t = 1 to images at t = 0.

    * ``euler``: x ← x + Δt v on an even grid of times.
    * ``heun``: uses the mean of v at both ends of the step, with two calls of the network. The last step is Euler's, as
      published for REPA. Both ends are guided if the start of the step is.
    * ``sde``: Euler-Maruyama for dx = (v - t s) dt + √(2t) dW̄ with the score s. g² = 2t is the diffusion coefficient
      of REPA's sampler and the default in SiT's published code (called sigma there). The times are even from 1 to
      `LAST_STEP`; the last step, from there to 0, has no noise. Each image draws noise from its own generator.

    Args:
        velocity: function that returns v in fp32 for (latents, time, whether to guide).
        settings: settings with one of these samplers.
        generators: one generator per image.

    Yields:
        The latents after each step, and the predicted image.
    """
    sampler, (low, high) = settings.sampler, settings.guidance_interval
    times = times_of(sampler, settings.steps)
    for number, (t, following) in enumerate(pairwise(times)):
        is_guided = settings.guidance_scale != 1 and low <= t <= high
        is_last = number == settings.steps - 1
        dt, v = following - t, velocity(x, t, is_guided)
        clean = image_of(x, v, t)
        if sampler == "sde":
            x = x + dt * (v + noise_of(x, v, t))
            if not is_last:
                x = x + (-2 * t * dt) ** 0.5 * _noise(x, generators)
        elif sampler == "heun" and not is_last:
            x = x + dt / 2 * (v + velocity(x + dt * v, following, is_guided))
        else:
            x = x + dt * v
        yield x, clean


def times_of(sampler: str, steps: int) -> list[float]:
    """The ``steps`` + 1 times of a sampler, from 1 to 0."""
    if sampler == "sde":
        return [*torch.linspace(1, LAST_STEP, steps, dtype=torch.float64).tolist(), 0.0]
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


def _noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like.device)
