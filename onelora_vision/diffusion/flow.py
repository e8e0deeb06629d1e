"""Flow matching on the straight line between an image and noise, as SiT (Ma et al. 2024, arXiv 2401.08740) trains it.

For an image's latents x, noise ε and a time t in [0, 1]:

    x_t = (1 - t) x + t ε,    v = dx_t/dt = ε - x

The network predicts v. Everything here is written in this direction, in which t = 0 is the image and t = 1 the noise; in
which one a network was trained is known to its `Flow` alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError

LAST_STEP = 0.04  # of the sampler ``sde``: SiT's published size


@dataclass(frozen=True)
class Flow:
    """The objective of a network that predicts the velocity, and the time that it was trained with.

    Attributes:
        data_at: the time of the image as the network counts it. 0: REPA (arXiv 2410.06940), as here. 1: SiT's published
            code, where the velocity points from the noise to the image, so its sign is the other one.
        scale: what the time in [0, 1] is multiplied with before the network takes it; 1 for SiT and REPA.
    """

    data_at: int = 0
    scale: float = 1.0
    name = "velocity"

    @classmethod
    def of(cls, config: dict) -> Self:
        """From the config of diffusers' ``FlowMatchEulerDiscreteScheduler``, which says the same in its own words:
        ``invert_sigmas`` for a time that ends at the image, ``num_train_timesteps`` for the scale.

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
        """What the network takes for the time ``t``."""
        return self.scale * (1 - t if self.data_at else t)

    def velocity(self, output: Tensor) -> Tensor:
        """v of the network's answer."""
        return -output if self.data_at else output

    def share(self, t: Tensor) -> Tensor:
        """The times as shares of the way from an image (0) to noise (1)."""
        return t

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """v of an image's latents and its noise."""
        return noise - x0

    def predicted(self, output: Tensor, channels: int) -> Tensor:
        """v of the network's answer, in fp32.

        Of an answer with 2C channels the second half, which SiT's network keeps from DiT's, is left out.
        """
        return self.velocity(output.float()[:, :channels])

    def losses(
        self, output: Tensor, x0: Tensor, xt: Tensor, noise: Tensor, t: Tensor, target: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``mse`` of each sample, shape (N,): the mean of |v - v_θ(x_t, t)|², in fp32; ``target`` in the place of v."""
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
    """From noise ``x`` (N, C, H, W) at t = 1 to images at t = 0: the latents after each step, and the predicted image.

    * ``euler``: x ← x + Δt v on an even grid of times.
    * ``heun``: the mean of v at both ends of the step, which asks the network twice. The last step is Euler's, as REPA
      publishes it. Both ends are guided if the step's start is.
    * ``sde``: Euler-Maruyama for dx = (v - t s) dt + √(2t) dW̄ with the score s: g² = 2t is the diffusion coefficient
      of REPA's sampler and the default of SiT's published code (there called sigma). The times are even from 1 to
      `LAST_STEP`; the last step, from there to 0, is the drift alone. Each image's noise is its own generator's.

    Args:
        velocity: v of (latents, time, whether it is to be guided), fp32.
        settings: of one of these samplers. generators: one for each image.
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
    """The ``steps`` + 1 times from 1 to 0 that a sampler visits."""
    if sampler == "sde":
        return [*torch.linspace(1, LAST_STEP, steps, dtype=torch.float64).tolist(), 0.0]
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


def _noise(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like.device)
