"""Accuracy of a classifier: its individual predictions, top-k, likelihood, confusion, and accuracy per class."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from onelora_vision.plots.figures import saved_figure


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions for N images, from which all metrics of an evaluation are computed.

    Attributes:
        index: (N,) int64, index of the image in the dataset.
        label: (N,) int64, the true class.
        predicted: (N,) int64, the most probable class.
        in_top5: (N,) bool, whether the true class is among the five most probable (or among all, if there are fewer).
        nll: (N,) fp32, negative log-likelihood of the true class, in nats.
        confidence: (N,) fp32, probability of the predicted class.
    """

    index: torch.Tensor
    label: torch.Tensor
    predicted: torch.Tensor
    in_top5: torch.Tensor
    nll: torch.Tensor
    confidence: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, label: torch.Tensor, index: torch.Tensor) -> "Predictions":
        """From logits (N, C) in any precision."""
        log_probability = logits.float().log_softmax(1)
        top = log_probability.topk(min(5, logits.shape[1]), dim=1)
        nll = -log_probability.gather(1, label[:, None])[:, 0]
        in_top5 = (top.indices == label[:, None]).any(1)
        return cls(index, label, top.indices[:, 0], in_top5, nll, top.values[:, 0].exp())

    @classmethod
    def cat(cls, parts: Sequence["Predictions"]) -> "Predictions":
        """All parts together, ordered by index, each image once: a repeated index keeps its first prediction."""
        whole = {name: torch.cat([getattr(part, name).cpu() for part in parts]) for name in cls.__dataclass_fields__}
        order = torch.argsort(whole["index"], stable=True)
        index = whole["index"][order]
        first = torch.ones(len(index), dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        return cls(**{name: values[order[first]] for name, values in whole.items()})

    @property
    def correct(self) -> torch.Tensor:
        """(N,) bool, whether the most probable class is the true class."""
        return self.predicted == self.label


def confusion_matrix(predictions: Predictions, num_classes: int) -> torch.Tensor:
    """Counts (num_classes, num_classes) int64: row = true class, column = predicted class."""
    cells = predictions.label * num_classes + predictions.predicted
    return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: torch.Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Fraction of each class's images that are predicted correctly; classes without images are omitted."""
    total = confusion.sum(1)
    share = confusion.diagonal() / total.clamp(min=1)
    return {name: share[k].item() for k, name in enumerate(class_names) if total[k] > 0}


def draw_confusion_matrix(confusions: dict[str, torch.Tensor], class_names: Sequence[str], path: str | os.PathLike):
    """Draw one panel per entry (title: counts) as a PNG: rows are true classes, shades are fractions of the row."""
    side = min(max(0.3 * len(class_names), 3.5), 12)
    with saved_figure(path, (len(confusions) * (side + 1), side + 1)) as figure:
        for axes, (title, counts) in zip(figure.subplots(1, len(confusions), squeeze=False)[0], confusions.items()):
            share = counts / counts.sum(1, keepdim=True).clamp(min=1)
            image = axes.imshow(share.numpy(), vmin=0, vmax=1, cmap="Blues")
            axes.set(title=title, xlabel="predicted", ylabel="true")
            if len(class_names) <= 40:
                axes.set_xticks(range(len(class_names)), class_names, rotation=90)
                axes.set_yticks(range(len(class_names)), class_names)
        figure.colorbar(image, ax=figure.axes, label="fraction of the true class", shrink=0.7)
