"""The mathematics of MoRA (arXiv 2405.12130): a square matrix M between an input compression and an output expansion.

``y = W0 x + f_expand(M f_compress(x))`` with M (r, r), r = r_hat; neither operator has parameters. If r does not divide
the input width k, the input is padded with zeros, so every input belongs to exactly one group or row.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHARING = 1
ROTATING = 6
ROPE_BASE = 10000.0
_COLUMNS = 1024


def default_r_hat(out_features: int, mora_type: int) -> int:
    """``round(sqrt(d))``, for type 6 rounded down to an even number (the 1LoRA paper's choice)."""
    r_hat = round(math.sqrt(out_features))
    return r_hat - r_hat % 2 if mora_type == ROTATING else r_hat


def bypass(x: Tensor, matrix: Tensor, out_features: int, mora_type: int) -> Tensor:
    """``f_expand(M f_compress(x))``: (..., k) to (..., out_features), computed in M's dtype."""
    operator = _sharing if mora_type == SHARING else _rotating
    return operator(x, matrix, out_features)


def delta_weight(matrix: Tensor, in_features: int, out_features: int, mora_type: int) -> Tensor:
    """The matrix (out_features, in_features) of `bypass`: its output for the identity, by columns."""
    parts = []
    for start in range(0, in_features, _COLUMNS):
        size = min(_COLUMNS, in_features - start)
        columns = torch.zeros(size, in_features, dtype=matrix.dtype, device=matrix.device)
        columns[:, start : start + size] = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        parts.append(bypass(columns, matrix, out_features, mora_type))
    return torch.cat(parts).t().contiguous()


def _rows(x: Tensor, r: int) -> Tensor:
    """(..., k) to (..., n, r), n = ceil(k / r), padded with zeros: input j is column j mod r of row j // r."""
    x = F.pad(x, (0, -x.shape[-1] % r))
    return x.unflatten(-1, (-1, r))


def _repeated(values: Tensor, out_features: int) -> Tensor:
    """Values (..., m), tiled until there are out_features of them."""
    copies = -(-out_features // values.shape[-1])
    return values.repeat(*[1] * (values.ndim - 1), copies)[..., :out_features]


def _sharing(x: Tensor, matrix: Tensor, out_features: int) -> Tensor:
    """Type 1, eq. 6: inputs with the same index mod r are summed; outputs with the same index mod r are equal."""
    groups = _rows(x, len(matrix)).sum(-2, dtype=matrix.dtype)  # (..., r)
    return _repeated(F.linear(groups, matrix), out_features)


def _rotating(x: Tensor, matrix: Tensor, out_features: int) -> Tensor:
    """Type 6, eq. 9: each row of r inputs is rotated by its position (as in RoPE), goes through M, and is laid out."""
    rows = _rows(x.to(matrix.dtype), len(matrix))  # (..., n, r)
    cos, sin = _rotation(rows.shape[-2], len(matrix), rows)
    first, second = rows.chunk(2, dim=-1)
    rotated = rows * cos + torch.cat([-second, first], dim=-1) * sin
    return _repeated(F.linear(rotated, matrix).flatten(-2), out_features)


def _rotation(n: int, r: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (n, r) of position i times frequency base^(-2j/r); columns j and j + r/2 rotate together."""
    frequency = ROPE_BASE ** (-torch.arange(0, r, 2, device=like.device, dtype=like.dtype) / r)  # (r / 2,)
    angle = torch.arange(n, device=like.device, dtype=like.dtype)[:, None] * frequency.repeat(2)
    return angle.cos(), angle.sin()
