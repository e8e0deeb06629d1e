import pytest
import torch

from onelora_vision.errors import InputError
from onelora_vision.metrics.kid import kernel_distance


def features(count, shift=0.0, seed=0):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_agrees_with_torch_fidelity():
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    a, b = features(50), features(60, 0.3, seed=1)
    theirs = kid_features_to_metric(a, b, kid_subsets=7, kid_subset_size=20, verbose=False)
    mean, deviation = kernel_distance(a, b, subsets=7, subset_size=20)
    assert mean == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-5)
    assert deviation == pytest.approx(theirs[KEY_METRIC_KID_STD], rel=1e-5)


def test_is_unbiased_and_grows_with_the_shift():
    equal, _ = kernel_distance(features(800), features(800, seed=1), subsets=20, subset_size=400)
    near, _ = kernel_distance(features(800), features(800, 0.2, seed=1), subsets=20, subset_size=400)
    assert abs(equal) < 0.02 < near
    # E k(x,x') for x ~ N(m, I), x' independent, D = 8: closed form of the cubic kernel through the moments of x·x'.
    m2 = 8 * 0.2**2
    # s = x·x'/8: with both means m, E s = m²/8, E s² = (8 + 2 m² + m⁴)/64, E s³ = (24 m² + 6 m⁴ + m⁶ + ...)/512
    assert near == pytest.approx(expected_mmd(m2), rel=0.5)


def expected_mmd(m2: float) -> float:
    """3 E[s] + 3 E[s²] + E[s³] of N(m, I) with itself, plus N(0, I)'s, minus twice the cross terms; Monte Carlo."""
    generator = torch.Generator().manual_seed(9)
    shift = (m2 / 8) ** 0.5
    x, y = torch.randn(2, 400_000, 8, generator=generator, dtype=torch.float64)

    def kernel(a, b):
        return (((a * b).sum(1) / 8 + 1) ** 3).mean().item()

    return kernel(x, y) + kernel(x + shift, y + shift) - 2 * kernel(x, y + shift)


def test_one_image_is_too_few():
    with pytest.raises(InputError, match="at least 2"):
        kernel_distance(features(1), features(5))
