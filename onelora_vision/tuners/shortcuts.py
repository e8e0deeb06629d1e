"""Hosts that read a layer's weights instead of calling it, which would bypass an adapter."""

from collections.abc import Collection

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

_USED_NESTED = "_used_nested_tensor_before_adapters"
_SEPARATE_BIAS, _WAS_JOINED = "qkv_bias_separate", "_joined_qkv_bias_before_adapters"


def call_adapted_layers(
    model: nn.Module, kinds: tuple[type, ...] = (BaseTunerLayer, AuxiliaryTrainingWrapper)
) -> None:
    """Make hosts call their submodules of ``kinds`` instead of taking a faster path that reads the weights.

    * In evaluation, nn.TransformerEncoderLayer reads the weights for one fused operation, unless something inside it
      has a forward hook. nn.TransformerEncoder packs padded batches into nested tensors, which only that operation
      accepts.
    * timm's attention with a bias for q and v only (BEiT, EVA, Swin-V2) reads ``qkv.weight``, unless its own switch
      asks for the bias to be added separately.
    """
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoder, nn.TransformerEncoderLayer)):
            _disable_fast_path(module, kinds)
        if vars(module).get(_SEPARATE_BIAS) is False and isinstance(module.qkv, kinds):
            module.qkv_bias_separate = True
            setattr(module, _WAS_JOINED, True)


def called_on_request(model: nn.Module, names: Collection[str]) -> list[str]:
    """Those layers of ``names`` that the host only calls after `call_adapted_layers`, for a model without adapters."""
    reading = [name for name, module in model.named_modules() if vars(module).get(_SEPARATE_BIAS) is False]
    # Without a separate bias for q and v, timm's attention always calls qkv.
    with_bias = [name for name in reading if getattr(model.get_submodule(name), "q_bias", None) is not None]
    return [f"{name}.qkv" for name in with_bias if f"{name}.qkv" in names]


def restore_shortcuts(model: nn.Module) -> None:
    """Undo `call_adapted_layers` after the adapters have been unloaded."""
    for module in model.modules():
        if _USED_NESTED in vars(module):
            module.use_nested_tensor = vars(module).pop(_USED_NESTED)
        if vars(module).pop(_WAS_JOINED, False):
            module.qkv_bias_separate = module.qkv.bias is not None  # a merged bias is the layer's own


def _disable_fast_path(encoder: nn.Module, kinds: tuple[type, ...]) -> None:
    ours = [module for module in encoder.modules() if isinstance(module, kinds)]
    if ours and isinstance(encoder, nn.TransformerEncoder):
        vars(encoder).setdefault(_USED_NESTED, encoder.use_nested_tensor)
        encoder.use_nested_tensor = False
    for module in ours:
        if _do_nothing not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_do_nothing)


def _do_nothing(module: nn.Module, args: tuple) -> None:
    return None
