"""Monocular depth: a loss in metres (or, for relative depth, up to scale and shift) and the usual metrics."""

from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import OwnParts
from onelora_vision.backbones.depth import DepthBase
from onelora_vision.data.depth.caps import Caps
from onelora_vision.data.depth.dataset import DepthDataset
from onelora_vision.methods.residual import base_restored
from onelora_vision.metrics.depth import align_scale_and_shift, as_evaluated, depth_metrics, resized_depth
from onelora_vision.metrics.direction import changes
from onelora_vision.plots.depth import ComparedDepth, save_depth_comparison
from onelora_vision.tasks.base import Task
from onelora_vision.tasks.depth_losses import gradient_matching, scale_and_shift_invariant, silog
from onelora_vision.tasks.retention import Retention


class DepthTask(Task):
    """Trains and evaluates a depth model.

    Args:
        model: the network of ``base`` with its adapters.
        base: how images become depth, and whether it is in metres.
        caps: range of depths that count in an evaluation, in metres; predictions are clamped to it.
        loss: "silog" (metres, for a metric model) or "ssi" (scale and shift invariant, for a relative one).
        silog_lambda, silog_factor: see `silog`; 0.5 and 1 in Depth Anything v2, 0.85 and 10 in ZoeDepth.
        gradient_weight: of the gradient matching loss added to SiLog; 0 disables it.
        info: the description in the adapter's files.
        shown: frames to draw pictures of, and how many of them.
    """

    def __init__(
        self,
        model: PeftModel,
        base: DepthBase,
        caps: Caps,
        loss: str = "silog",
        silog_lambda: float = 0.5,
        silog_factor: float = 1.0,
        gradient_weight: float = 0.0,
        info: AdapterInfo | None = None,
        shown: tuple[DepthDataset, int] | None = None,
    ):
        super().__init__(model, info)
        self.base, self.caps, self.loss, self.shown = base, caps, loss, shown
        self.silog_lambda, self.silog_factor, self.gradient_weight = silog_lambda, silog_factor, gradient_weight

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """``loss`` of a batch: image (B, 3, h, w), depth and valid (B, H, W). Predictions are resized to the truth."""
        depth, valid = batch["depth"], batch["valid"]
        prediction = resized_depth(self.base.depth(batch["image"], self.model).float(), *depth.shape[1:])
        if self.loss == "ssi":
            return {"loss": scale_and_shift_invariant(prediction, depth, valid)}
        losses = {"silog": silog(prediction, depth, valid, self.silog_lambda, self.silog_factor)}
        if self.gradient_weight:
            losses["gradient"] = self.gradient_weight * gradient_matching(prediction, depth, valid)
        return {"loss": sum(losses.values()), **{name: value.detach() for name, value in losses.items()}}

    def evaluate(self, loader, accelerator) -> dict[str, float]:
        """The metrics of `depth_metrics`, averaged over the loader's images; for a relative model, after alignment."""
        parts: dict[str, list[torch.Tensor]] = {}
        for batch in loader:
            images, depth, valid = (batch[name].to(accelerator.device) for name in ("image", "depth", "valid"))
            metrics = depth_metrics(compared(self.base, self.model, images, depth, valid, self.caps), depth, valid)
            metrics["index"] = batch["index"].to(accelerator.device)
            for name, values in accelerator.gather_for_metrics(metrics).items():
                parts.setdefault(name, []).append(values)
        first: dict[int, int] = {}  # a frame that replaces an unreadable one counts once
        for position, index in enumerate(torch.cat(parts.pop("index")).tolist()):
            first.setdefault(index, position)
        return {name: torch.cat(values)[list(first.values())].mean().item() for name, values in parts.items()}

    def draw(self, path: Path, step: int) -> None:
        """Image, ground truth, base, adapted model and errors, for frames spread over the evaluation data."""
        data, count = self.shown or ((), 0)
        count = min(count, len(data))
        rows = [self._compared(data[round(i * len(data) / count)]) for i in range(count)]
        if rows:
            save_depth_comparison(path, rows, self.caps.far, changes(self.info.metrics))

    def report(self, folder: Path, step: int, before: dict, after: dict, accelerator) -> None:
        """``pictures.png``."""
        if accelerator.is_main_process:
            self.draw(folder / "pictures.png", step)

    @torch.no_grad()
    def _compared(self, sample: dict) -> ComparedDepth:
        model = self.adapted
        image, depth, valid = (sample[name][None].to(model.device) for name in ("image", "depth", "valid"))
        adapted = compared(self.base, model, image, depth, valid, self.caps)
        with base_restored(model):
            base = compared(self.base, model, image, depth, valid, self.caps)
        return ComparedDepth(image[0], depth[0], valid[0], base[0], adapted[0])


@torch.no_grad()
def compared(
    base: DepthBase, model: nn.Module, images: torch.Tensor, depth: torch.Tensor, valid: torch.Tensor, caps: Caps
) -> torch.Tensor:
    """Predictions ready for comparison with the truth: in metres, at its size, clamped to the caps; (B, H, W)."""
    prediction = base.depth(images, model).float()
    if not base.is_metric:
        aligned = align_scale_and_shift(resized_depth(prediction, *depth.shape[1:]), depth, valid)
        return aligned.clamp(caps.near, caps.far)
    return as_evaluated(prediction, *depth.shape[1:], caps.near, caps.far)


def depth_retention(
    base: DepthBase, own: OwnParts, model: PeftModel, data: DepthDataset, loader: Iterable, protocol: str
) -> Retention:
    """``abs_rel`` within the base's own range; for a base with relative depth, after alignment.

    Args:
        data: the old data. loader: batches of it. protocol: how it is evaluated.
    """
    task = DepthTask(model, base, data.caps)

    def evaluate(accelerator: Accelerator) -> dict[str, float]:
        return {"abs_rel": task.evaluate(loader, accelerator)["abs_rel"]}

    return Retention(base, own, protocol, data.identity(), evaluate)
