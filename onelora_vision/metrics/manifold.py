"""Fidelity and diversity of generated images by nearest neighbours in feature space.

Precision and recall: Kynkäänniemi et al. 2019 (arXiv 1904.06991), 3 neighbours. Density and coverage: Naeem et al. 2020
(arXiv 2002.09797), 5 neighbours. The manifold of a set is the union of balls around its features; the radius of each is
the distance to its k-th nearest neighbour in the set.
"""

import torch

from onelora_vision.errors import InputError

_ROWS = 1000  # of a distance matrix at a time: with 50,000 columns in fp64, 400 MB


def precision_recall(generated: torch.Tensor, reference: torch.Tensor, k: int = 3) -> tuple[float, float]:
    """Fraction of generated features (N, D) in the reference's manifold, and of reference features (M, D) in theirs."""
    return _share_inside(generated, reference, k), _share_inside(reference, generated, k)


def density_coverage(generated: torch.Tensor, reference: torch.Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage of generated features.

    Density: mean number of reference balls that contain a generated feature, divided by k (about 1 for equal
    distributions). Coverage: fraction of reference balls that contain at least one.
    """
    radii = _radii(reference, k)
    held, covered = 0, torch.zeros(len(reference), dtype=torch.bool)
    for rows in generated.double().split(_ROWS):
        inside = torch.cdist(rows, reference.double()) <= radii
        held += inside.sum().item()
        covered |= inside.any(0)
    return held / (k * len(generated)), covered.double().mean().item()


def _share_inside(features: torch.Tensor, manifold: torch.Tensor, k: int) -> float:
    radii = _radii(manifold, k)
    inside = [
        (torch.cdist(rows, manifold.double()) <= radii).any(1).double() for rows in features.double().split(_ROWS)
    ]
    return torch.cat(inside).mean().item()


def _radii(features: torch.Tensor, k: int) -> torch.Tensor:
    """Distance of each feature (N, D) to its k-th nearest other feature, (N,).

    Raises:
        InputError: there are not that many others.
    """
    if len(features) <= k:
        raise InputError(f"{k} nearest neighbours need at least {k + 1} images on each side, got {len(features)}")
    features = features.double()
    # The nearest feature is always the feature itself.
    return torch.cat([torch.cdist(rows, features).kthvalue(k + 1).values for rows in features.split(_ROWS)])
