"""LLaMA by transformers: what the paper adapts in its language rows."""

from torch import nn

from onelora_vision.backbones.base import Adaptation, norms_with_parameters


def llama_adaptation(model: nn.Module) -> Adaptation:
    """Every linear of the decoder layers, not ``lm_head``. LLaMA-2 7B: 224 layers, 1,359,872 values of b."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers." in name]
    return Adaptation(target_modules=linears, norm_modules=norms_with_parameters(model))
