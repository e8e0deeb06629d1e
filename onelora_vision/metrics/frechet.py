"""Fréchet distance of feature sets (Heusel et al. 2017, arXiv 1706.08500), streaming, in float64, without sqrtm."""

import torch

from onelora_vision.errors import InputError


class FeatureStatistics:
    """Count, mean and scatter of features (N, D), updated batch by batch and mergeable across processes.

    Batches are combined as in Chan, Golub & LeVeque (1983), which unlike sums of squares loses no precision if the mean
    is large relative to the spread.

    Attributes:
        count: number of features seen. mean: (D,) fp64. scatter: (D, D) fp64, sum of outer products of deviations.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def known(cls, mean: torch.Tensor, covariance: torch.Tensor) -> "FeatureStatistics":
        """Published statistics: a mean (D,) and a covariance (D, D), of an unknown number of images."""
        found = cls(len(mean))
        found.count, found.mean, found.scatter = 2, mean.double(), covariance.double()
        return found

    @property
    def covariance(self) -> torch.Tensor:
        """Unbiased covariance (D, D).

        Raises:
            InputError: there are fewer than two features.
        """
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 features, got {self.count}: use more images")
        return self.scatter / (self.count - 1)

    def update(self, features: torch.Tensor) -> None:
        """Add a batch of features (N, D) of any float type, on any device.

        Raises:
            InputError: a feature is NaN or infinite; a single one would invalidate the whole metric.
        """
        batch = FeatureStatistics(len(self.mean))
        features = features.detach().to("cpu", torch.float64)
        if not features.isfinite().all():
            raise InputError("a feature is NaN or infinite: look at the images (NaN pixels?) before measuring them")
        if len(features) == 0:
            return
        batch.count, batch.mean = len(features), features.mean(0)
        centered = features - batch.mean
        batch.scatter = centered.T @ centered
        self.merge(batch)

    def merge(self, other: "FeatureStatistics") -> None:
        """Add the statistics of another process, or of another part of the data."""
        total = self.count + other.count
        if other.count == 0:
            return
        difference = other.mean - self.mean
        self.scatter += other.scatter + difference.outer(difference) * (self.count * other.count / total)
        self.mean += difference * (other.count / total)
        self.count = total

    def pack(self) -> torch.Tensor:
        """Everything as one fp64 vector (1 + D + D²,), to gather from all processes and merge."""
        count = torch.tensor([self.count], dtype=torch.float64)
        return torch.cat([count, self.mean, self.scatter.flatten()])

    @classmethod
    def unpack(cls, vector: torch.Tensor) -> "FeatureStatistics":
        """The statistics from a vector returned by `pack`."""
        dim = round((vector.numel() - 0.75) ** 0.5 - 0.5)  # 1 + D + D² = (D + 1/2)² + 3/4
        statistics = cls(dim)
        statistics.count = int(vector[0])
        statistics.mean = vector[1 : 1 + dim].to("cpu", torch.float64).clone()
        statistics.scatter = vector[1 + dim :].to("cpu", torch.float64).reshape(dim, dim).clone()
        return statistics


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|μa − μb|² + tr(Σa + Σb − 2 (Σa Σb)^½), in the features' squared unit.

    The trace of (Σa Σb)^½ is the sum of the square roots of the eigenvalues of Σa Σb, which are the singular values of
    Σa^½ Σb^½: real and exact even for singular covariances (fewer images than features).

    Raises:
        InputError: the dimensions differ, or one side has fewer than two features.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(f"features of {len(a.mean)} and of {len(b.mean)} dimensions cannot be compared")
    cross = torch.linalg.svdvals(_symmetric_root(a.covariance) @ _symmetric_root(b.covariance)).sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(distance.item(), 0.0)  # rounding can leave -1e-15 for equal sets


def _symmetric_root(matrix: torch.Tensor) -> torch.Tensor:
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
