"""The source of an import, with what all formats need for reading: the names and modules of our base."""

from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig
from torch import Tensor

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.lowrank import LowRank
from onelora_vision.backbones import dit_names
from onelora_vision.backbones.base import Base
from onelora_vision.errors import InputError

Vectors = dict[str, tuple[Tensor, Tensor | None]]  # b and beta by layer


class Source(NamedTuple):
    """A file of another tool: its tensors, its header and, for a PEFT folder, its config."""

    path: Path
    tensors: dict[str, Tensor]
    info: AdapterInfo
    config: PeftConfig | None = None


class Found(NamedTuple):
    """The result of a format's ``read``, under the names of our base: changes by layer, and modules saved whole."""

    changes: dict[str, LowRank]
    whole: dict[str, dict[str, Tensor]]


def own_changes(changes: dict[str, LowRank], base: Base) -> dict[str, LowRank]:
    """Rename changes to the names of our base, which differ from the stock model's for a DiT."""
    if base.host != "diffusers":
        return changes
    return {dit_names.own_module(module): change for module, change in changes.items()}


def change_of(parts: dict[str, Tensor], down: str, up: str, shift: str, module: str) -> LowRank:
    """Build the change of a layer from its tensors in a file, given their names there.

    Raises:
        InputError: one of the two matrices is missing.
    """
    missing = [name for name in (down, up) if name not in parts or parts[name].ndim != 2]
    if missing:
        raise InputError(f"{module} has no matrix {', '.join(missing)}")
    return LowRank(parts[down].float(), parts[up].float(), parts[shift].float() if shift in parts else None)


def own_whole(whole: dict, info: AdapterInfo, base: Base, path: Path) -> dict[str, dict[str, Tensor]]:
    """Rename modules saved whole to our names, and cut a padded label table to the existing classes.

    Raises:
        InputError: the blocks of a DiT have different copies of a module that our base has once.
    """
    own: dict[str, dict[str, Tensor]] = {}
    for module, parts in whole.items():
        name = dit_names.own_module(module) if base.host == "diffusers" else module
        if name in own and any(not torch.equal(own[name][key], parts[key]) for key in parts):
            raise InputError(f"{path}: the copies of {name} in the blocks differ, but a DiT has only one")
        own[name] = dict(parts)
    table = own.get(dit_names.LABEL_TABLE)
    if table is not None and info.class_names and len(table["weight"]) > len(info.class_names) + 1:
        table["weight"] = dit_names.cut_table(table["weight"], len(info.class_names))
    return {name: parts for name, parts in own.items() if name not in base.changed}


def joined_qkv(vectors: Vectors) -> Vectors:
    """Join the vectors of separate q, k and v layers into those of one fused layer."""
    result = {}
    for module, value in vectors.items():
        stem, _, part = module.rpartition(".")
        if part not in dit_names.QKV:
            result[module] = value
        elif part == "to_q":
            three = [vectors[f"{stem}.{name}"] for name in dit_names.QKV]
            betas = [beta for _, beta in three]
            beta = None if any(b is None for b in betas) else torch.cat(betas)
            result[f"{stem}.to_qkv"] = (torch.cat([b for b, _ in three]), beta)
    return result
