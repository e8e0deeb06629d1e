"""What a base was trained to predict, derived from the config of its scheduler: DiT's noise or SiT's velocity.

The objective provides everything in training and sampling that depends on this.
"""

import functools
from typing import Protocol

from torch import Tensor

from onelora_vision.diffusion.flow import Flow
from onelora_vision.diffusion.schedule import NoiseSchedule, training_losses
from onelora_vision.diffusion.schedulers import make_scheduler
from onelora_vision.errors import InputError


class Objective(Protocol):
    """Interface of objectives for training. Adapter files record its ``str``, which must match that of the base.

    Attributes:
        name: what the network predicts, a key of `settings.SAMPLERS`.
    """

    name: str

    def times(self, uniform: Tensor) -> Tensor:
        """The times (N,) of training samples, from uniform numbers in [0, 1)."""

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Add noise to latents (N, C, H, W) according to their times."""

    def timestep(self, t: Tensor) -> Tensor:
        """The network's timesteps for the times."""

    def share(self, t: Tensor) -> Tensor:
        """The times as fractions of the way from an image (0) to noise (1)."""

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """The training target of the network."""

    def predicted(self, output: Tensor, channels: int) -> Tensor:
        """Convert the network's output (N, C or 2C, H, W) to its prediction of the target, (N, C, H, W)."""

    def losses(
        self, output: Tensor, x0: Tensor, xt: Tensor, noise: Tensor, t: Tensor, target: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The terms of each sample's loss, (N,), to be summed. ``target`` replaces the objective's own if given."""


class Epsilon:
    """DiT's objective: the network predicts the noise and, with 2C channels, also the variance (see `schedule`)."""

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
    """Determine the objective from a scheduler's config.

    A ``_class_name`` that begins with ``FlowMatch`` means the velocity; a config with ``beta_schedule`` means DiT's
    noise.

    Raises:
        InputError: the scheduler is of another kind, or predicts something else.
    """
    kind = str(config.get("_class_name", ""))
    if kind.startswith("FlowMatch"):
        return Flow.of(config)
    if "beta_schedule" not in config:
        raise InputError(
            f"its scheduler, {kind or 'without a name'}, is neither a noise schedule (DiT) nor "
            "FlowMatchEulerDiscreteScheduler (SiT)"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise InputError(f"its scheduler has prediction_type {prediction!r} (supported: epsilon)")
    return Epsilon(config)
