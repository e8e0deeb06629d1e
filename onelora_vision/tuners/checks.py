"""Checks of an adapted model that turn silent failures into errors."""

from collections.abc import Collection
from typing import Any

from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from onelora_vision.errors import InputError, listed


def probe_gradients(model: nn.Module) -> None:
    """Refuse adapted layers that the model's forward pass skips; call it once after the first backward pass.

    Some hosts have layers that they never call, or of which they only read the weights. The parameters of an adapter on
    such a layer would silently train nothing. Only a missing gradient counts: a zero gradient is legitimate (behind a
    closed gate).

    Raises:
        InputError: lists the layers where no trainable parameter has a gradient.
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
    """Refuse a load that did not fit the model: ``result`` has ``missing_keys`` and ``unexpected_keys``.

    PEFT's own loading raises for our methods. transformers' ``model.load_adapter`` only logs, and reports as missing
    every key that contains the adapter's name, so only adapter keys are checked here.

    Raises:
        InputError: lists the keys.
    """
    prefixes = tuple(f".{prefix}" for prefix in PEFT_TYPE_TO_PREFIX_MAPPING.values()) + (".modules_to_save.",)
    missing = [key for key in result.missing_keys if any(prefix in key for prefix in prefixes)]
    check_keys(missing=missing, unexpected=list(result.unexpected_keys))


def check_keys(missing: Collection[str], unexpected: Collection[str]) -> None:
    """Refuse an adapter file that does not fit.

    Raises:
        InputError: a key is missing or unexpected. PEFT alone would silently leave the base unchanged.
    """
    problems = []
    if missing:
        problems.append(f"it lacks {listed(missing)}")
    if unexpected:
        problems.append(f"this model has no place for {listed(unexpected)}")
    if problems:
        raise InputError(f"the adapter file does not fit this model: {'; '.join(problems)}")
