"""Whether a classifier's confidence matches its accuracy: expected calibration error and reliability diagram."""

import os
from dataclasses import dataclass

import torch

from onelora_vision.plots.figures import saved_figure

NUM_BINS = 15


@dataclass(frozen=True)
class CalibrationBins:
    """Predictions grouped by confidence into equal bins of (0, 1]; bin m holds the confidences in ((m-1)/M, m/M].

    Attributes:
        count: (M,) number of predictions in each bin.
        confidence: (M,) their mean confidence; 0 for empty bins.
        accuracy: (M,) fraction of them that are correct; 0 for empty bins.
    """

    count: torch.Tensor
    confidence: torch.Tensor
    accuracy: torch.Tensor

    @classmethod
    def of(cls, confidence: torch.Tensor, correct: torch.Tensor, num_bins: int = NUM_BINS) -> "CalibrationBins":
        """From the confidence (N,) in [0, 1] of each predicted class, and whether it is correct, (N,) bool.

        A NaN confidence makes the error NaN.
        """
        confidence = confidence.double().cpu()
        bins = (torch.ceil(confidence.nan_to_num() * num_bins) - 1).clamp(0, num_bins - 1).long()
        count = torch.bincount(bins, minlength=num_bins)
        sums = [torch.bincount(bins, weights=w, minlength=num_bins) for w in (confidence, correct.double().cpu())]
        return cls(count, *(total / count.clamp(min=1) for total in sums))

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1]: Σ_m |B_m|/N · |acc(B_m) − conf(B_m)| (Guo et al. 2017, eq. 3)."""
        gap = (self.accuracy - self.confidence).abs()
        return ((self.count * gap).sum() / self.count.sum()).item()


def draw_reliability_diagram(bins: dict[str, CalibrationBins], path: str | os.PathLike) -> None:
    """Draw one panel per entry (title: bins): each bin's accuracy against the diagonal, and its number of images."""
    with saved_figure(path, (4 * len(bins), 4)) as figure:
        for axes, (title, group) in zip(figure.subplots(1, len(bins), squeeze=False)[0], bins.items()):
            width = 1 / len(group.count)
            center = (torch.arange(len(group.count)) + 0.5).numpy() * width
            accuracy = group.accuracy.numpy()
            axes.bar(center, accuracy, width, color="tab:blue", edgecolor="white", label="accuracy")
            low, high = (pick(group.accuracy, group.confidence).numpy() for pick in (torch.minimum, torch.maximum))
            hatched = {"fill": False, "hatch": "////", "edgecolor": "tab:red", "linewidth": 0}
            axes.bar(center, high - low, width, bottom=low, label="gap to the confidence", **hatched)
            for x, top, count in zip(center, high, group.count.int().tolist()):
                if count:
                    axes.text(x, min(top + 0.02, 0.96), f"{count}", ha="center", fontsize=6, color="#555555")
            axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
            axes.set(title=f"{title}: ECE {100 * group.error:.1f} %", xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
        figure.axes[0].set_ylabel("accuracy")
        figure.axes[0].legend(loc="upper left")
