"""LoRA that starts inside the base's weights (PiSSA, arXiv 2404.02948; OLoRA, arXiv 2406.01775), saved as plain LoRA.

Such a method subtracts its initial ``B₀ A₀`` from the frozen weight and trains from there. Relative to the original
base, it has learned ``B A - B₀ A₀``: a LoRA of twice the rank, which loads without recomputing the initial values.
"""

import contextlib
import copy
from collections.abc import Iterator

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor

from onelora_vision.errors import InputError


def keep_initial_values(model: PeftModel, adapter_name: str) -> None:
    """Store the initial values of ``adapter_name`` for `as_plain_lora`.

    Raises:
        InputError: with DoRA, biases, or per-layer ranks or scales, the change is not a LoRA of twice the rank.
    """
    config = model.peft_config[adapter_name]
    if config.use_dora or config.rank_pattern or config.alpha_pattern or config.lora_bias:
        raise InputError(
            f"init_lora_weights={config.init_lora_weights} cannot be combined with DoRA, biases or patterns here"
        )
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    model.initial_values = {key: value.detach().cpu().clone() for key, value in state.items() if ".lora_" in key}


@contextlib.contextmanager
def base_restored(model: PeftModel) -> Iterator[None]:
    """Inside the block, the model is the base as it was before training, with its own head or label table.

    The adapter is disabled. If it started inside the base's weights, the base alone lacks that part, so the adapter
    stays enabled with its initial values.
    """
    initial = getattr(model, "initial_values", None)
    with model.disable_adapter():
        if not initial:
            yield
            return
        name = model.active_adapter
        trained = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        trained = {key: value.clone() for key, value in trained.items()}
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.enable_adapters(True)
        set_peft_model_state_dict(model, trained | initial, adapter_name=name)
        try:
            yield
        finally:
            set_peft_model_state_dict(model, trained, adapter_name=name)


def as_plain_lora(
    config: LoraConfig, tensors: dict[str, Tensor], initial: dict[str, Tensor]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Config and tensors of the same change relative to the original base's weights: ``[A; A₀]`` and ``[B, -B₀]``."""
    plain = copy.deepcopy(config)
    plain.r, plain.init_lora_weights = 2 * config.r, True
    plain.lora_alpha = config.lora_alpha * (2**0.5 if config.use_rslora else 2)
    both = {
        key: torch.cat([tensors[key], value]) if ".lora_A." in key else torch.cat([tensors[key], -value], 1)
        for key, value in initial.items()
    }
    return plain, {**tensors, **both}
