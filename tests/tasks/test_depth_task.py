from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onelora_vision.backbones.depth_anything import DepthAnythingBase
from onelora_vision.data.depth.caps import Caps
from onelora_vision.metrics.depth import METRICS, depth_metrics
from onelora_vision.tasks.depth import DepthTask, compared
from onelora_vision.tasks.depth_losses import gradient_matching, silog

CAPS = Caps(1.0, 50.0)
ALONE = SimpleNamespace(device=torch.device("cpu"), is_main_process=True, gather_for_metrics=lambda values: values)


class Flat(nn.Module):
    """Predicts ``scale`` times the mean colour, at half the picture's size."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, pixel_values: torch.Tensor):
        brightness = pixel_values[:, 0, ::2, ::2] * 0.229 + 0.485
        return SimpleNamespace(predicted_depth=self.scale * brightness)


class FlatBase(DepthAnythingBase):
    is_metric = True


class RelativeBase(DepthAnythingBase):
    is_metric = False


def flat(scale: float, base=FlatBase) -> tuple[Flat, DepthAnythingBase]:
    """A model that stands for Depth Anything, and its base."""
    model = Flat(scale)
    return model, base(model=model)


def batch(size: int = 8, count: int = 3, first: int = 0) -> dict:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(count, size, size, generator=generator) * 30 + 2
    valid = torch.rand(count, size, size, generator=generator) > 0.4
    return {
        "image": (depth / 40)[:, None].expand(-1, 3, -1, -1).clone(),
        "depth": torch.where(valid, depth, torch.nan),
        "valid": valid,
        "seed": torch.arange(count),
        "index": torch.arange(first, first + count),
        "path": ["a"] * count,
    }


def test_loss_is_silog_at_the_truths_size():
    task, data = DepthTask(*flat(20.0), CAPS, silog_lambda=0.85, silog_factor=10.0), batch()
    prediction = torch.nn.functional.interpolate(
        20 * data["image"][:, :1, ::2, ::2], (8, 8), mode="bilinear", align_corners=True
    )[:, 0]
    output = task.forward(data)
    torch.testing.assert_close(output["loss"], silog(prediction, data["depth"], data["valid"], 0.85, 10.0))
    output["loss"].backward()
    assert torch.isfinite(task.model.scale.grad)


def test_gradient_matching_is_added_and_logged():
    data, plain, sharp = batch(), DepthTask(*flat(20.0), CAPS), DepthTask(*flat(20.0), CAPS, gradient_weight=0.5)
    output = sharp.forward(data)
    torch.testing.assert_close(output["loss"], plain.forward(data)["loss"] + output["gradient"])
    prediction = torch.nn.functional.interpolate(
        20 * data["image"][:, :1, ::2, ::2], (8, 8), mode="bilinear", align_corners=True
    )[:, 0]
    expected = 0.5 * gradient_matching(prediction, data["depth"], data["valid"])
    torch.testing.assert_close(output["gradient"], expected.detach())
    assert not output["gradient"].requires_grad


def test_evaluation_averages_over_images_not_batches():
    task, first, second = DepthTask(*flat(30.0), CAPS), batch(count=3), batch(count=1, first=3)
    with torch.no_grad():
        figures = task.evaluate([first, second], ALONE)
    assert set(figures) == set(METRICS)
    each = [
        depth_metrics(
            compared(task.base, task.model, b["image"], b["depth"], b["valid"], CAPS), b["depth"], b["valid"]
        )["rmse"]
        for b in (first, second)
    ]
    assert figures["rmse"] == pytest.approx(torch.cat(each).mean().item())
    with torch.no_grad():  # the last frame stood in for an unreadable one
        again = task.evaluate([first, second, second], ALONE)
    assert again == figures


def test_predictions_are_clamped_before_they_are_judged():
    data = batch()
    far = compared(*reversed(flat(1e5)), data["image"], data["depth"], data["valid"], CAPS)
    assert far.max() == 50
    assert compared(*reversed(flat(1e-5)), data["image"], data["depth"], data["valid"], CAPS).min() == 1


def test_relative_models_are_aligned_and_trained_without_scale():
    data = batch()
    data["image"] = 0.9 / torch.nan_to_num(data["depth"], nan=20.0)[:, None].expand(-1, 3, -1, -1)
    data["image"] = data["image"].repeat_interleave(2, 2).repeat_interleave(2, 3)  # halved again by the stand-in
    task = DepthTask(*flat(7.0, RelativeBase), CAPS, loss="ssi")
    assert task.forward(data)["loss"].item() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        assert task.evaluate([data], ALONE)["abs_rel"] == pytest.approx(0, abs=1e-3)
