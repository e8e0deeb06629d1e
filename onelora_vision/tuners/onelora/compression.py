"""What b multiplies: the sum of the input's features, or their product with a fixed vector of the same norm."""

import math

import numpy as np
import torch
from torch import Tensor

_POWER_STEPS = 64


def compress(x: Tensor, v: Tensor | None) -> Tensor:
    """``sum_i v_i x_i`` over the last dimension, kept: (..., 1), in fp32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if v is None:
        return x.sum(-1, keepdim=True, dtype=dtype)
    return (x.to(dtype) * v.to(dtype)).sum(-1, keepdim=True)


def random_compression(in_features: int, seed: int) -> Tensor:
    """A fixed random vector (in_features,) with the norm of ones, sqrt(in_features): the paper's ablation.

    It depends on the seed and the width alone, so no file has to hold it, and layers that read the same input (q, k,
    v) share one compressed value, whether they are fused or split. NumPy's ``RandomState`` is the one generator whose
    stream is guaranteed never to change.
    """
    vector = np.random.RandomState(seed).standard_normal(in_features)
    return torch.from_numpy(vector * (math.sqrt(in_features) / np.linalg.norm(vector))).float()


@torch.no_grad()
def singular_compression(weight: Tensor) -> Tensor:
    """The direction of the input that a frozen weight (d, k) magnifies most, with the norm of ones: (k,), fp32 or better.

    64 power iterations ``v <- W0^T W0 v`` from the random vector of seed 0: the top right singular vector where the next
    singular value is clearly smaller, and a mixture of the first few where it is not. That mixture, unlike the exact
    vector, and its sign depend on a rounding of the weight no more than the weight itself, so that no file has to hold
    it. A weight of zeros magnifies nothing and leaves the random vector.
    """
    matrix = weight.to(torch.promote_types(weight.dtype, torch.float32))
    v = random_compression(weight.shape[1], 0).to(matrix)
    size = v.norm()
    for _ in range(_POWER_STEPS):
        magnified = torch.mv(matrix.t(), torch.mv(matrix, v))
        norm = magnified.norm()
        v = torch.where(norm > 0, magnified * (size / norm), v)
    return v
