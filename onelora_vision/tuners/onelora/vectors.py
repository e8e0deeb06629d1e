"""The vectors of 1LoRA (arXiv 2503.08333) as tensors: scaling, composing, merging; no modules, no PEFT.

An adapted linear layer computes ``y = gamma * (W0 x + beta0 + beta) + b * sum_i x_i``, where b, beta and gamma are each
optional (1LoRA, BitFit, DiffFit and everything in between). Shapes: W0 (d, k), x (..., k), y (..., d), vectors (d,).
With m compression vectors V (m, k), output i multiplies V[i mod m] x, so the change of W0 has rank m.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Vectors(NamedTuple):
    """The parameters of one adapter for one linear layer; None for parts that it does not change.

    Attributes:
        b: (d,) coefficients of the compressed input, starts at 0.
        beta: (d,) shift of the bias, starts at 0.
        gamma: (d,) scale of the frozen layer's output, starts at 1.
        v: compression vector (k,) in place of ones, or vectors (m, k), where m divides d; None for the plain sum.
    """

    b: Tensor | None = None
    beta: Tensor | None = None
    gamma: Tensor | None = None
    v: Tensor | None = None


def weighted(vectors: Vectors, weight: float) -> Vectors:
    """An adapter with weight s: b and beta become s b and s beta, gamma becomes 1 + s (gamma - 1)."""
    if weight == 1:
        return vectors
    b, beta, gamma, v = vectors
    return Vectors(
        None if b is None else b * weight,
        None if beta is None else beta * weight,
        None if gamma is None else 1 + (gamma - 1) * weight,
        v,
    )


def compose(adapters: Sequence[Vectors], weights: Sequence[float] | None = None) -> list[Vectors]:
    """Combine several adapters: gammas multiply, betas and b's add; the order does not matter.

    The composed layer is ``(prod gamma * W0 + sum b v^T, prod gamma * (beta0 + sum beta))``. Adapters with the same
    compression (the same object v) share one b, so the list has one entry, plus one for each further compression vector
    (which holds only b and v). Forward passes, merging and the blending of adapter files all use this formula.
    """
    weights = [1.0] * len(adapters) if weights is None else weights
    scaled = [weighted(vectors, weight) for vectors, weight in zip(adapters, weights)]
    if len(scaled) == 1:
        return scaled
    beta = _fold(torch.add, [a.beta for a in scaled])
    gamma = _fold(torch.mul, [a.gamma for a in scaled])
    groups: list[tuple[Tensor | None, list[Tensor]]] = []
    for adapter in scaled:
        if adapter.b is not None:
            same = next((bs for v, bs in groups if v is adapter.v), None)
            if same is None:
                groups.append((adapter.v, [adapter.b]))
            else:
                same.append(adapter.b)
    if not groups:
        return [Vectors(None, beta, gamma)]
    sums = [Vectors(_fold(torch.add, bs), v=v) for v, bs in groups]
    return [sums[0]._replace(beta=beta, gamma=gamma)] + sums[1:]


def _fold(operation, tensors: list[Tensor | None]) -> Tensor | None:
    result = None
    for tensor in tensors:
        if tensor is not None:
            result = tensor if result is None else operation(result, tensor)
    return result


def merged(weight: Tensor, bias: Tensor | None, vectors: Sequence[Vectors]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the plain linear layer that equals the adapted one; computed in fp32 or better, rounded once.

    A layer without a bias gets one if there is a beta.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    new_weight, new_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    _, beta, gamma, _ = vectors[0]
    if beta is not None:
        new_bias = beta.to(dtype) if new_bias is None else new_bias + beta
    if gamma is not None:
        new_weight = gamma[:, None] * new_weight
        new_bias = None if new_bias is None else gamma * new_bias
    for b, _, _, v in vectors:
        if b is not None:
            new_weight = new_weight + _outer(b, v)
    # clone() if nothing changed: the result never shares memory with the original.
    new_weight = new_weight.clone() if new_weight is weight else new_weight.to(weight.dtype)
    if new_bias is not None:
        new_bias = new_bias.clone() if new_bias is bias else new_bias.to(weight.dtype)
    return new_weight, new_bias


def delta_weight(weight: Tensor, vectors: Sequence[Vectors]) -> Tensor:
    """Change (d, k) of the weight, in fp32 or better: ``(gamma - 1) * W0 + sum b v^T``."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    delta = torch.zeros_like(weight, dtype=dtype)
    if vectors[0].gamma is not None:
        delta = (vectors[0].gamma[:, None] - 1) * weight.to(dtype)
    for b, _, _, v in vectors:
        if b is not None:
            delta = delta + _outer(b, v)
    return delta


def _outer(b: Tensor, v: Tensor | None) -> Tensor:
    """``b v^T`` (d, k), or (d, 1) for the plain sum, to be broadcast; with several v, row i is ``b_i v_(i mod m)``."""
    if v is None:
        return b[:, None]
    return b[:, None] * (v if v.ndim == 1 else v.repeat(len(b) // len(v), 1))
