import math

import pytest
import torch

from onelora_vision.errors import InputError
from onelora_vision.metrics.frechet import FeatureStatistics, frechet_distance


def statistics_of(features: torch.Tensor, batch: int = 10**9) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    for part in features.split(min(batch, len(features))):
        statistics.update(part)
    return statistics


def gaussian(mean, covariance) -> FeatureStatistics:
    """Statistics that have exactly this mean and covariance."""
    statistics = FeatureStatistics(len(mean))
    statistics.count = 1001
    statistics.mean = torch.as_tensor(mean, dtype=torch.float64)
    statistics.scatter = torch.as_tensor(covariance, dtype=torch.float64) * 1000
    return statistics


def test_closed_form_for_commuting_covariances():
    a = gaussian([0.0, 1.0, 2.0], torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    b = gaussian([3.0, 1.0, -2.0], torch.diag(torch.tensor([4.0, 4.0, 1.0])))
    # |μ|² = 9 + 16; the roots of the variances differ by 1, 0 and 2
    assert frechet_distance(a, b) == pytest.approx(25 + 1 + 0 + 4, abs=1e-10)


def test_closed_form_in_two_dimensions_without_commuting():
    a = gaussian([0.0, 0.0], [[2.0, 1.0], [1.0, 3.0]])
    b = gaussian([1.0, 0.0], [[1.0, -0.5], [-0.5, 2.0]])
    # of a 2 x 2 matrix M with positive eigenvalues: tr M^½ = sqrt(tr M + 2 sqrt(det M))
    product = a.covariance @ b.covariance
    cross = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    assert frechet_distance(a, b) == pytest.approx(1 + 5 + 3 - 2 * cross, abs=1e-10)


def test_statistics_are_those_of_the_whole_set():
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).double() * 3 + 1000
    statistics = statistics_of(features, batch=17)
    assert statistics.count == 200
    torch.testing.assert_close(statistics.mean, features.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(statistics.covariance, torch.cov(features.T), rtol=1e-10, atol=1e-10)


def test_a_large_mean_costs_no_digits():
    features = torch.randn(500, 4, generator=torch.Generator().manual_seed(1)).double()
    shifted = statistics_of(features + 1e7, batch=50)
    torch.testing.assert_close(shifted.covariance, torch.cov(features.T), rtol=1e-7, atol=1e-7)


def test_merged_shards_equal_one_pass():
    features = torch.randn(101, 6, generator=torch.Generator().manual_seed(2))
    merged = FeatureStatistics(6)
    for shard in (
        FeatureStatistics(6),
        statistics_of(features[:40]),
        FeatureStatistics(6),
        statistics_of(features[40:]),
    ):
        merged.merge(FeatureStatistics.unpack(shard.pack()))
    whole = statistics_of(features)
    assert merged.count == whole.count
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-12, atol=1e-12)


def test_identical_sets_have_no_distance_and_order_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    a = statistics_of(torch.randn(300, 12, generator=generator))
    b = statistics_of(torch.randn(300, 12, generator=generator) * 2 + 1)
    assert frechet_distance(a, a) < 1e-10
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a, b) > 12


def test_fewer_images_than_features():
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(2, 5, 64, generator=generator).double()
    # both covariances have rank 4; scaling one set by 2 about its own mean scales the roots by 2
    doubled = statistics_of((a - a.mean(0)) * 2 + a.mean(0))
    single = statistics_of(a)
    assert frechet_distance(single, doubled) == pytest.approx(single.covariance.trace().item(), rel=1e-6)
    assert math.isfinite(frechet_distance(single, statistics_of(b)))


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="at least 2 features"):
        frechet_distance(statistics_of(torch.zeros(1, 3)), statistics_of(torch.zeros(5, 3)))
    with pytest.raises(InputError, match="3 and of 4"):
        frechet_distance(statistics_of(torch.zeros(5, 3)), statistics_of(torch.zeros(5, 4)))
    with pytest.raises(InputError, match="NaN or infinite"):
        statistics_of(torch.tensor([[0.0, float("nan")]]))
