import pytest
import torch
from PIL import Image

from onelora_vision.metrics.calibration import CalibrationBins, draw_reliability_diagram


def test_error_by_hand():
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.55, 0.58])
    correct = torch.tensor([True, True, False, True, True])
    bins = CalibrationBins.of(confidence, correct)
    assert bins.count.tolist() == [0] * 8 + [2] + [0] * 5 + [3]
    assert bins.error == pytest.approx(0.6 * abs(2 / 3 - 0.95) + 0.4 * abs(1 - 0.565), abs=1e-6)


def test_edges_belong_to_the_bin_below_and_nothing_is_lost():
    confidence = torch.tensor([0.0, 0.25, 0.5, 0.5001, 1.0], dtype=torch.float64)
    bins = CalibrationBins.of(confidence, torch.ones(5, dtype=torch.bool), num_bins=4)
    assert bins.count.tolist() == [2, 1, 1, 1]


def test_a_calibrated_classifier_has_almost_no_error_and_an_overconfident_one_its_gap():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator)
    correct = torch.rand(200_000, generator=generator) < confidence
    assert CalibrationBins.of(confidence, correct).error < 0.01
    assert CalibrationBins.of(torch.full((1000,), 0.99), torch.arange(1000) < 700).error == pytest.approx(0.29)


def test_picture(tmp_path):
    bins = CalibrationBins.of(torch.tensor([0.9, 0.4]), torch.tensor([True, False]))
    draw_reliability_diagram({"before": bins, "after": bins}, tmp_path / "reliability.png")
    with Image.open(tmp_path / "reliability.png") as picture:
        assert picture.width > 1.5 * picture.height


def test_a_confidence_that_is_nan_makes_the_error_nan_and_stops_nothing():
    bins = CalibrationBins.of(torch.tensor([0.9, float("nan"), 0.2]), torch.tensor([True, False, True]))
    assert bins.count.sum() == 3 and bins.error != bins.error
