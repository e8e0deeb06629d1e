"""A DiT with its adapter, ready to generate images of classes by name."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from peft import PeftModel

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.dit import DiTBase, class_ids
from onelora_vision.diffusion.guidance import require_base
from onelora_vision.diffusion.sampling import iter_samples
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError


class Generator:
    """Generates images of classes by name.

    Attributes:
        base: the network with its adapter, autoencoder, schedule and class names.
        settings: sampling settings of the adapter's own evaluation; the default of `sample`.
    """

    def __init__(self, base: DiTBase, info: AdapterInfo):
        self.base, self.info = base, info
        self.settings = trained_settings(info).resolved(base.objective.name)
        base.vae.to(next(base.model.parameters()).device).eval()

    @property
    def model(self) -> PeftModel:
        """The network with its adapter."""
        return self.base.model

    @property
    def class_names(self) -> list[str]:
        return self.base.class_names

    def check(self, settings: SamplingSettings, flag: str = "guidance_scale") -> None:
        """Refuse settings that the adapter cannot be sampled with; ``flag`` is the scale's name in the message.

        Raises:
            InputError: see `check_guidance` and `diffusion.guidance.require_base`.
        """
        check_guidance(self.info, settings, flag)
        if settings.uses_base:
            require_base(self.model)

    def sample(
        self,
        classes: Sequence[str | int],
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        *,
        adapted: bool = True,
        batch_size: int = 64,
    ) -> torch.Tensor:
        """Images (N, 3, H, W) in [0, 1], one for each class name (or index) and seed.

        ``adapted=False`` samples the base on the same noise. ``settings`` with ``guidance_base`` guide away from the
        base; the base's own images are still guided by its null class.

        Raises:
            InputError: a class that the adapter does not have, a different number of seeds than classes, or guidance
                that the adapter does not support (see `check`).
        """
        if isinstance(classes, str) or not len(classes):
            raise InputError("sample takes a list of classes and one seed for each, such as ['pie'], seeds=[0]")
        return torch.cat(list(self.iter_samples(classes, seeds, settings, adapted=adapted, batch_size=batch_size)))

    def iter_samples(
        self,
        classes: Sequence[str | int],
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        *,
        adapted: bool = True,
        batch_size: int = 64,
    ) -> Iterator[torch.Tensor]:
        """The images of `sample`, batch by batch, (n, 3, H, W)."""
        labels = class_ids(classes, self.class_names)
        settings = settings or self.settings
        if adapted:
            self.check(settings)
        with contextlib.nullcontext() if adapted else self.model.disable_adapter():
            yield from iter_samples(
                self.model,
                self.base.vae,
                self.base.schedule,
                labels,
                list(seeds),
                settings,
                batch_size=batch_size,
            )


def trained_settings(info: AdapterInfo) -> SamplingSettings:
    """Sampling settings of an adapter's own evaluation, from its file; the library's defaults if the file has none.

    Adapters trained towards guidance are sampled without guidance.

    Raises:
        InputError: the file contains invalid settings.
    """
    settings = SamplingSettings.from_record(info.extra.get("sampling") or {})
    if info.guidance_distillation:
        return replace(settings, guidance_scale=1.0, guidance_base=False)
    return settings


def check_guidance(info: AdapterInfo, settings: SamplingSettings, flag: str = "guidance_scale") -> None:
    """Refuse to guide an adapter that has learned guidance; ``flag`` is the scale's name in the message.

    Raises:
        InputError: the adapter was trained with ``--guidance_distillation``, and ``settings`` would guide it again.
    """
    if info.guidance_distillation and (settings.guidance_scale != 1 or settings.guidance_base):
        raise InputError(
            f"this adapter was trained with guidance_distillation {info.guidance_distillation:g} and is guided already: "
            f"it needs {flag} 1, without guidance from the base"
        )
