"""Metrics of monocular depth: each computed per image over its valid pixels, then averaged over images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from onelora_vision.errors import InputError

#: Names of the metrics, in the order in which they are reported. Higher is better for ``delta*``, lower for the rest.
METRICS = (
    "delta1",
    "delta2",
    "delta3",
    "abs_rel",
    "sq_rel",
    "rmse",
    "rmse_log",
    "log10",
    "silog_05",
    "silog_100",
)


def depth_metrics(prediction: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> dict[str, torch.Tensor]:
    """The metrics of each image, fp64 (B,), for prediction and depth (B, H, W) in metres, both positive where valid.

    With r = max(prediction / depth, depth / prediction) and d = log(prediction) - log(depth), means over valid pixels:
    delta1, 2, 3 = fraction with r < 1.25, 1.25², 1.25³; abs_rel = mean |p - y| / y; sq_rel = mean (p - y)² / y, metres;
    rmse, metres; rmse_log = sqrt(mean d²); log10 = mean |d| / ln 10 (Eigen et al. 2014, section 4.4);
    silog_05 = sqrt(mean d² - 0.5 (mean d)²), Depth Anything v2's "silog"; silog_100 = 100 sqrt(mean d² - (mean d)²),
    as in KITTI and ZoeDepth. The values of invalid pixels, including NaN, do not matter.

    Raises:
        InputError: an image has no valid pixel.
    """
    if not valid.flatten(1).any(dim=1).all():
        raise InputError("an image has no valid depth pixel, so its metrics are undefined: leave it out")
    p, y = (torch.where(valid, values, 1).double() for values in (prediction, depth))
    mean = _mean_over(valid)
    ratio, difference = torch.maximum(p / y, y / p), p.log() - y.log()
    mean_square, square_mean = mean(difference.square()), mean(difference).square()
    values = (
        *(mean((ratio < 1.25**power).double()) for power in (1, 2, 3)),
        mean((p - y).abs() / y),
        mean((p - y).square() / y),
        mean((p - y).square()).sqrt(),
        mean_square.sqrt(),
        mean(difference.abs()) / torch.log(torch.tensor(10.0, dtype=torch.double)).item(),
        (mean_square - 0.5 * square_mean).clamp(min=0).sqrt(),
        100 * (mean_square - square_mean).clamp(min=0).sqrt(),
    )
    return dict(zip(METRICS, values))


def _mean_over(valid: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    count = valid.flatten(1).sum(1)
    return lambda values: (values * valid).flatten(1).sum(1) / count


def as_evaluated(prediction: torch.Tensor, height: int, width: int, near: float, far: float) -> torch.Tensor:
    """Predictions (B, h, w) ready for comparison: resized to the truth's size, then clamped to the caps in metres."""
    return resized_depth(prediction.float(), height, width).clamp(near, far)


def resized_depth(depth: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize depth (B, h, w) to (B, height, width), bilinear with aligned corners, as in Depth Anything."""
    if depth.shape[1:] == (height, width):
        return depth
    return F.interpolate(depth[:, None], (height, width), mode="bilinear", align_corners=True)[:, 0]


def align_scale_and_shift(prediction: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Convert relative inverse depth (B, H, W) to metres: scale and shift per image by least squares on 1/depth.

    Ranftl et al. 2020, eq. 4: the protocol for models that predict depth up to scale and shift. Inverse depths at or
    below zero after alignment become infinite depths (to be clamped to the cap).
    """
    x, y = (torch.where(valid, values, 0).double().flatten(1) for values in (prediction, 1 / depth))
    mask = valid.flatten(1).double()
    count = mask.sum(1, keepdim=True).clamp(min=1)
    mean_x, mean_y = x.sum(1, keepdim=True) / count, y.sum(1, keepdim=True) / count
    covariance = (mask * (x - mean_x) * (y - mean_y)).sum(1, keepdim=True)
    variance = (mask * (x - mean_x).square()).sum(1, keepdim=True)
    scale = covariance / variance.clamp(min=1e-12)
    shift = mean_y - scale * mean_x
    inverse = scale[:, :, None] * prediction.double() + shift[:, :, None]
    return torch.where(inverse > 0, 1 / inverse, torch.inf).float()
