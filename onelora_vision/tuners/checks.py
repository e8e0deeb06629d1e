"""Checks of an adapted model that turn silent failures into errors."""

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import InputError
from .base import check_keys, listed


def probe_gradients(model: nn.Module) -> None:
    """Refuse adapted layers that the model's forward does not go through; call it once after the first backward.

    Some hosts use ``self.qkv.weight`` and pass the adapted layer by (timm's BEiT, EVA and Swin-V2): its parameters then
    train nothing, in silence. Only a missing gradient counts: a zero one is legitimate (behind a closed gate).

    Raises:
        InputError: lists the layers none of whose trainable parameters has a gradient.
    """
    dead = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            own = [p for key, p in module.named_parameters() if not key.startswith("base_layer.") and p.requires_grad]
            if own and all(parameter.grad is None for parameter in own):
                dead.append(name.removeprefix("base_model.model."))
    if dead:
        raise InputError(
            f"no gradient reaches the adapters of {listed(dead)}: the model does not call these layers "
            "(it reads their weights); leave them out of the target modules"
        )


def check_load_result(result: Any) -> None:
    """Refuse the outcome of a load that did not fit (``missing_keys``, ``unexpected_keys``).

    PEFT's own loaders of our methods raise by themselves; transformers' ``model.load_adapter`` only logs.
    """
    check_keys(missing=list(result.missing_keys), unexpected=list(result.unexpected_keys))
