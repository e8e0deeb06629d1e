"""Samples of a generation model measured against real images, on any number of processes."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from onelora_vision import seeding
from onelora_vision.data.stream import evaluation_loader
from onelora_vision.files import write_json
from onelora_vision.metrics.generative import Features, FeatureSet, Protocol, class_accuracy, collect, compare
from onelora_vision.pictures import save_curves
from onelora_vision.sampling import SamplingSettings, decode, sample_latents


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
    bar = tqdm(loader, "measuring real images", leave=False, disable=not accelerator.is_main_process)
    found = collect(features.to(accelerator.device), (batch["image"] for batch in bar))
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
    ):
        self.vae, self.scheduler_config, self.class_names = vae, scheduler_config, list(class_names)
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
            tqdm(total=len(labels), desc=desc, unit="image", leave=False, disable=hidden) as bar,
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
    evaluator: SampleEvaluator,
    model: nn.Module,
    scales: Sequence[float],
    protocol: Protocol,
    accelerator: Accelerator,
    output_dir: str | Path,
) -> list[dict]:
    """Evaluate at each guidance scale; written as ``guidance.json``, with its protocols, and drawn as ``guidance.png``."""
    rows = []
    for scale in scales:
        settings = dataclasses.replace(evaluator.settings, guidance_scale=scale)
        figures = evaluator(model, accelerator, f"guidance {scale:g}", settings)
        line = dataclasses.replace(protocol, guidance=scale).line()
        rows.append({"guidance_scale": scale, "metrics": figures, "protocol": line})
    if accelerator.is_main_process:
        write_json(Path(output_dir) / "guidance.json", rows)
        curves = {name: [row["metrics"][name] for row in rows] for name in rows[0]["metrics"]}
        save_curves(Path(output_dir) / "guidance.png", scales, curves, "guidance scale", rows[0]["protocol"])
    return rows
