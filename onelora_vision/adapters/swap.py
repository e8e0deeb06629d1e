"""Replacing an adapter of a model in place, to switch between adapters without rebuilding the model."""

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor

from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.errors import InputError, nearest


def swap(model: PeftModel, adapter: Adapter, adapter_name: str = "default") -> None:
    """Overwrite an adapter of a PeftModel with one for the same layers: one copy per tensor, no re-injection.

    Raises:
        InputError: the layers, shapes or compression differ; nothing is changed.
    """
    config = model.peft_config.get(adapter_name)
    if config is None:
        raise InputError(f"the model has no adapter {adapter_name!r}{nearest(adapter_name, model.peft_config)}")
    for field in ("peft_type", *kind_of(adapter.config).settings):
        mine, other = getattr(config, field, None), getattr(adapter.config, field, None)
        if mine != other:
            name = field.removesuffix("_key")
            raise InputError(f"{adapter.path}: its {name} is {other!r}, but the adapter to replace has {mine!r}")
    places = _own_parameters(model, adapter_name)
    if _shapes(places) != _shapes(adapter.tensors):  # VeRA's buffers, DoRA's names, or a misfit, which raises
        places = adapter.check_fits(model, adapter_name)
    with torch.no_grad():
        torch._foreach_copy_([places[key] for key in adapter.tensors], list(adapter.tensors.values()))


def _own_parameters(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """An adapter's parameters by their names in its file. PEFT's own lookup takes longer than all the copies."""
    inner, whole = f".{adapter_name}", f".modules_to_save.{adapter_name}."
    found = {}
    for name, parameter in model.named_parameters():
        if name.endswith(inner):
            found[name.removesuffix(inner)] = parameter
        elif whole in name:
            found[name.replace(whole, ".")] = parameter
        elif f"{inner}." in name:  # for example lora_A.default.weight
            found[name.replace(f"{inner}.", ".")] = parameter
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in tensors.items()}
