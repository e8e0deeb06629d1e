"""Join and split the q, k, v projections of transformers' vision attention (ViT, Dinov2).

The parameters of LoRA, DoRA and MoRA are counted per linear, so a model with one fused ``qkv`` (timm, the original
checkpoints, the paper) has other counts than transformers' split one. Outputs are equal up to rounding. For DiT, see
`onelora_vision.backbones.dit_network.DiT.fuse_qkv`.
"""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention
from transformers.models.vit.modeling_vit import ViTAttention, eager_attention_forward

from onelora_vision.errors import InputError

FUSABLE = (ViTAttention, Dinov2Attention)
_SHARED = ("config", "num_attention_heads", "head_dim", "attention_dropout", "scaling", "is_causal")


class FusedAttention(nn.Module):
    """transformers' ViT attention with one ``qkv_proj``, built from the linears of ``split``."""

    def __init__(self, split: ViTAttention | Dinov2Attention):
        super().__init__()
        for name in _SHARED:
            setattr(self, name, getattr(split, name))
        self.split_class = type(split)
        self.qkv_proj = join_linears([split.q_proj, split.k_proj, split.v_proj])
        self.o_proj = split.o_proj

    def forward(self, hidden_states: torch.Tensor, attention_mask=None, **kwargs):
        """Hidden states (B, T, D) -> attention output (B, T, D) and weights, as returned by the split layer."""
        shape = (*hidden_states.shape[:-1], 3, -1, self.head_dim)
        query, key, value = self.qkv_proj(hidden_states).view(shape).transpose(1, 3).unbind(2)  # (B, H, T, Dh)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        output = output.reshape(*hidden_states.shape[:-1], -1).contiguous()
        return self.o_proj(output), weights

    def split(self) -> nn.Module:
        """Convert back to the original layer, with q, k, v split from the fused weights."""
        with torch.device("meta"):
            module = self.split_class(self.config)
        module.q_proj, module.k_proj, module.v_proj = split_linear(self.qkv_proj, 3)
        module.o_proj = self.o_proj
        return module.train(self.training)


def fuse_qkv(model: nn.Module) -> nn.Module:
    """Replace every split attention under ``model`` by a `FusedAttention`, in place.

    Raises:
        InputError: there is none, because q, k, v are already one linear (timm) or the attention is of another kind.
    """
    if not any(isinstance(module, (*FUSABLE, FusedAttention)) for module in model.modules()):
        raise InputError(f"fuse_qkv: {type(model).__name__} has no attention with separate q, k, v; leave it out")
    return _replace(model, FUSABLE, FusedAttention)


def unfuse_qkv(model: nn.Module) -> nn.Module:
    """Undo `fuse_qkv`, in place. A model that is not fused is left unchanged."""
    return _replace(model, FusedAttention, FusedAttention.split)


def _replace(model: nn.Module, kinds, make) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, kinds):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, make(module).train(module.training))
    return model


def join_linears(linears: list[nn.Linear]) -> nn.Linear:
    """Concatenate linears with the same inputs, all with or all without bias, into one with all their outputs."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    return _linear(weight, torch.cat(biases) if biases else None, linears[0].weight.requires_grad)


def split_linear(linear: nn.Linear, parts: int) -> list[nn.Linear]:
    """Undo `join_linears` for parts of equal size."""
    biases = linear.bias.detach().chunk(parts) if linear.bias is not None else [None] * parts
    return [
        _linear(weight.clone(), bias if bias is None else bias.clone(), linear.weight.requires_grad)
        for weight, bias in zip(linear.weight.detach().chunk(parts), biases)
    ]


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, requires_grad: bool) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=requires_grad)
    return linear
