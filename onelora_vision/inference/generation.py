"""A DiT with its adapter, ready to draw classes by name."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel

from onelora_vision.adapters.bases import load_base, require_same_base
from onelora_vision.adapters.file import read_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.dit import DiTBase, class_ids
from onelora_vision.diffusion.sampling import sample
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.runtime.device import choose_device


class Generator:
    """Draws images of classes by name.

    Attributes:
        model: the DiT with its adapter (a PeftModel), in eval mode. base: network, autoencoder, schedule, class names.
        settings: how the adapter's own evaluation sampled; the default of `sample`.
    """

    def __init__(self, model: PeftModel, base: DiTBase, settings: SamplingSettings):
        self.model, self.base, self.settings = model.eval(), base, settings

    @property
    def class_names(self) -> list[str]:
        return self.base.class_names

    def sample(
        self,
        classes: Sequence[str | int],
        seeds: Sequence[int],
        settings: SamplingSettings | None = None,
        *,
        adapted: bool = True,
        batch_size: int = 64,
    ) -> torch.Tensor:
        """Images (N, 3, H, W) in [0, 1], one for each class name (or number) and seed.

        ``adapted=False`` draws what the base would, on the same noise.

        Raises:
            InputError: for a class that the adapter does not have, or seeds that are not as many as classes.
        """
        labels = class_ids(classes, self.class_names)
        arguments = (self.model, self.base.vae, dict(self.base.scheduler.config), labels, list(seeds))
        settings = settings or self.settings
        if adapted:
            return sample(*arguments, settings, batch_size=batch_size)
        with self.model.disable_adapter():
            return sample(*arguments, settings, batch_size=batch_size)


def load_generator(
    adapter: str | Path, base: str | Path | None = None, device: str | torch.device | None = None
) -> Generator:
    """Load an adapter file or folder of `train_dit` together with its base.

    Args:
        adapter: a folder, or a single ``.safetensors`` file.
        base: where the base is, if not where the adapter's file says.
        device: by default CUDA where there is one.

    Raises:
        InputError: not a generation adapter, or another base than it was trained on.
    """
    loaded = read_adapter(adapter)
    info = loaded.info
    if info.task != "generation" or not info.class_names:
        raise InputError(f"{adapter}: an adapter for {info.task or 'no task that is named'}, not for generation")
    found = load_base(info, base)
    require_same_base(loaded, found)
    dit = found.loaded
    device = choose_device(device)
    model = loaded.attach(found.model).to(device)
    dit.vae.to(device)
    return Generator(model, dit, trained_settings(info))


def trained_settings(info: AdapterInfo) -> SamplingSettings:
    """How an adapter's own evaluation sampled, as its file says; the library's defaults where it says nothing.

    Raises:
        TypeError, ValueError: the file says what no setting can be.
    """
    record = info.extra.get("sampling") or {}
    known = {key: value for key, value in record.items() if key in SamplingSettings.__dataclass_fields__}
    if "guidance_interval" in known:
        known["guidance_interval"] = tuple(known["guidance_interval"])
    return SamplingSettings(**known)
