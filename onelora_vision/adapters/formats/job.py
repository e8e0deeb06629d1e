"""An export job, with what all formats need for writing: stock names, modules saved whole, the header."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.formats.reading import Found
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.layout import Layout
from onelora_vision.adapters.lowrank import LowRank, low_rank, split_rows
from onelora_vision.backbones import dit_names
from onelora_vision.backbones.base import Base, output_of
from onelora_vision.errors import InputError

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Written(NamedTuple):
    """The result of a format's ``write``.

    Attributes:
        carried: what the export holds in addition to low-rank changes.
        expected: outputs of the adapted base for its example.
        plain: outputs of the base alone.
        file: the file to load in the folder; empty for the folder itself.
        others: further inputs of the network, with the outputs that the export must reproduce.
    """

    carried: list[str]
    expected: Tensor
    plain: Tensor
    file: str = ""
    others: tuple[tuple[dict[str, Tensor], Tensor], ...] = ()


@dataclass
class Job:
    """An export job: the adapter and its parts, the base (with stock numerics), and the requested options."""

    adapter: Adapter
    layout: Layout
    base: Base
    dtype: str = "fp32"
    max_shard_size: str = "5GB"

    def changes(self) -> dict[str, LowRank]:
        """The layers as low-rank changes, in the requested data type."""
        dtype = TORCH_DTYPES[self.dtype]
        found = low_rank(self.adapter, self.layout, self.base.model)
        return {
            module: LowRank(c.down.to(dtype), c.up.to(dtype), None if c.shift is None else c.shift.to(dtype))
            for module, c in found.items()
        }

    def whole(self) -> dict[str, dict[str, Tensor]]:
        """Modules saved whole or changed to fit the adapter. The label table is padded to the size of the base's own.

        Raises:
            InputError: the adapter has more classes than the base's label table.
        """
        whole = {module: dict(parts) for module, parts in self.layout.whole.items()}
        for module in self.base.changed:
            whole.setdefault(module, dict(self.base.model.get_submodule(module).state_dict()))
        table = whole.get(dit_names.LABEL_TABLE)
        if table is not None:
            if len(table["weight"]) > len(self.base.own_table):
                raise InputError(
                    f"{self.adapter.path}: {len(table['weight']) - 1} classes do not fit into the base's label table "
                    f"of {len(self.base.own_table) - 1}; export with --to merged"
                )
            table["weight"] = dit_names.pad_table(table["weight"], self.base.own_table)
        return whole

    def stock(self) -> Found:
        """Changes and modules saved whole, under the names of the host's own classes."""
        changes, whole = self.changes(), self.whole()
        if self.base.host != "diffusers":
            return Found(changes, whole)
        depth = len(self.base.model.transformer_blocks)
        renamed: dict[str, LowRank] = {}
        for module, change in changes.items():
            names = dit_names.stock_modules(module, depth)
            parts = split_rows(change, 3) if module.endswith(".to_qkv") else [change] * len(names)
            renamed |= dict(zip(names, parts))
        return Found(renamed, dit_names.stock_whole(whole, depth))

    @torch.no_grad()
    def outputs(self) -> tuple[Tensor, Tensor]:
        """Outputs for the base's example, with and without the adapter."""
        model, inputs = self.adapter.attach(self.base.model).eval(), self.base.example()
        expected = output_of(model, inputs)
        with model.disable_adapter():
            plain = output_of(model, inputs)
        model.unload()
        return expected, plain

    def written(self, found: Found, file: str = "") -> Written:
        """The result for a format that has written ``found``."""
        return Written(_carried(found), *self.outputs(), file)

    def info(self, method: str = "lora") -> AdapterInfo:
        """The header of an export. Its ``exported`` entry lets `importing` restore the original adapter."""
        info = self.adapter.info
        exported = {"method": info.method, "fuse_qkv": bool(info.extra.get("fuse_qkv"))}
        changed = {"fuse_qkv": False, "exported": exported, "host": self.base.host_call(info.base)}
        return replace(info, method=method, extra={**info.extra, **changed}, versions={})


def _carried(found: Found) -> list[str]:
    carried = ["beta"] if any(change.shift is not None for change in found.changes.values()) else []
    return carried + list(dict.fromkeys(dit_names.own_module(module) for module in found.whole))
