"""diffusers' LoRA file ``pytorch_lora_weights.safetensors``, and ``modules.safetensors`` for modules saved whole."""

import json
import re
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from onelora_vision.adapters.file import serialize
from onelora_vision.adapters.formats.job import Job, Written
from onelora_vision.adapters.formats.peft_lora import lora_config, lora_parts
from onelora_vision.adapters.formats.reading import Found, Source, change_of, own_changes
from onelora_vision.backbones.base import Base
from onelora_vision.errors import InputError
from onelora_vision.storage.weights import read_weights

LORA_FILE, MODULES_FILE = "pytorch_lora_weights.safetensors", "modules.safetensors"
_CONFIG_FIELDS = ("r", "lora_alpha", "lora_bias", "bias", "use_dora", "use_rslora")


def write(job: Job, folder: Path) -> Written:
    """Write both files and a README."""
    found = job.stock()
    if not found.changes:
        raise InputError(f"{job.adapter.path}: changes no linear layer, so it cannot be a LoRA; use --to merged")
    config = lora_config(found.changes)
    metadata = {f"transformer.{name}": getattr(config, name) for name in _CONFIG_FIELDS}
    metadata["transformer.target_modules"] = sorted(found.changes)
    tensors = {
        f"transformer.{module}.{part}": tensor.contiguous()
        for module, change in found.changes.items()
        for part, tensor in lora_parts(change).items()
    }
    header = {**job.info().to_header(), "lora_adapter_metadata": json.dumps(metadata, sort_keys=True)}
    (folder / LORA_FILE).write_bytes(serialize(tensors, header))
    if found.whole:
        flat = {f"{module}.{key}": t.contiguous() for module, parts in found.whole.items() for key, t in parts.items()}
        save_file(flat, folder / MODULES_FILE, {"format": "pt"})
    (folder / "README.md").write_text(_README.format(base=job.adapter.info.base), encoding="utf-8")
    return job.written(found)


def read(source: Source, base: Base) -> Found:
    """Read the file, and the modules saved whole next to it."""
    stock: dict[str, dict[str, Tensor]] = {}
    for key, tensor in source.tensors.items():
        match = re.fullmatch(r"transformer\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias)", key)
        if match is None:
            raise InputError(f"{source.path}: key {key!r} is not part of a diffusers LoRA for a transformer")
        stock.setdefault(match[1], {})[match[2]] = tensor
    changes = {
        module: change_of(parts, "lora_A.weight", "lora_B.weight", "lora_B.bias", module)
        for module, parts in stock.items()
    }
    whole: dict[str, dict[str, Tensor]] = {}
    beside = source.path.with_name(MODULES_FILE)
    if beside.is_file():
        for key, tensor in read_weights(beside).items():
            module, _, part = key.rpartition(".")
            whole.setdefault(module, {})[part] = tensor
    return Found(own_changes(changes, base), whole)


_README = """\
# LoRA for diffusers

Made with onelora_vision for the base `{base}`. diffusers' DiT class has no LoRA loader of its own; with its mixin:

```python
from diffusers import DiTPipeline, DiTTransformer2DModel
from diffusers.loaders import PeftAdapterMixin
from safetensors.torch import load_file

DiT = type("DiT", (DiTTransformer2DModel, PeftAdapterMixin), {{}})
model = DiT.from_pretrained("{base}", subfolder="transformer")
model.load_state_dict(load_file("modules.safetensors"), strict=False)  # the new classes' embedding, if the file is there
model.load_lora_adapter(".", prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
```
"""
