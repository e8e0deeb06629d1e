import numpy as np
import pytest
import torch

from onelora_vision.errors import InputError
from onelora_vision.metrics.features import published_features
from onelora_vision.metrics.frechet import frechet_distance
from onelora_vision.metrics.generative import FeatureSet, compare, inception_score
from onelora_vision.metrics.statistics_file import has_images, has_statistics, read_statistics


class Three:
    name, dim, class_names = "three", 3, ()


def random_features(count, size=3, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def published(tmp_path):
    """Statistics of 50 features and 60 spatial ones, as ADM writes them."""
    features, spatial = random_features(50), random_features(50, 60, seed=1)
    pairs = (("mu", "sigma", features), ("mu_s", "sigma_s", spatial))
    arrays = {}
    for mean, covariance, values in pairs:
        arrays |= {mean: values.double().mean(0).numpy(), covariance: np.cov(values.double().numpy(), rowvar=False)}
    np.savez(tmp_path / "statistics.npz", **arrays)
    return tmp_path / "statistics.npz", FeatureSet(features, spatial=spatial)


def test_distances_to_published_statistics_are_those_to_their_images(published):
    path, images = published
    made = FeatureSet(random_features(40, seed=2), spatial=random_features(40, 60, seed=3))
    assert has_statistics(path) and not has_images(path)
    reference = published_features(path, Three())
    figures, expected = compare(made, reference, "three"), compare(made, images, "three")
    assert set(figures) == {"fd_three", "sfid"}  # no neighbours and no kernel without images
    for name, value in figures.items():
        assert value == pytest.approx(expected[name], rel=1e-6) and value > 0.1
    both = published_features(path, Three(), FeatureSet(random_features(30, seed=4)))
    figures = compare(made, both, "three")
    assert figures["fd_three"] == pytest.approx(expected["fd_three"]) and "coverage_three" in figures
    assert frechet_distance(both.statistics, images.statistics) < 1e-9


def test_files_that_are_no_statistics_are_refused(tmp_path, published):
    path = tmp_path / "bad.npz"
    with pytest.raises(InputError, match="no such file"):
        read_statistics(path)
    for arrays, message in (
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8)}, "contains no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "sigma is not a covariance"),
        ({"mu": np.zeros(3), "sigma": np.arange(9.0).reshape(3, 3)}, "sigma is not a covariance"),
        (
            {"mu": np.zeros(3), "sigma": np.zeros((3, 2))},
            r"mu \(3,\) and sigma \(3, 2\) are not a mean and a covariance",
        ),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, "not finite"),
        ({"mu": np.array([{}] * 3), "sigma": np.zeros((3, 3))}, "cannot be read as statistics"),
        ({"mu": np.zeros(5000), "sigma": np.zeros((1, 1))}, "not a mean and a covariance"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=message):
            read_statistics(path)
    path.write_bytes(b"nothing")
    assert not has_statistics(path)
    with pytest.raises(InputError, match="cannot be read as statistics"):
        read_statistics(path)
    with pytest.raises(InputError, match=r"statistics of 3 features, but wide has 4"):
        published_features(published[0], type("Wide", (), {"name": "wide", "dim": 4})())


def test_inception_score_by_hand():
    sure = torch.log(torch.tensor([[1.0, 1e-30], [1e-30, 1.0]]))
    assert inception_score(sure) == pytest.approx(2)  # two classes, each certain
    assert inception_score(torch.zeros(4, 3)) == pytest.approx(1)
    assert inception_score(torch.cat([sure, torch.zeros(2, 2)]), part=2) == pytest.approx(1.5)
