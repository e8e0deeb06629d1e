"""A single file with the keys of ComfyUI and kohya, under the original DiT's names. All its tensors are differences."""

from pathlib import Path

import torch
from torch import Tensor

from onelora_vision.adapters.file import serialize
from onelora_vision.adapters.formats.job import Job, Written
from onelora_vision.adapters.formats.reading import Found, Source, change_of
from onelora_vision.adapters.lowrank import LowRank, join_rows, split_rows
from onelora_vision.backbones import dit_names
from onelora_vision.backbones.base import Base
from onelora_vision.errors import InputError

LORA_FILE = "lora.safetensors"
_PREFIX = "lora_unet_"
_DIFFERENCES = {"weight": "diff", "bias": "diff_b"}


def write(job: Job, folder: Path) -> Written:
    """Write the file."""
    found = Found(job.changes(), job.whole())
    tensors = {}
    for name, change in _joined(found.changes).items():
        stem = _stem(name)
        tensors[f"{stem}.lora_down.weight"] = change.down.clone().contiguous()
        tensors[f"{stem}.lora_up.weight"] = change.up.clone().contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(float(change.down.shape[0]))
        if change.shift is not None:
            tensors[f"{stem}.diff_b"] = change.shift.clone().contiguous()
    for module, parts in found.whole.items():
        start = _own_values(module, job.base)
        for key, suffix in _DIFFERENCES.items():
            if key in parts:
                name = f"{_stem(dit_names.facebook_module(module))}.{suffix}"
                tensors[name] = parts[key] - start[key].to(parts[key])
    (folder / LORA_FILE).write_bytes(serialize(tensors, _header(job, found)))
    return job.written(found, LORA_FILE)


def _header(job: Job, found: Found) -> dict[str, str]:
    rank = max((change.down.shape[0] for change in found.changes.values()), default=1)
    return {
        **job.info().to_header(),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{float(rank)}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "dit/lora",
        "modelspec.title": job.adapter.path.stem,
    }


def _stem(name: str) -> str:
    return _PREFIX + name.replace(".", "_")


def _own_values(module: str, base: Base) -> dict[str, Tensor]:
    """The base's own values in a module; for the label table, not those of the adapter's classes."""
    if module == dit_names.LABEL_TABLE:
        return {"weight": base.own_table}
    return base.model.get_submodule(module).state_dict()


def _joined(changes: dict[str, LowRank]) -> dict[str, LowRank]:
    """Rename changes to the original DiT's names, and join q, k and v."""
    result = {}
    for module, change in changes.items():
        stem, _, part = module.rpartition(".")
        if part not in dit_names.QKV:
            result[dit_names.facebook_module(module)] = change
        elif part == "to_q":
            missing = [name for name in dit_names.QKV if f"{stem}.{name}" not in changes]
            if missing:
                raise InputError(f"{stem}: only some of q, k, v are adapted, which one joined layer cannot hold")
            joined = join_rows([changes[f"{stem}.{name}"] for name in dit_names.QKV])
            result[dit_names.facebook_module(f"{stem}.to_qkv")] = joined
    return result


def read(source: Source, base: Base) -> Found:
    """Read the file. Differences of modules saved whole become values again."""
    places = _places(base)
    stems: dict[str, dict[str, Tensor]] = {}
    for key, tensor in source.tensors.items():
        stem, _, part = key.partition(".")
        if stem not in places:
            raise InputError(f"{source.path}: key {key!r} matches no layer of this DiT")
        stems.setdefault(places[stem], {})[part] = tensor
    changes, whole = {}, {}
    for module, parts in stems.items():
        if "lora_up.weight" not in parts:
            start = _own_values(module, base)
            whole[module] = {
                key: start[key] + parts[suffix].float() for key, suffix in _DIFFERENCES.items() if suffix in parts
            }
            continue
        change = change_of(parts, "lora_down.weight", "lora_up.weight", "diff_b", module)
        alpha = parts["alpha"].item() if "alpha" in parts else float(change.down.shape[0])
        change.up = change.up * (alpha / change.down.shape[0])
        names = [module.removesuffix("to_qkv") + part for part in dit_names.QKV]
        split = module.endswith(".to_qkv")
        changes |= dict(zip(names, split_rows(change, 3))) if split else {module: change}
    return Found(changes, whole)


def _places(base: Base) -> dict[str, str]:
    """The modules of our DiT by the prefix of their keys; q, k and v are one module."""
    places = {}
    for module, _ in base.model.named_modules():
        own = module.replace(".to_q", ".to_qkv") if module.endswith(".to_q") else module
        try:
            places[_stem(dit_names.facebook_module(own))] = own
        except KeyError:
            continue
    return places
