"""What a base was trained to predict, from the config of its scheduler: DiT's noise or SiT's velocity.

One object answers for all that training and sampling need to know of it.
"""

import functools
from typing import Protocol

from torch import Tensor

from onelora_vision.diffusion.flow import Flow
from onelora_vision.diffusion.schedule import NoiseSchedule, training_losses
from onelora_vision.diffusion.schedulers import make_scheduler
from onelora_vision.errors import InputError


class Objective(Protocol):
    """What training asks for. ``str`` of it is what an adapter's file records and an adapter's base must share.

    Attributes:
        name: what the network predicts, a key of `settings.SAMPLERS`.
    """

    name: str

    def times(self, uniform: Tensor) -> Tensor:
        """The times (N,) of training samples, from uniform numbers in [0, 1)."""

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Latents (N, C, H, W) with the noise of their times."""

    def timestep(self, t: Tensor) -> Tensor:
        """What the network takes for the times."""

    def share(self, t: Tensor) -> Tensor:
        """The times as shares of the way from an image (0) to noise (1)."""

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """What the network is to predict."""

    def predicted(self, output: Tensor, channels: int) -> Tensor:
        """What it predicts of the target, (N, C, H, W), by its answer (N, C or 2C, H, W)."""

    def losses(
        self, output: Tensor, x0: Tensor, xt: Tensor, noise: Tensor, t: Tensor, target: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The parts of the loss of each sample, (N,), which add up; ``target`` in the place of the objective's own."""


class Epsilon:
    """DiT's: the network predicts the noise, and with 2C channels the variance, too (see `schedule`)."""

    name = "epsilon"

    def __init__(self, config: dict):
        self._config = config

    def __str__(self) -> str:
        return self.name

    @functools.cached_property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule(make_scheduler("ddpm", self._config, False).betas)

    def times(self, uniform: Tensor) -> Tensor:
        return (uniform * len(self.schedule)).long()

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.add_noise(x0, noise, t)

    def timestep(self, t: Tensor) -> Tensor:
        return t

    def share(self, t: Tensor) -> Tensor:
        return t / len(self.schedule)

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        return noise

    def predicted(self, output: Tensor, channels: int) -> Tensor:
        return output[:, :channels]

    def losses(
        self, output: Tensor, x0: Tensor, xt: Tensor, noise: Tensor, t: Tensor, target: Tensor | None = None
    ) -> dict[str, Tensor]:
        return training_losses(self.schedule, output, x0, xt, noise, t, target)


def objective_of(config: dict) -> Epsilon | Flow:
    """The objective that a scheduler's config stands for.

    A ``_class_name`` that begins with ``FlowMatch`` is a velocity's; a config with ``beta_schedule`` is DiT's.

    Raises:
        InputError: a scheduler of another kind, or one that predicts something else.
    """
    kind = str(config.get("_class_name", ""))
    if kind.startswith("FlowMatch"):
        return Flow.of(config)
    if "beta_schedule" not in config:
        raise InputError(
            f"its scheduler, {kind or 'of no name'}, is neither a noise schedule (DiT) nor FlowMatchEulerDiscreteScheduler (SiT)"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise InputError(f"its scheduler says prediction_type {prediction!r}; supported is epsilon")
    return Epsilon(config)
