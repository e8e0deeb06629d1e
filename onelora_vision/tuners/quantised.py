"""Frozen linear layers with weights of 8 bits, to train adapters on.

Libraries that quantise for inference keep what they compute with: torchao's int8 layers save the dequantised weight of
each layer for the backward pass, so that training takes the memory of half precision. Here both passes start from the
8 bits.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onelora_vision.tuners.hosts import is_plain_linear

_LARGEST = 127


class Int8Linear(nn.Linear):
    """y = diag(s) Q x + bias with Q int8 (out, in) and s fp32 (out,): each row of W divided by its largest magnitude / 127.

    A value is off by at most s/2, which is 1/254 of its row's largest. Products are computed in x's type, or in
    autocast's: bf16 and fp16 hold all values of Q. The gradient of x is exact for this layer; Q and s have none.

    Args:
        layer: the Linear to replace; its bias is shared.
    """

    def __init__(self, layer: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        scale = weight.abs().amax(1).float().clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        quantised = (weight / scale[:, None]).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
        self.weight = nn.Parameter(quantised, requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.bias = layer.bias
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        y = _Int8Product.apply(x.to(dtype), self.weight, self.weight_scale)
        return y if self.bias is None else y + self.bias.to(dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8"


class _Int8Product(torch.autograd.Function):
    """diag(s) Q x, of which the backward pass keeps Q and s, the layer's own tensors."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        y = nn.functional.linear(x, weight.to(x.dtype))
        if (
            torch.compiler.is_compiling()
        ):  # fused; with a scale in bf16, inductor takes a kernel that it then cannot call
            return (y * scale).to(x.dtype)
        return y.mul_(scale.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return (gradient * scale.to(gradient.dtype)) @ weight.to(gradient.dtype), None, None


def quantise_linears(model: nn.Module, names: Iterable[str]) -> None:
    """Put an `Int8Linear` in the place of each named Linear, in place; other kinds of layer stay what they are."""
    made: dict[int, Int8Linear] = {}  # a layer may have several names
    for name in names:
        layer = model.get_submodule(name)
        if id(layer) not in made:
            if not is_plain_linear(layer) or not layer.weight.is_floating_point():
                continue
            made[id(layer)] = Int8Linear(layer)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made[id(layer)])
