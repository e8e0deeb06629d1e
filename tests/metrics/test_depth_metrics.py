import math

import pytest
import torch

from onelora_vision.errors import InputError
from onelora_vision.metrics.depth import (
    METRICS,
    align_scale_and_shift,
    as_evaluated,
    depth_metrics,
    resized_depth,
)

# Two pixels, truth 2 m and 4 m, predicted 3 m and 4 m. Worked out by hand:
L = math.log(1.5)
BY_HAND = {
    "delta1": 0.5,  # ratios 1.5 and 1
    "delta2": 1.0,  # 1.25² = 1.5625
    "delta3": 1.0,
    "abs_rel": 0.25,  # (1/2 + 0) / 2
    "sq_rel": 0.25,  # (1/2 + 0) / 2
    "rmse": math.sqrt(0.5),
    "rmse_log": math.sqrt(L**2 / 2),
    "log10": math.log10(1.5) / 2,
    "silog_05": math.sqrt(L**2 / 2 - 0.5 * (L / 2) ** 2),
    "silog_100": 100 * math.sqrt(L**2 / 2 - (L / 2) ** 2),
}


def one_image() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    prediction, depth = torch.tensor([[[3.0, 4.0, 9.0]]]), torch.tensor([[[2.0, 4.0, 1.0]]])
    return prediction, depth, torch.tensor([[[True, True, False]]])


def test_metrics_by_hand():
    metrics = depth_metrics(*one_image())
    assert list(metrics) == list(METRICS) == list(BY_HAND)
    for name, expected in BY_HAND.items():
        assert metrics[name].shape == (1,)
        assert metrics[name].item() == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), 0.0, -1.0])
def test_invalid_pixels_never_matter(hidden):
    prediction, depth, valid = one_image()
    prediction[~valid], depth[~valid] = hidden, hidden
    for name, expected in BY_HAND.items():
        assert depth_metrics(prediction, depth, valid)[name].item() == pytest.approx(expected, rel=1e-6)


def test_images_are_weighed_alike_whatever_their_valid_pixels():
    depth = torch.full((2, 2, 2), 2.0)
    prediction = torch.stack([torch.full((2, 2), 3.0), torch.full((2, 2), 2.0)])
    valid = torch.tensor([[[True, False], [False, False]], [[True, True], [True, True]]])
    metrics = depth_metrics(prediction, depth, valid)
    assert metrics["rmse"].tolist() == [1.0, 0.0]
    assert metrics["rmse"].mean() == 0.5  # over pixels it would be sqrt(1/5)


def test_a_perfect_prediction_has_no_error():
    depth = torch.rand(3, 4, 4) * 10 + 0.1
    for name, values in depth_metrics(depth, depth, torch.ones_like(depth, dtype=torch.bool)).items():
        assert (values == (1.0 if name.startswith("delta") else 0.0)).all()


def test_an_image_without_truth_is_refused():
    with pytest.raises(InputError, match="no valid depth pixel"):
        depth_metrics(torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))


def test_resizing_aligns_the_corners():
    resized = resized_depth(torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]), 3, 5)
    torch.testing.assert_close(resized[0, 0], torch.linspace(0, 1, 5))
    torch.testing.assert_close(resized[0, :, 0], torch.tensor([0.0, 1.0, 2.0]))


def test_predictions_are_clamped_to_the_caps_after_resizing():
    prediction = torch.tensor([[[0.0, 100.0]]])
    torch.testing.assert_close(as_evaluated(prediction, 1, 3, 1.0, 80.0), torch.tensor([[[1.0, 50.0, 80.0]]]))


def test_alignment_undoes_any_scale_and_shift():
    torch.manual_seed(0)
    depth = torch.rand(2, 5, 5) * 9 + 1
    valid = torch.rand(2, 5, 5) > 0.3
    relative = torch.stack([(1 / depth[0] - 0.2) * 40, (1 / depth[1] + 3) * 0.1])
    relative[~valid], depth_seen = float("nan"), torch.where(valid, depth, torch.nan)
    aligned = align_scale_and_shift(relative, depth_seen, valid)
    torch.testing.assert_close(aligned[valid], depth[valid], rtol=1e-3, atol=1e-3)


def test_aligned_depth_beyond_infinity_is_infinite():
    depth, valid = torch.tensor([[[1.0, 2.0, 4.0, 1.0]]]), torch.tensor([[[True, True, True, False]]])
    relative = torch.tensor([[[1.0, 0.5, 0.25, -0.5]]])
    assert align_scale_and_shift(relative, depth, valid)[0, 0, 3] == torch.inf
