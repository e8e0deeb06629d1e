"""What a method trains on a backbone, counted on the meta device, without weights."""

import json

from peft import get_peft_model_state_dict
from torch import nn

from onelora_vision.backbones.catalogue import describe
from onelora_vision.methods.apply import apply_method
from onelora_vision.methods.names import find_method

ADAM_BYTES_PER_VALUE = 8  # two fp32 moments


def count(
    backbone: str, method: str, *, num_classes: int | None = None, fuse_qkv: bool = False, rank: int | None = None
) -> dict[str, str | int]:
    """Count one method on one backbone (a name or path as in `backbones.catalogue.describe`).

    Returns a dictionary of
        backbone, method,
        layers: number of linear layers that get an adapter,
        trainable_parameters: number of trained parameters, including the head or label table that is trained whole,
        adapter_parameters: the same without head or label table,
        file_bytes: size of the fp32 adapter file, up to the length of the header's metadata,
        optimizer_bytes: AdamW's moments,
        total_parameters: of the base.

    Raises:
        InputError: unknown backbone or method, or a method that cannot be applied to the backbone.
    """
    base = describe(backbone, num_classes, fuse_qkv)
    total = sum(parameter.numel() for parameter in base.model.parameters())
    row, adaptation = find_method(method), base.adaptation()
    whole = _size_of_whole(base.model, adaptation.whole_modules)
    model = apply_method(base.model, method, adaptation, rank=rank if row.rank else None)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "backbone": backbone,
        "method": row.name,
        "layers": len(adaptation.target_modules) if row.adapts_layers else 0,
        "trainable_parameters": trained,
        "adapter_parameters": trained - whole,
        "file_bytes": _file_bytes(get_peft_model_state_dict(model, save_embedding_layers=False)),
        "optimizer_bytes": ADAM_BYTES_PER_VALUE * trained,
        "total_parameters": total,
    }


def _size_of_whole(model: nn.Module, names: list[str]) -> int:
    return sum(parameter.numel() for name in names for parameter in model.get_submodule(name).parameters())


def _file_bytes(tensors: dict) -> int:
    """Size of a safetensors file of ``tensors``: 8 bytes, a JSON header padded to 8 bytes, and the values."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + offset
