"""An adapter's tensors grouped by module: the parts of each adapted layer, and the modules that are replaced whole."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onelora_vision.adapters.kinds import kind_of
from onelora_vision.errors import InputError

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

PREFIX = "base_model.model."


@dataclass
class Layout:
    """The tensors of an adapter file, grouped.

    Attributes:
        layers: full module name -> part (``onelora_b``, ``lora_A.weight``, …) -> tensor.
        whole: full module name -> parameter name inside the module -> tensor, for modules saved whole.
        shared: key -> tensor, for tensors that belong to no module (VeRA's projections).
    """

    layers: "dict[str, dict[str, torch.Tensor]]" = field(default_factory=dict)
    whole: "dict[str, dict[str, torch.Tensor]]" = field(default_factory=dict)
    shared: "dict[str, torch.Tensor]" = field(default_factory=dict)

    def to_tensors(self) -> "dict[str, torch.Tensor]":
        """The tensors by their PEFT names, as in an adapter file."""
        places = {**self.layers, **self.whole}
        named = {f"{PREFIX}{module}.{part}": t for module, parts in places.items() for part, t in parts.items()}
        return {key: tensor.contiguous() for key, tensor in {**named, **self.shared}.items()}


def layout_of(config: "PeftConfig", tensors: "dict[str, torch.Tensor]", where: str = "the adapter") -> Layout:
    """Group ``tensors`` (named as in an adapter file) by the modules that they belong to.

    Raises:
        InputError: a tensor belongs neither to the method nor to a module that the config saves whole.
    """
    layout, kind = Layout(), kind_of(config)
    saved = list(config.modules_to_save or [])
    for key, tensor in tensors.items():
        module, found, part = key.removeprefix(PREFIX).partition(kind.marker)
        if found and key.startswith(PREFIX):
            layout.layers.setdefault(module, {})[kind.marker[1:] + part] = tensor
        elif found:
            layout.shared[key] = tensor
        elif (module := _whole_module(key.removeprefix(PREFIX), saved)) and key.startswith(PREFIX):
            layout.whole.setdefault(module, {})[key.removeprefix(f"{PREFIX}{module}.")] = tensor
        else:
            raise InputError(
                f"{where}: tensor {key!r} belongs neither to {kind.name} nor to a module that its config saves whole"
            )
    return layout


def _whole_module(key: str, saved: list[str]) -> str:
    """Find the module of ``saved`` (names or suffixes of names) that contains parameter ``key``; empty if none does."""
    for name in sorted(saved, key=len, reverse=True):
        if key.startswith(f"{name}."):
            return name
    for name in sorted(saved, key=len, reverse=True):
        before, found, _ = key.partition(f".{name}.")
        if found:
            return f"{before}.{name}"
    return ""


def block_of(module: str) -> int | None:
    """The number of the block that a module is in (``blocks.3.attn.qkv`` -> 3); None outside the blocks."""
    match = re.search(r"(?:^|\.)(\d+)\.", module)
    return int(match[1]) if match else None
