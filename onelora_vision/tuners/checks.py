"""Checks of an adapted model that turn silent failures into errors."""

from collections.abc import Collection
from typing import Any

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from onelora_vision.errors import InputError, listed


def probe_gradients(model: nn.Module) -> None:
    """Refuse adapted layers that the model's forward does not go through; call it once after the first backward.

    Some hosts have layers that they never call, or whose weights alone they read: an adapter's parameters then train
    nothing, in silence. Only a missing gradient counts: a zero one is legitimate (behind a closed gate).

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
    """Refuse the outcome of a load that did not fit: ``result`` has ``missing_keys`` and ``unexpected_keys``.

    PEFT's own loading of our methods raises by itself; transformers' ``model.load_adapter`` only logs, and counts
    among the missing what merely has the adapter's name in its own: only keys of adapters are looked at.

    Raises:
        InputError: names the keys.
    """
    prefixes = tuple(f".{prefix}" for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values()) + (".modules_to_save.",)
    missing = [key for key in result.missing_keys if any(prefix in key for prefix in prefixes)]
    check_keys(missing=missing, unexpected=list(result.unexpected_keys))


def check_keys(missing: Collection[str], unexpected: Collection[str]) -> None:
    """Refuse an adapter file that does not fit.

    Raises:
        InputError: a key is missing or unexpected; PEFT alone would leave the base untouched without a word.
    """
    problems = []
    if missing:
        problems.append(f"it lacks {listed(missing)}")
    if unexpected:
        problems.append(f"this model has no place for {listed(unexpected)}")
    if problems:
        raise InputError(f"the adapter file does not fit this model: {'; '.join(problems)}")
