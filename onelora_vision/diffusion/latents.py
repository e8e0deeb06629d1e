"""Scaling between an autoencoder's latents and the latents of unit scale that a network is trained on."""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn


class LatentScale(NamedTuple):
    """Scales latents z to unit scale by ``(z - shift) * factor``, per channel (C, 1, 1) or with one number for all."""

    factor: Tensor | float
    shift: Tensor | float = 0.0

    @classmethod
    def of(cls, vae: nn.Module) -> Self:
        """Read the scale from an autoencoder's config.

        It has a ``scaling_factor`` and possibly ``latents_mean`` and ``latents_std`` per channel. In diffusers'
        convention, these mean ``(z - mean) * scaling_factor / std``.
        """
        config = vae.config
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return cls(config.scaling_factor, getattr(config, "shift_factor", None) or 0.0)
        mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
        return cls(config.scaling_factor / std, mean)

    def normalize(self, latents: Tensor) -> Tensor:
        """Scale the autoencoder's latents (N, C, h, w) to unit scale."""
        factor, shift = self._like(latents)
        return (latents - shift) * factor

    def restore(self, latents: Tensor) -> Tensor:
        """Undo `normalize`."""
        factor, shift = self._like(latents)
        return latents / factor + shift

    def _like(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        factor, shift = (v.to(latents) if isinstance(v, Tensor) else v for v in (self.factor, self.shift))
        return factor, shift
