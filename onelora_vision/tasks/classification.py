"""Image classification: cross-entropy on one class per image, evaluated by accuracy, likelihood and calibration."""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import PeftModel

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import Base, OwnParts
from onelora_vision.backbones.vit_heads import logits_of
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.errors import InputError
from onelora_vision.metrics.accuracy import Predictions, confusion_matrix, draw_confusion_matrix, per_class_accuracy
from onelora_vision.metrics.calibration import CalibrationBins, draw_reliability_diagram
from onelora_vision.metrics.direction import changes
from onelora_vision.plots.predictions import Answer, Judged, save_predictions
from onelora_vision.seeding import mix, seeded
from onelora_vision.storage.files import write_json
from onelora_vision.tasks.base import Task
from onelora_vision.tasks.retention import Retention, own_rows

SHOWN = 24  # images in the picture


class ClassificationTask(Task):
    """Trains and evaluates a classifier.

    Args:
        model: normalised images (B, 3, H, W) -> logits (B, classes), or an output with ``.logits``.
        class_names: one per logit.
        smoothing: fraction of each target that is spread over all classes (label smoothing).
        mixup, cutmix: alpha of the Beta distribution for blending, or pasting, pairs of images in a batch
            (arXiv 1710.09412, 1905.04899); 0 is off. With both, each batch gets one of them.
        mean, std: of the channels of images in [0, 1], to normalise uint8 images. This is done for a whole batch on the
            model's device, so the loader does less work and transfers a quarter of the bytes.
        info: the description in the adapter's files.
        shown: the images of the evaluations before and after training, some of which are drawn.

    Attributes:
        details: the fields of `metrics.accuracy.Predictions` of the last `evaluate`.
    """

    def __init__(
        self,
        model: PeftModel,
        class_names: Sequence[str],
        smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        info: AdapterInfo | None = None,
        shown: ClassImages | None = None,
    ):
        super().__init__(model, info)
        self.shown = shown
        self.class_names = list(class_names)
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.smoothing = smoothing
        self._mixup = None
        if mixup or cutmix:
            from timm.data import Mixup

            self._mixup = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=len(class_names))

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Mean cross-entropy as ``loss``, and the predicted class's mean weight in the target as ``accuracy``.

        Without mixing, ``accuracy`` is the fraction of correctly classified images.

        ``batch``: image (B, 3, H, W), uint8 or normalised; label (B,), seed (B,). Mixing is drawn from the seeds.
        """
        images, labels = self._normalised(batch["image"]), batch["label"]
        if self._mixup is None:
            logits = logits_of(self.model, images).float()
            loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
            return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}
        if len(images) % 2:
            raise InputError(f"mixup and cutmix pair the images of a batch: --train_batch_size {len(images)} is odd")
        with seeded(mix(*batch["seed"].tolist())):
            images, targets = self._mixup(images.clone(), labels)
        logits = logits_of(self.model, images).float()
        return {
            "loss": F.cross_entropy(logits, targets),
            "accuracy": targets.gather(1, logits.argmax(1)[:, None]).mean(),
        }

    def validation_loss(self, batch: dict) -> torch.Tensor:
        """Mean cross-entropy with the plain labels."""
        return F.cross_entropy(logits_of(self.model, self._normalised(batch["image"])).float(), batch["label"])

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8:
            return images
        return images.float().div_(255).sub_(self.mean.to(images.device)).div_(self.std.to(images.device))

    def evaluate(self, loader, accelerator) -> dict[str, float]:
        """``top1``, ``top5`` (of over five classes) and ``ece`` (15 bins) in [0, 1], ``nll`` in nats, over ``loader``.

        Each image counts once, regardless of the number of processes.
        """
        parts = []
        for batch in loader:
            with accelerator.autocast():
                logits = logits_of(self.model, self._normalised(batch["image"])).float()
            parts.append(Predictions.of(*accelerator.gather_for_metrics((logits, batch["label"], batch["index"]))))
        found = Predictions.cat(parts)
        self.details = vars(found)
        return {
            "top1": found.correct.double().mean().item(),
            **({"top5": found.in_top5.double().mean().item()} if len(self.class_names) > 5 else {}),
            "nll": found.nll.double().mean().item(),
            "ece": CalibrationBins.of(found.confidence, found.correct).error,
        }

    def report(self, folder: Path, step: int, before: dict, after: dict, accelerator) -> None:
        """`draw_report` for the evaluations before and after training, and ``predictions.png`` for some images."""
        if not accelerator.is_main_process:
            return
        found = Predictions(**before), Predictions(**after)
        draw_report(*found, self.class_names, folder)
        if self.shown is not None:
            draw_predictions(*found, self.class_names, self.shown, folder / "predictions.png", self.info.metrics)


def classifier_retention(
    base: Base, own: OwnParts, model: PeftModel, images: ClassImages, loader: Callable[[ClassImages], Iterable]
) -> Retention:
    """``top1`` among the base's own classes.

    Args:
        images: the old data; its classes are the base's (see `own_rows`). loader: makes batches of it.

    Raises:
        InputError: the base has no head, or lacks a class.
    """
    outputs = min((head.out_features for head in own.modules.values()), default=0)
    rows = own_rows(images.class_names, own.class_names, outputs)
    names = own.class_names or [str(row) for row in range(outputs)]
    known = replace(images, labels=[rows[label] for label in images.labels], class_names=names)
    task = ClassificationTask(model, names)

    def evaluate(accelerator: Accelerator) -> dict[str, float]:
        return {"top1": task.evaluate(loader(known), accelerator)["top1"]}

    protocol = f"{len(images):,} images of {images.name} {images.split}, among the base's own {outputs:,} classes"
    return Retention(base, own, protocol, images.identity(), evaluate)


def draw_predictions(
    before: Predictions,
    after: Predictions,
    class_names: Sequence[str],
    images: ClassImages,
    path: str | os.PathLike,
    metrics: dict,
) -> None:
    """Draw images with their predictions in two evaluations, with as equal a number of each outcome as possible.

    Unreadable images are omitted. Without any images to show, no picture is written.
    """
    outcomes = {
        "fixed": ~before.correct & after.correct,
        "broken": before.correct & ~after.correct,
        "wrong in both": ~before.correct & ~after.correct,
        "right in both": before.correct & after.correct,
    }
    cells = []
    for row in _of_each([mask.nonzero().flatten().tolist() for mask in outcomes.values()], SHOWN):
        with contextlib.suppress(InputError):
            answers = [
                Answer(class_names[found.predicted[row]], bool(found.correct[row]), float(found.confidence[row]))
                for found in (before, after)
            ]
            picture = images.read(int(after.index[row]))
            cells.append(Judged(picture, class_names[after.label[row]], *answers))
    counts = ", ".join(f"{int(mask.sum()):,} {name}" for name, mask in outcomes.items())
    if cells:
        save_predictions(path, cells, f"{changes(metrics)}\nof {len(after.index):,} images: {counts}")


def _of_each(groups: Sequence[Sequence[int]], most: int) -> list[int]:
    """At most ``most`` members: as equal numbers of each group as possible, spread over the group, group by group."""
    shares = [0] * len(groups)
    while sum(shares) < min(most, sum(map(len, groups))):
        open_groups = [k for k, group in enumerate(groups) if shares[k] < len(group)]
        shares[min(open_groups, key=lambda k: shares[k])] += 1
    return [group[i * len(group) // share] for group, share in zip(groups, shares) for i in range(share)]


def draw_report(
    before: Predictions, after: Predictions, class_names: Sequence[str], folder: str | os.PathLike
) -> None:
    """Write ``confusion.png``, ``reliability.png`` and ``per_class_accuracy.json`` of two evaluations to ``folder``."""
    folder, found = Path(folder), {"before": before, "after": after}
    confusions = {title: confusion_matrix(predictions, len(class_names)) for title, predictions in found.items()}
    draw_confusion_matrix(confusions, class_names, folder / "confusion.png")
    bins = {
        title: CalibrationBins.of(predictions.confidence, predictions.correct) for title, predictions in found.items()
    }
    draw_reliability_diagram(bins, folder / "reliability.png")
    accuracy = {title: per_class_accuracy(confusion, class_names) for title, confusion in confusions.items()}
    write_json(folder / "per_class_accuracy.json", accuracy)
