"""Samples of a generation model measured against real images, on any number of processes."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset, Subset

from onelora_vision import seeding
from onelora_vision.data.stream import evaluation_loader
from onelora_vision.diffusion.sampling import decode, sample, sample_latents
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.metrics.generative import Features, FeatureSet, Protocol, class_accuracy, collect, compare
from onelora_vision.plots.pictures import save_comparison, save_curves
from onelora_vision.runtime.progress import progress, progress_bar
from onelora_vision.storage.files import write_json


@contextlib.contextmanager
def lent(vae: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The autoencoder on ``device`` for a block, and back where it was after it."""
    home = next(vae.parameters()).device
    try:
        yield vae.to(device)
    finally:
        vae.to(home)


def reference_features(
    features: Features, dataset: Dataset, accelerator: Accelerator, batch_size: int, num_workers: int = 0
) -> FeatureSet:
    """The features of all images of a data set, whose items have ``image``; each process reads its share of them."""
    own = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    loader = evaluation_loader(own, batch_size, num_workers)
    bar = {"desc": "measuring real images", "unit": "batch", "hidden": not accelerator.is_main_process}
    batches = progress(loader, len(loader), **bar)
    found = collect(features.to(accelerator.device), (batch["image"] for batch in batches))
    return _of_all(found, features, accelerator)


def _of_all(own: FeatureSet, features: Features, accelerator: Accelerator) -> FeatureSet:
    features.to("cpu")
    return FeatureSet.interleaved(gather_object([own]))


class SampleEvaluator:
    """Makes samples of a model, as many of each class, and measures them against real images.

    Several processes share the work: each makes every ``num_processes``-th image, and all get the same figures, which
    are those of one process.

    Args:
        vae: the autoencoder. scheduler_config: of the schedule the model was trained with.
        class_names: names of the model's classes.
        features: what the images are measured with. reference: the real images' features.
        num_samples: images to make; image ``i`` is of class ``i % classes`` and has the seed ``mix(seed, i)``.
        settings: how they are made. batch_size: images per batch.
        protocol: how all this is measured. floor: the autoencoder's own distance, which no sampler can be better than;
            reported with the metrics where it is known.
    """

    def __init__(
        self,
        vae: nn.Module,
        scheduler_config: dict,
        class_names: Sequence[str],
        features: Features,
        reference: FeatureSet,
        num_samples: int,
        settings: SamplingSettings,
        seed: int = 0,
        batch_size: int = 64,
        protocol: Protocol | None = None,
        floor: float | None = None,
    ):
        self.vae, self.scheduler_config, self.class_names = vae, scheduler_config, list(class_names)
        self.protocol, self.floor = protocol, floor
        self.features, self.reference = features, reference
        self.settings, self.batch_size = settings, batch_size
        self.labels = [index % len(self.class_names) for index in range(num_samples)]
        self.seeds = [seeding.mix(seed, index) for index in range(num_samples)]

    def __call__(
        self,
        model: nn.Module,
        accelerator: Accelerator,
        desc: str = "sampling",
        settings: SamplingSettings | None = None,
    ) -> dict[str, float]:
        """The figures of `metrics.generative.compare` and, where the features' model classifies, ``class_accuracy``
        (a share, 0 to 1). ``settings`` overrides the evaluator's own."""
        own = slice(accelerator.process_index, None, accelerator.num_processes)
        labels, seeds, hidden = self.labels[own], self.seeds[own], not accelerator.is_main_process
        training = model.training
        model.eval()
        with (
            progress_bar(len(labels), desc=desc, unit="image", leave=False, hidden=hidden) as bar,
            lent(self.vae, accelerator.device) as vae,
        ):
            images = self._images(model, vae, labels, seeds, settings or self.settings, accelerator, bar)
            found = _of_all(collect(self.features.to(accelerator.device), images), self.features, accelerator)
        model.train(training)
        figures = compare(found, self.reference, self.features.name)
        if found.logits is not None:
            figures["class_accuracy"] = class_accuracy(
                found.logits, self.labels, self.class_names, self.features.class_names
            )
        if self.floor is not None:
            figures[f"fd_{self.features.name}_floor"] = self.floor
        return figures

    def _images(self, model, vae, labels, seeds, settings, accelerator, bar) -> Iterator[torch.Tensor]:
        for start in range(0, len(labels), self.batch_size):
            part = slice(start, start + self.batch_size)
            with accelerator.autocast():  # as in training; the autoencoder stays in its own precision
                latents = sample_latents(model, self.scheduler_config, labels[part], seeds[part], settings)
            yield decode(vae, latents)
            bar.update(len(latents))


@torch.no_grad()
def sweep_guidance(
    evaluator: SampleEvaluator, model: nn.Module, scales: Sequence[float], accelerator: Accelerator, folder: str | Path
) -> list[dict]:
    """Evaluate at each guidance scale; written as ``guidance.json``, with its protocols, and drawn as ``guidance.png``."""
    rows = []
    for scale in scales:
        settings = dataclasses.replace(evaluator.settings, guidance_scale=scale)
        metrics = evaluator(model, accelerator, f"guidance {scale:g}", settings)
        line = dataclasses.replace(evaluator.protocol, guidance=scale).line()
        rows.append({"guidance_scale": scale, "metrics": metrics, "protocol": line})
    if accelerator.is_main_process:
        write_json(Path(folder) / "guidance.json", rows)
        curves = {name: [row["metrics"][name] for row in rows] for name in rows[0]["metrics"]}
        save_curves(Path(folder) / "guidance.png", scales, curves, "guidance scale", rows[0]["protocol"])
    return rows


@dataclasses.dataclass
class SamplePicture:
    """The picture of a run: the base, with the label table as it started, and the adapted model, on the same noise.

    Attributes:
        vae: the autoencoder. scheduler_config: of the schedule the model was trained with.
        names: of the classes shown, one row each; labels: their numbers. num_images: images of each.
        settings: how they are made. seed: of the noise. batch_size: images per batch.
    """

    vae: nn.Module
    scheduler_config: dict
    names: Sequence[str]
    labels: Sequence[int]
    num_images: int
    settings: SamplingSettings
    seed: int
    batch_size: int

    def draw(self, path: Path, model: PeftModel, title: str) -> None:
        """Write the PNG; ``title`` is of the adapted model's panel."""
        labels = [label for label in self.labels for _ in range(self.num_images)]
        seeds = [seeding.mix(self.seed, -1, index) for index in range(len(labels))]
        with lent(self.vae, next(model.parameters()).device) as vae:
            arguments = (model, vae, self.scheduler_config, labels, seeds, self.settings)
            adapted = sample(*arguments, batch_size=self.batch_size)
            with model.disable_adapter():
                base = sample(*arguments, batch_size=self.batch_size)
        panels = {
            name: images.unflatten(0, (-1, self.num_images)) for name, images in (("base", base), (title, adapted))
        }
        used = self.settings
        caption = f"same noise; {used.sampler}, {used.steps} steps, guidance {used.guidance_scale}"
        save_comparison(path, panels, self.names, caption)
