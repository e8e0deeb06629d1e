"""Losses of monocular depth, pure functions of (prediction, depth, valid), each (B, H, W).

Pixels where ``valid`` is False never matter, whatever ``prediction`` and ``depth`` contain there (including NaN): they
are replaced before the first operation, so they have no gradient either.
"""

import torch

EPSILON = 1e-6  # metres: lower bound of depths before taking logarithms


def log_difference(prediction: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """log(prediction) - log(depth), 0 where invalid; both in metres."""
    prediction = torch.where(valid, prediction, 1).clamp(min=EPSILON)
    depth = torch.where(valid, depth, 1).clamp(min=EPSILON)
    return prediction.log() - depth.log()


def silog(
    prediction: torch.Tensor,
    depth: torch.Tensor,
    valid: torch.Tensor,
    silog_lambda: float = 0.5,
    factor: float = 1.0,
) -> torch.Tensor:
    """``factor * sqrt(mean d² - silog_lambda * (mean d)²)`` of the log difference d (Eigen et al. 2014, eq. 1).

    The mean is over all valid pixels of the batch. Depth Anything v2: lambda 0.5, factor 1. ZoeDepth: lambda 0.85,
    factor 10 (its ``10 * sqrt(var + 0.15 mean²)`` with the biased variance).
    """
    difference = log_difference(prediction, depth, valid)
    count = valid.sum().clamp(min=1)
    mean_square, mean = difference.square().sum() / count, difference.sum() / count
    return factor * (mean_square - silog_lambda * mean.square() + EPSILON**2).clamp(min=EPSILON**2).sqrt()


def gradient_matching(
    prediction: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor, scales: int = 4
) -> torch.Tensor:
    """Mean absolute gradient of the log difference over ``scales`` halvings (Li and Snavely 2018, eq. 5).

    It encourages edges where the truth has them and smoothness elsewhere. A difference counts if both of its pixels are
    valid.
    """
    difference = log_difference(prediction, depth, valid)
    total = difference.new_zeros(())
    for scale in range(scales):
        coarse, known = difference[:, :: 2**scale, :: 2**scale], valid[:, :: 2**scale, :: 2**scale]
        for axis in (1, 2):
            size = coarse.shape[axis] - 1
            both = known.narrow(axis, 0, size) & known.narrow(axis, 1, size)
            steps = (coarse.narrow(axis, 1, size) - coarse.narrow(axis, 0, size)).abs()
            total = total + (steps * both).sum() / both.sum().clamp(min=1)
    return total


def scale_and_shift_invariant(prediction: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of relative inverse depth, without each image's scale and shift (Ranftl et al. 2020, eq. 6).

    ``prediction`` is inverse depth up to scale and shift, ``depth`` is in metres. The shift is the median over the
    valid pixels, the scale is the mean absolute deviation from it. The result is averaged over images with valid
    pixels.
    """
    truth = 1 / torch.where(valid, depth, 1).clamp(min=EPSILON)
    error = (_standardized(prediction, valid) - _standardized(truth, valid)).abs().flatten(1).sum(1)
    count = valid.flatten(1).sum(1)
    return (error / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def _standardized(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Each image's values minus their median, divided by their mean absolute deviation from it; 0 where invalid."""
    count = valid.flatten(1).sum(1).clamp(min=1)
    known = torch.where(valid, values, torch.nan).flatten(1)
    shift = known.nanmedian(dim=1).values.nan_to_num(0.0)[:, None, None]
    centered = torch.where(valid, values - shift, 0)
    scale = centered.abs().flatten(1).sum(1) / count
    return centered / scale.clamp(min=EPSILON)[:, None, None]
