"""Candidates: ΔW = diag(b) R with b ∈ R^d trained and the rows of R fixed by the frozen weight W0 (d, k).

All rows have norm √k, like 1LoRA's ones, unless the name says otherwise. R = C V: m directions V (m, k), and for each
output either the index of its direction or its coefficients.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from onelora_vision.tuners.onelora.compression import subspace_iteration

#: Layers whose input has passed an activation, so its sum has a mean, in blocks of timm, diffusers and transformers.
BEHIND_ACTIVATION = r"(fc2|ff\.net\.2|mlp\.down|output\.dense|norm1\.linear|proj_out_1|linear_2|emb\.linear)$"


class Rows(NamedTuple):
    """R = C V.

    Attributes:
        directions: V (m, k).
        choice: (d,) the direction of each output, or (d, m) its coefficients C.
    """

    directions: Tensor
    choice: Tensor

    def matrix(self) -> Tensor:
        """R (d, k)."""
        return self.directions[self.choice] if self.choice.ndim == 1 else self.choice @ self.directions


def random_matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Standard normal (rows, columns), fp64, the same on every machine."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((rows, columns)))


def singular(weight: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top m of the singular value decomposition in fp64: U (d, m), S (m,), V (m, k), each v with a fixed sign."""
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    u, s, v = u[:, :m], s[:m], v[:m]
    signs = torch.sign(v @ random_matrix(1, v.shape[1])[0])
    return u * signs, s, v * signs[:, None]


def turns(outputs: int, m: int) -> Tensor:
    """Output i uses direction i mod m."""
    return torch.arange(outputs) % m


def _unit(rows: Tensor, k: int) -> Tensor:
    """Rows scaled to the norm of ones."""
    return rows * (math.sqrt(k) / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30))


def _ones(weight: Tensor, name: str) -> Rows:
    d, k = weight.shape
    return Rows(torch.ones(1, k), torch.zeros(d, dtype=torch.long))


def _top(weight: Tensor, name: str, m: int) -> Rows:
    d, k = weight.shape
    m = min(m, d, k)
    return Rows(_unit(singular(weight, m)[2], k), turns(d, m))


def _power(weight: Tensor, name: str, m: int, steps: int = 2) -> Rows:
    d, k = weight.shape
    m = min(m, d, k)
    return Rows(_unit(subspace_iteration(weight, m, steps), k), turns(d, m))


def _mixed_span(weight: Tensor, name: str, m: int, steps: int | None = None) -> Rows:
    """The top span through a fixed random rotation, so every direction contains all of them equally."""
    d, k = weight.shape
    m = min(m, d, k)
    rotation = torch.linalg.qr(random_matrix(m, m, 1))[0]
    span = singular(weight, m)[2] if steps is None else subspace_iteration(weight, m, steps)
    return Rows(_unit(rotation @ span, k), turns(d, m))


def _groups(weight: Tensor, name: str, m: int) -> Rows:
    """Sums over every m-th input."""
    d, k = weight.shape
    m = min(m, d, k)
    return Rows(_unit((torch.arange(k) % m == torch.arange(m)[:, None]).double(), k), turns(d, m))


def _random(weight: Tensor, name: str, m: int) -> Rows:
    d, k = weight.shape
    m = min(m, d, k)
    return Rows(_unit(random_matrix(m, k), k), turns(d, m))


def _read(weight: Tensor, name: str, m: int) -> Rows:
    """Each output uses the direction that it reads most, by |u_ij| σ_j."""
    d, k = weight.shape
    u, s, v = singular(weight, min(m, d, k))
    return Rows(_unit(v, k), (u * s).abs().argmax(-1))


def _shuffled(weight: Tensor, name: str, m: int) -> Rows:
    d, k = weight.shape
    m = min(m, d, k)
    return Rows(_unit(singular(weight, m)[2], k), torch.from_numpy(np.random.RandomState(2).randint(0, m, d)))


def _projected(weight: Tensor, name: str, m: int) -> Rows:
    """The rows of W0, projected onto the top m directions."""
    d, k = weight.shape
    u, s, v = singular(weight, min(m, d, k))
    return Rows(v, _unit(u * s, k))


def _sized(weight: Tensor, name: str, m: int) -> Rows:
    """Directions scaled by their singular values, with a mean square of k."""
    d, k = weight.shape
    m = min(m, d, k)
    _, s, v = singular(weight, m)
    return Rows(v * s[:, None] * math.sqrt(k) / s.square().mean().sqrt().clamp_min(1e-30), turns(d, m))


def _whole(weight: Tensor, name: str) -> Rows:
    """The rows of W0: one scale per output (IA3 on outputs, without the bias)."""
    d, k = weight.shape
    return Rows(_unit(weight.double(), k), torch.eye(d, dtype=torch.double))


def _by_place(weight: Tensor, name: str, m: int) -> Rows:
    """Ones behind activations, alternating directions elsewhere."""
    return _ones(weight, name) if re.search(BEHIND_ACTIVATION, name) else _top(weight, name, m)


def _with_ones(weight: Tensor, name: str, m: int) -> Rows:
    """Ones as the first of m directions."""
    d, k = weight.shape
    m = min(m, d, k)
    ones = torch.ones(1, k, dtype=torch.double)
    return Rows(torch.cat([ones, _unit(singular(weight, m - 1)[2], k)]) if m > 1 else ones, turns(d, m))


Maker = Callable[[Tensor, str], Rows]


def _with(make: Callable[..., Rows], *numbers: int) -> Maker:
    return lambda weight, name: make(weight, name, *numbers)


CANDIDATES: dict[str, Maker] = {
    "ones": _ones,
    "whole-rows": _whole,
    **{f"singular{m}": _with(_top, m) for m in (1, 2, 4, 8, 16, 32, 64)},
    **{f"power{m}": _with(_power, m) for m in (1, 4, 8, 16, 32, 64)},
    "power16-4steps": _with(_power, 16, 4),
    **{f"rotated{m}": _with(_mixed_span, m) for m in (4, 16, 64)},
    **{f"rotated-power{m}": _with(_mixed_span, m, 2) for m in (16, 64)},
    **{f"groups{m}": _with(_groups, m) for m in (4, 16)},
    **{f"random{m}": _with(_random, m) for m in (4, 16, 64)},
    "read16": _with(_read, 16),
    "shuffled16": _with(_shuffled, 16),
    **{f"projected{m}": _with(_projected, m) for m in (4, 16)},
    "sized16": _with(_sized, 16),
    "placed16": _with(_by_place, 16),
    "with-ones16": _with(_with_ones, 16),
}


def rows_of(candidate: str, weight: Tensor, name: str) -> Rows:
    """The candidate's rows for a layer, fp32, on the weight's device."""
    found = CANDIDATES[candidate](weight.detach().cpu(), name)
    choice = found.choice if found.choice.ndim == 1 else found.choice.float()
    return Rows(found.directions.float().to(weight.device), choice.to(weight.device))
