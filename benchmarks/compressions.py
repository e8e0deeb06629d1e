"""Vectors to compress a layer's input along, for the study: ``b v^T`` with other v than ones, and other lengths of v.

What the package offers is the plain sum and a random vector. These are candidates, tried before anything is built around
them: each replaces the vectors of a model that was made with ``compression="random"``, and so runs through the same
operator. Every one of them leaves a rank-1 update.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from onelora_vision.tuners.onelora.functional import random_compression
from onelora_vision.tuners.onelora.layer import OneLoraLayer

VECTORS = ("ones", "random", "signs", "singular", "principal")
"""ones; random normal; random signs; top right singular vector of W0; first principal component of the inputs."""

SCALES = ("ones", "unit", "rms")
"""Length of v: that of ones, sqrt(k); one, so that ones become 1/sqrt(k); or such that v x has mean square one."""


def changing(
    apply_method: Callable[..., nn.Module], vector: str, scale: str, cost: list[float]
) -> Callable[..., nn.Module]:
    """`apply_method` with other vectors; appends to ``cost`` the seconds that each layer's took."""

    def apply(*args, **options) -> nn.Module:
        model = apply_method(*args, **options)
        for layer in model.modules():
            if isinstance(layer, OneLoraLayer):
                _prepare(layer, vector, scale, cost)
        return model

    return apply


def _prepare(layer: OneLoraLayer, vector: str, scale: str, cost: list[float]) -> None:
    """Set the layer's vector now, or in the first forward pass of training if it depends on the inputs.

    Until then b is zero and no output depends on v.
    """
    if vector != "principal" and scale != "rms":
        _set(layer, vector, scale, None, cost)
        return

    def calibrate(module: OneLoraLayer, args: tuple) -> None:
        if module.training:
            _set(module, vector, scale, args[0].detach().reshape(-1, module.in_features).float(), cost)
            handle.remove()

    handle = layer.register_forward_pre_hook(calibrate)


@torch.no_grad()
def _set(layer: OneLoraLayer, vector: str, scale: str, inputs: Tensor | None, cost: list[float]) -> None:
    start = time.perf_counter()
    (seed,) = layer.compression_seeds.values()
    v = make_vector(vector, layer.get_base_layer().weight, seed, inputs)
    layer.compression_vectors[str(seed)] = scaled(v, scale, inputs)
    cost.append(time.perf_counter() - start)


def make_vector(vector: str, weight: Tensor, seed: int, inputs: Tensor | None = None) -> Tensor:
    """One of `VECTORS` (k,), with the length of ones, for a weight (d, k) and, if need be, inputs (tokens, k)."""
    k = weight.shape[1]
    if vector == "ones":
        return torch.ones(k)
    if vector == "random":
        return random_compression(k, seed)
    if vector == "signs":
        return random_compression(k, seed).sign()
    if vector == "singular":
        direction = torch.linalg.svd(weight.float(), full_matrices=False).Vh[0]
    else:
        direction = torch.linalg.eigh(torch.cov(inputs.T)).eigenvectors[:, -1]
    return direction * k**0.5


def scaled(v: Tensor, scale: str, inputs: Tensor | None = None) -> Tensor:
    """``v`` (k,) at one of `SCALES`; it stays as it is where the inputs (tokens, k) are compressed to nothing."""
    if scale == "unit":
        return v / v.norm()
    if scale == "rms":
        size = (inputs @ v).square().mean().sqrt()
        return v / size if size > 1e-6 * v.norm() else v
    return v
