"""What b multiplies: the sum of the input's features, or their products with fixed vectors of the same norm as ones."""

import math

import numpy as np
import torch
from torch import Tensor

_POWER_STEPS = 64
_SUBSPACE_STEPS = 2
_BLOCK = 1024  # rows of a weight converted to fp64 at a time


def compress(x: Tensor, v: Tensor | None) -> Tensor:
    """``sum_i v_i x_i`` over the last dimension, kept: (..., 1), in fp32 or better; (..., m) for several v (m, k)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if v is None:
        return x.sum(-1, keepdim=True, dtype=dtype)
    x, v = x.to(dtype), v.to(dtype)
    return (x * v).sum(-1, keepdim=True) if v.ndim == 1 else x @ v.mT


def taking_turns(s: Tensor, outputs: int) -> Tensor:
    """Compressed inputs (..., m) as the outputs multiply them: output i takes input i mod m; (..., outputs)."""
    count = s.shape[-1]
    return s if count == 1 else s.repeat(*[1] * (s.ndim - 1), outputs // count)


def turns(outputs: int, count: int) -> Tensor:
    """Which of ``count`` vectors each output uses: (outputs, count), with one True per row."""
    return (torch.arange(outputs) % count)[:, None] == torch.arange(count)


def random_compression(in_features: int, seed: int) -> Tensor:
    """A fixed random vector (in_features,) with the norm of ones, sqrt(in_features): the paper's ablation.

    It depends only on the seed and the width, so it need not be saved, and layers that read the same input (q, k, v)
    share one compressed value, whether they are fused or split. NumPy's ``RandomState`` is the one generator whose
    stream is guaranteed never to change.
    """
    vector = np.random.RandomState(seed).standard_normal(in_features)
    return torch.from_numpy(vector * (math.sqrt(in_features) / np.linalg.norm(vector))).float()


@torch.no_grad()
def singular_compression(weight: Tensor) -> Tensor:
    """The input direction that a frozen weight (d, k) amplifies most, with the norm of ones: (k,), fp32 or better.

    64 power iterations ``v <- W0^T W0 v`` from the random vector of seed 0. The result is the top right singular vector
    if the next singular value is clearly smaller, and otherwise a mixture of the first few. Unlike the exact vector,
    this mixture and its sign are no more sensitive to rounding than the weight itself, so it need not be saved. A
    weight of zeros amplifies nothing and leaves the random vector.
    """
    matrix = weight.to(torch.promote_types(weight.dtype, torch.float32))
    v = random_compression(weight.shape[1], 0).to(matrix)
    size = v.norm()
    for _ in range(_POWER_STEPS):
        magnified = torch.mv(matrix.t(), torch.mv(matrix, v))
        norm = magnified.norm()
        v = torch.where(norm > 0, magnified * (size / norm), v)
    return v


def subspace_rank(outputs: int, inputs: int, rank: int) -> int:
    """Number of vectors of a layer: the largest divisor of its outputs that exceeds neither ``rank`` nor its inputs."""
    return next(count for count in range(min(rank, outputs, inputs), 0, -1) if outputs % count == 0)


@torch.no_grad()
def subspace_compression(weight: Tensor, rank: int) -> Tensor:
    """Orthogonal directions that a frozen weight (d, k) amplifies, each with the norm of ones: (m, k), fp32 or better.

    Two steps of subspace iteration ``V <- orth(V W0^T W0)`` from fixed random vectors, in fp64. So few steps do not
    converge to individual singular vectors, which rounding can rotate if singular values are close. The result is a
    smooth function of the weight that is the same on every machine, so it need not be saved. A weight of zeros leaves
    the random vectors.
    """
    outputs, inputs = weight.shape
    dtype = torch.promote_types(weight.dtype, torch.float32)
    v = subspace_iteration(weight, subspace_rank(outputs, inputs, rank), _SUBSPACE_STEPS)
    return (v * math.sqrt(inputs)).to(dtype).to(weight.device)


@torch.no_grad()
def subspace_iteration(weight: Tensor, count: int, steps: int) -> Tensor:
    """Orthonormal (count, k) in fp64: ``V <- orth(V W0^T W0)``, ``steps`` times, for W0 (d, k).

    Starts from fixed random vectors. Computed on the weight's device if it supports fp64 (MPS does not), else on the
    CPU.
    """
    matrix = weight if weight.device.type in ("cpu", "cuda") else weight.cpu()
    start = np.random.RandomState(0).standard_normal((count, weight.shape[1]))
    v = _orthonormal(torch.from_numpy(start).to(matrix.device))
    for _ in range(steps):
        magnified = torch.zeros_like(v)
        for block in matrix.split(_BLOCK):
            rows = block.double()
            magnified += (v @ rows.t()) @ rows
        v = _orthonormal(magnified, v)
    return v


def _orthonormal(rows: Tensor, where_none: Tensor | None = None) -> Tensor:
    """Orthonormal rows that span ``rows``, by a QR factorisation made unique by a positive diagonal of R."""
    q, r = torch.linalg.qr(rows.t())
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    q = (q * signs).t()
    if where_none is None:
        return q
    # Directions that the weight maps to zero stay as they were, apart from their part in the span of the others.
    is_there = r.diagonal().abs() > 1e-12 * r.diagonal().abs().max().clamp_min(1e-300)
    return q if bool(is_there.all()) else _orthonormal(torch.where(is_there[:, None], q, where_none))
