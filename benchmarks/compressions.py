"""Vectors to compress a layer's input along, for the study: ``b v^T`` with other v than ones, and other lengths of v.

What the package offers beside the plain sum is a random vector and one of the frozen weight. These are candidates, tried
before anything is built around them: each replaces the vectors of a model that was made with ``compression="random"``,
and so runs through the same operator. Every one of them leaves a rank-1 update.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from onelora_vision.tuners.onelora.layer import OneLoraLayer

VECTORS = ("ones", "random", "signs", "principal")
"""ones; random normal; its signs; first principal component of the layer's inputs."""

SCALES = ("ones", "unit")
"""Length of v: that of ones, sqrt(k); or one, so that ones become 1/sqrt(k)."""


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


def timed(make: Callable[..., Tensor | None], cost: list[float]) -> Callable[..., Tensor | None]:
    """``make`` (the package's `compression_vector`), appending the seconds of each call to ``cost``."""

    def make_and_time(*args) -> Tensor | None:
        start = time.perf_counter()
        vector = make(*args)
        cost.append(time.perf_counter() - start)
        return vector

    return make_and_time


def _prepare(layer: OneLoraLayer, vector: str, scale: str, cost: list[float]) -> None:
    """Set the layer's vector now, or in the first forward pass of training if it depends on the inputs.

    Until then b is zero and no output depends on v.
    """
    if vector != "principal":
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
    (key,) = layer.compression_keys.values()
    v = make_vector(vector, layer.compression_vectors[key], inputs)
    layer.compression_vectors[key] = scaled(v, scale)
    cost.append(time.perf_counter() - start)


def make_vector(vector: str, random: Tensor, inputs: Tensor | None = None) -> Tensor:
    """One of `VECTORS` (k,), with the length of ones, from a random one (k,) and, if need be, inputs (tokens, k)."""
    if vector == "ones":
        return torch.ones_like(random)
    if vector == "random":
        return random
    if vector == "signs":
        return random.sign()
    return torch.linalg.eigh(torch.cov(inputs.T)).eigenvectors[:, -1] * len(random) ** 0.5


def scaled(v: Tensor, scale: str) -> Tensor:
    """``v`` (k,) at one of `SCALES`."""
    return v / v.norm() if scale == "unit" else v
