"""Frozen linear layers with 8- or 4-bit weights, for training adapters on top.

Libraries that quantise for inference keep what they compute with: torchao's int8 layers save each layer's dequantised
weight for the backward pass, so training needs as much memory as in half precision. Here both passes start from the
8 or 4 bits.
"""

from collections.abc import Iterable
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from onelora_vision.tuners.hosts import is_plain_linear

_LARGEST = 127
_BLOCK = 64


class QuantisedLinear(nn.Linear):
    """y = W x + bias with a frozen W, stored in few bits in ``weight`` and ``weight_scale``.

    Products are computed in x's dtype, or in autocast's. The gradient with respect to x is exact for this layer; W has
    none.

    Args:
        layer: the Linear to replace; its bias is shared.
    """

    def __init__(self, layer: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, scale = self.quantise(layer.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.bias = layer.bias
        self.train(layer.training)

    @staticmethod
    def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight (out, in)."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """W x in x's dtype."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        y = self.product(x.to(dtype))
        return y if self.bias is None else y + self.bias.to(dtype)


class Int8Linear(QuantisedLinear):
    """W = diag(s) Q with Q int8 (out, in) and s fp32 (out,): for each row of W, s is its largest magnitude / 127.

    The error of a value is at most s/2, which is 1/254 of its row's largest magnitude. bf16 and fp16 represent Q
    exactly.
    """

    @staticmethod
    def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = weight.abs().amax(1).float().clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        return (weight / scale[:, None]).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8), scale

    def product(self, x: Tensor) -> Tensor:
        return _Int8Product.apply(x, self.weight, self.weight_scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8"


class NF4Linear(QuantisedLinear):
    """Blocks of 64 values of W, in row order, as their largest magnitude (fp32) times `nf4_values` (4 bits per value).

    This is QLoRA's NormalFloat (arXiv 2305.14314, appendix E) without double quantisation. ``weight`` holds two codes
    per byte, the first in the upper four bits, (⌈out · in / 64⌉, 32); the last block is padded with zeros. The error of
    a value is at most 0.152 of its block's largest magnitude.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__(layer)
        values = nf4_values().to(self.weight_scale.device)
        pairs = torch.stack([values.repeat_interleave(16), values.repeat(16)], 1)
        self.register_buffer("pairs", pairs, persistent=False)  # (256, 2): the two values of each byte

    @staticmethod
    def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
        flat = weight.float().flatten()
        blocks = nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).unflatten(0, (-1, _BLOCK))
        scale = blocks.abs().amax(1)
        values = nf4_values().to(weight.device)
        middles = (values[1:] + values[:-1]) / 2
        blocks = blocks / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        codes = torch.bucketize(blocks, middles, out_int32=True).to(torch.uint8)
        return (codes[:, ::2] << 4) | codes[:, 1::2], scale

    def product(self, x: Tensor) -> Tensor:
        return _NF4Product.apply(x, self.weight, self.weight_scale, self.pairs, self.out_features)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nf4"


def nf4_values() -> Tensor:
    """The 16 NormalFloat values in ascending order: normal quantiles, seven below zero, zero, and eight above."""
    outermost, quantile = 0.9677083, NormalDist().inv_cdf
    above, below = ([quantile(outermost + (0.5 - outermost) * k / n) for k in range(n)] for n in (8, 7))
    values = [*(-value for value in below), 0.0, *reversed(above)]
    return torch.tensor(values, dtype=torch.float32) / above[0]


class _Int8Product(torch.autograd.Function):
    """diag(s) Q x; for the backward pass it only keeps Q and s, the layer's own tensors."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        y = nn.functional.linear(x, weight.to(x.dtype))
        if torch.compiler.is_compiling():  # fused; with a bf16 scale, inductor picks a kernel that it cannot call
            return (y * scale).to(x.dtype)
        return y.mul_(scale.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return (gradient * scale.to(gradient.dtype)) @ weight.to(gradient.dtype), None, None


class _NF4Product(torch.autograd.Function):
    """W x with W in NF4; for the backward pass it only keeps the layer's own tensors."""

    @staticmethod
    def forward(ctx, x: Tensor, codes: Tensor, scale: Tensor, pairs: Tensor, outputs: int) -> Tensor:
        ctx.save_for_backward(codes, scale, pairs)
        ctx.shape = (outputs, x.shape[-1])
        return nn.functional.linear(x, _from_nf4(codes, scale, pairs, ctx.shape, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        return gradient @ _from_nf4(*ctx.saved_tensors, ctx.shape, gradient.dtype), None, None, None, None


def _from_nf4(codes: Tensor, scale: Tensor, pairs: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight (out, in) of an `NF4Linear`, in ``dtype``."""
    values = nn.functional.embedding(codes.int(), pairs.to(dtype)).flatten(1)  # (blocks, 64)
    return (values * scale.to(dtype)[:, None]).flatten()[: shape[0] * shape[1]].view(shape)


KINDS = {"int8": Int8Linear, "nf4": NF4Linear}


def quantise_linears(model: nn.Module, names: Iterable[str], kind: str = "int8") -> None:
    """Replace each named Linear in ``model`` by a layer of `KINDS`; other kinds of layers are left unchanged."""
    made: dict[int, QuantisedLinear] = {}  # a layer may have several names
    for name in names:
        layer = model.get_submodule(name)
        if id(layer) not in made:
            if not is_plain_linear(layer) or not layer.weight.is_floating_point():
                continue
            made[id(layer)] = KINDS[kind](layer)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made[id(layer)])
