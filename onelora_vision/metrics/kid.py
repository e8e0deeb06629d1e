"""Kernel distance between feature sets (Bińkowski et al. 2018, arXiv 1801.01401)."""

import numpy as np
import torch

from onelora_vision.errors import InputError


def kernel_distance(
    generated: torch.Tensor, reference: torch.Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Unbiased squared MMD of features (N, D) and (M, D) with the kernel (x·y / D + 1)³.

    Returns its mean and standard deviation over random subsets of up to ``subset_size`` features of each set. It can be
    slightly negative for equal distributions. With the default arguments, the subsets are the same as torch-fidelity's.

    Raises:
        InputError: one side has fewer than two features.
    """
    size = min(subset_size, len(generated), len(reference))
    if size < 2:
        raise InputError(f"a kernel distance needs at least 2 images on each side, got {size}: use more")
    generated, reference = generated.double(), reference.double()
    draw = np.random.RandomState(seed)
    distances = []
    for _ in range(subsets):
        x = generated[torch.from_numpy(draw.choice(len(generated), size, replace=False))]
        y = reference[torch.from_numpy(draw.choice(len(reference), size, replace=False))]
        distances.append(_unbiased_mmd2(x, y))
    distances = torch.stack(distances)
    return distances.mean().item(), distances.std(correction=0).item()


def _unbiased_mmd2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Gretton et al. 2012 (JMLR 13), equation 3, for equally many x and y, (n, D) each."""
    n = len(x)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = sum(k.sum() - k.trace() for k in (kernel(x, x), kernel(y, y))) / (n * (n - 1))
    return within - 2 * kernel(x, y).mean()
