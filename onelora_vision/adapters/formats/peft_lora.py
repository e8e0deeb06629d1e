"""A LoRA folder of PEFT: beta becomes the LoRA bias, and modules saved whole become ``modules_to_save``."""

from pathlib import Path

from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor

from onelora_vision.adapters.file import Adapter, write_adapter
from onelora_vision.adapters.formats.job import Job, Written
from onelora_vision.adapters.formats.reading import Found, Source, own_changes
from onelora_vision.adapters.layout import Layout, layout_of
from onelora_vision.adapters.lowrank import LowRank, low_rank
from onelora_vision.backbones.base import Base
from onelora_vision.tuners.matching import exact_pattern


def write(job: Job, folder: Path) -> Written:
    """Write the folder."""
    found = job.stock()
    config = lora_config(found.changes)
    config.modules_to_save = list(found.whole) or None
    layers = {module: lora_parts(change) for module, change in found.changes.items()}
    write_adapter(config, Layout(layers, found.whole).to_tensors(), job.info(), folder)
    return job.written(found)


def read(source: Source, base: Base) -> Found:
    """Read the folder."""
    adapter = Adapter(source.config, source.tensors, source.info, source.path)
    layout = layout_of(source.config, source.tensors, str(source.path))
    return Found(own_changes(low_rank(adapter, layout, base.model), base), layout.whole)


def lora_config(changes: dict[str, LowRank]) -> LoraConfig:
    """PEFT's config. ``lora_alpha`` equals the rank, since the default of 8 would be 8 times too strong at rank 1."""
    rank = next(iter(changes.values())).down.shape[0] if changes else 1
    has_shift = any(change.shift is not None for change in changes.values())
    targets = exact_pattern(changes) if changes else DUMMY_TARGET_MODULES
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, lora_bias=has_shift)


def lora_parts(change: LowRank) -> dict[str, Tensor]:
    """A layer's tensors by their PEFT names."""
    # safetensors does not accept tensors that share memory
    parts = {"lora_A.weight": change.down.clone(), "lora_B.weight": change.up.clone()}
    return parts if change.shift is None else {**parts, "lora_B.bias": change.shift.clone()}
