"""Evaluation of a generator's samples against real images, on any number of processes."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset, Subset

from onelora_vision import seeding
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.content import content_hash, content_hashes
from onelora_vision.data.stream import evaluation_loader
from onelora_vision.diffusion.objective import objective_of
from onelora_vision.diffusion.sampling import iter_samples
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.methods.residual import base_restored
from onelora_vision.metrics.features import cached_features, published_features
from onelora_vision.metrics.generative import (
    Features,
    FeatureSet,
    Protocol,
    autoencoder_floor,
    class_accuracy,
    collect,
    compare,
    figures_alone,
    weights_hash,
)
from onelora_vision.metrics.parts import SIZE, KeptParts
from onelora_vision.plots.pictures import save_comparison, save_curves
from onelora_vision.runtime.progress import progress, progress_bar
from onelora_vision.storage.files import write_json


@contextlib.contextmanager
def lent(vae: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Move the autoencoder to ``device`` for the duration of a block, then back."""
    home = next(vae.parameters()).device
    try:
        yield vae.to(device)
    finally:
        vae.to(home)


@dataclasses.dataclass(frozen=True)
class ImageSampler:
    """Makes images with a model.

    Attributes:
        vae: the autoencoder, which is on the model's device while images are made.
        scheduler_config: of the scheduler the model was trained with, which determines its objective.
        settings: of the sampler, with ``auto`` replaced by the objective's default. batch_size: images at a time.
    """

    vae: nn.Module
    scheduler_config: dict
    settings: SamplingSettings
    batch_size: int = 64

    def __post_init__(self):
        settings = self.settings.resolved(objective_of(self.scheduler_config).name)
        object.__setattr__(self, "settings", settings)  # frozen

    def __call__(
        self,
        model: nn.Module,
        labels: Sequence[int],
        seeds: Sequence[int],
        autocast: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    ) -> Iterator[torch.Tensor]:
        """Batches of images (n, 3, H, W) in [0, 1]; ``autocast`` is entered for the network but not the autoencoder."""
        with lent(self.vae, next(model.parameters()).device) as vae:
            options = {"batch_size": self.batch_size, "autocast": autocast}
            yield from iter_samples(model, vae, self.scheduler_config, labels, seeds, self.settings, **options)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images that samples are compared with.

    Attributes:
        features: of the images. split: dataset and split.
        crop, resize: how the images were cropped and resized, for the protocol.
        floor: Fréchet distance between the images and their autoencoder reconstructions, a lower bound for any sampler;
            None if unknown.
    """

    features: FeatureSet
    split: str
    crop: str = "none"
    resize: str = "none"
    floor: float | None = None


def measure_reference(
    features: Features,
    dataset: Dataset,
    split: str,
    accelerator: Accelerator,
    vae: nn.Module,
    batch_size: int,
    num_workers: int = 0,
) -> Reference:
    """Compute the reference of real images; features of image folders are cached for the next run.

    Args:
        dataset: a `ClassImageDataset` with a `SquareCrop`, or images drawn by the program, whose `Reference` includes
            the autoencoder's floor.
        split: dataset and split, for the protocol.
    """
    compute = functools.partial(reference_features, features, dataset, accelerator, batch_size, num_workers)
    if not isinstance(dataset, ClassImageDataset):
        found = compute()
        return Reference(found, split, floor=autoencoder_floor(vae, dataset.images(), found.statistics, features))
    parts = itertools.chain(content_hashes(dataset.source, accelerator), [str(dataset.transform)])
    found = cached_features(parts, features, compute, accelerator.is_main_process)
    return Reference(found, split, f"center {dataset.transform.resolution}", "box+bicubic")


def published_reference(features: Features, path: str | Path) -> Reference:
    """A reference with published statistics (see `metrics.statistics_file`).

    Raises:
        InputError: the file contains no statistics, or those of other features.
    """
    return Reference(
        published_features(path, features), f"{Path(path).name}-{content_hash(path)[:8]}", "its own", "its own"
    )


def reference_features(
    features: Features, dataset: Dataset, accelerator: Accelerator, batch_size: int, num_workers: int = 0
) -> FeatureSet:
    """The features of all images of a dataset, whose items have ``image``; each process reads its share of them."""
    own = Subset(dataset, range(accelerator.process_index, len(dataset), accelerator.num_processes))
    loader = evaluation_loader(own, batch_size, num_workers)
    bar = {"desc": "measuring real images", "unit": "batch", "hidden": not accelerator.is_main_process}
    batches = progress(loader, len(loader), **bar)
    found = collect(features.to(accelerator.device), (batch["image"] for batch in batches))
    return _of_all(found, features, accelerator)


def _of_all(own: FeatureSet, features: Features, accelerator: Accelerator) -> FeatureSet:
    features.to("cpu")
    return FeatureSet.interleaved(gather_object([own]))


@dataclasses.dataclass(frozen=True)
class SampleEvaluator:
    """Samples a model, equally many images of each class, and evaluates them against real images.

    Several processes share the work: each makes every ``num_processes``-th image, and all get the same metrics as a
    single process would.

    Attributes:
        sampler: makes the images.
        class_names: the classes of the images. rows: their indices in the model; None: 0, 1, 2, …
        features: of the evaluation. reference: the real images.
        num_samples: number of images; image ``i`` is of class ``i % classes`` and has the seed ``mix(seed, i)``.
        precision: of the network during sampling. ema: whether its weights are the average. distillation: the guidance
            that it was trained towards. stock_numerics: whether it computes exactly as in diffusers. All four are for
            the protocol.
    """

    sampler: ImageSampler
    class_names: Sequence[str]
    features: Features
    reference: Reference
    num_samples: int
    seed: int = 0
    precision: str = "fp32"
    ema: bool = False
    distillation: float | None = None
    stock_numerics: bool = False
    rows: Sequence[int] | None = None

    @property
    def protocol(self) -> Protocol:
        """Everything that the distances depend on other than the model."""
        settings, reference = self.sampler.settings, self.reference
        return Protocol(
            generated=self.num_samples,
            reference=len(reference.features),
            split=reference.split,
            crop=reference.crop,
            resize=reference.resize,
            sampler=settings.sampler,
            steps=settings.steps,
            guidance=settings.guidance_scale,
            guidance_channels=str(settings.guidance_channels or "all"),
            guidance_interval=",".join(f"{bound:g}" for bound in settings.guidance_interval),
            precision=self.precision,
            vae=weights_hash(self.sampler.vae),
            seed=self.seed,
            ema=self.ema,
            features=self.features.name,
            weights_hash=self.features.weights_hash,
            guidance_base=settings.uses_base,
            guidance_distillation=self.distillation or 1.0,
            stock_numerics=self.stock_numerics,
        )

    def sampling(self, **changes: Any) -> "SampleEvaluator":
        """The same evaluation with other `SamplingSettings`, such as ``guidance_scale=2.0``."""
        settings = dataclasses.replace(self.sampler.settings, **changes)
        return dataclasses.replace(self, sampler=dataclasses.replace(self.sampler, settings=settings))

    @torch.no_grad()
    def __call__(self, model: nn.Module, accelerator: Accelerator, desc: str = "sampling") -> dict[str, float]:
        """The metrics of `metrics.generative.compare`, plus those that need more information.

        These are ``class_accuracy`` (0 to 1), if the features' model knows the classes, and the autoencoder's floor, if
        known.
        """
        classes = [index % len(self.class_names) for index in range(self.num_samples)]
        labels = classes if self.rows is None else [self.rows[number] for number in classes]
        features = self.features.to(accelerator.device)
        parts = KeptParts(self._key(model), accelerator.process_index, accelerator.num_processes)
        shares = list(parts.shares(self.num_samples))
        total, hidden = sum(map(len, shares)), not accelerator.is_main_process
        with progress_bar(total, desc=desc, unit="image", leave=False, hidden=hidden) as bar:

            def measured(share: list[int]) -> FeatureSet:
                seeds = [seeding.mix(self.seed, index) for index in share]
                images = self.sampler(model, [labels[index] for index in share], seeds, accelerator.autocast)
                return collect(features, bar_over(bar, images))

            own = FeatureSet.joined(list(self._in_parts(parts, shares, measured, bar)))
            found = _of_all(own, features, accelerator)
        parts.clear()
        metrics = compare(found, self.reference.features, features.name) | figures_alone(found, features)
        if set(self.class_names) <= set(features.class_names):
            metrics["class_accuracy"] = class_accuracy(found.logits, classes, self.class_names, features.class_names)
        if self.reference.floor is not None:
            metrics[f"fd_{features.name}_floor"] = self.reference.floor
        return metrics

    def _key(self, model: nn.Module) -> str | None:
        """Everything that the samples' features depend on; None for a single part, which is not worth caching."""
        if self.num_samples <= SIZE:
            return None
        return "\n".join([self.protocol.line(), weights_hash(model), *self.class_names, *map(str, self.rows or ())])

    @staticmethod
    def _in_parts(parts: KeptParts, shares: list[list[int]], measured: Callable, bar) -> Iterator[FeatureSet]:
        for number, share in enumerate(shares):
            before = bar.n
            yield parts.get(number * SIZE, functools.partial(measured, share))
            if bar.n == before:  # it was cached
                bar.update(len(share))


def bar_over(bar, batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the batches; the bar advances by a batch's images when the next batch is requested."""
    for batch in batches:
        yield batch
        bar.update(len(batch))


def sweep_guidance(
    evaluator: SampleEvaluator, model: nn.Module, scales: Sequence[float], accelerator: Accelerator, folder: str | Path
) -> list[dict]:
    """Evaluate at each guidance scale; writes ``guidance.json``, with the protocols, and ``guidance.png``."""
    rows = []
    for scale in scales:
        scaled = evaluator.sampling(guidance_scale=scale)
        metrics = scaled(model, accelerator, f"guidance {scale:g}")
        rows.append({"guidance_scale": scale, "metrics": metrics, "protocol": scaled.protocol.line()})
    if accelerator.is_main_process:
        write_json(Path(folder) / "guidance.json", rows)
        curves = {name: [row["metrics"][name] for row in rows] for name in rows[0]["metrics"]}
        save_curves(Path(folder) / "guidance.png", scales, curves, "guidance scale", rows[0]["protocol"])
    return rows


@dataclasses.dataclass(frozen=True)
class SamplePicture:
    """A run's picture: the base with its initial label table and the adapted model, on the same noise.

    Training images of the same classes are shown next to them.

    Attributes:
        sampler: makes the images. base_sampler: makes those of the base, if different: the base needs guidance even if
            the adapter was trained to do without.
        names: of the classes shown, one row each; labels: their indices. num_images: images per class.
        seed: of the noise.
        training: the training images without augmentation; None omits them.
    """

    sampler: ImageSampler
    names: Sequence[str]
    labels: Sequence[int]
    num_images: int
    seed: int = 0
    training: Dataset | None = None
    base_sampler: ImageSampler | None = None

    @torch.no_grad()
    def draw(
        self, path: Path, model: PeftModel, title: str, metrics: str = "", for_the_card: Path | None = None
    ) -> None:
        """Write the PNG; ``title`` is for the adapted model's panel, ``metrics`` is the first line of the caption.

        ``for_the_card`` is written without the training images, which may not be meant for others.
        """
        labels = [label for label in self.labels for _ in range(self.num_images)]
        seeds = [seeding.mix(self.seed, -1, index) for index in range(len(labels))]
        adapted = torch.cat(list(self.sampler(model, labels, seeds)))
        with base_restored(model):
            base = torch.cat(list((self.base_sampler or self.sampler)(model, labels, seeds)))
        of_base = f"base, {self.base_sampler.settings.guidance_text()}" if self.base_sampler else "base"
        panels = {
            name: images.unflatten(0, (-1, self.num_images)) for name, images in ((of_base, base), (title, adapted))
        }
        used = self.sampler.settings
        how = f"samples on the same noise; {used.sampler}, {used.steps} steps, {used.guidance_text()}"
        caption = "\n".join(filter(None, (metrics, how)))
        if for_the_card is not None:
            save_comparison(for_the_card, panels, self.names, caption)
        if self.training is not None:
            panels["training images"] = examples(self.training, self.labels, self.num_images)
        save_comparison(path, panels, self.names, caption)


def examples(dataset: Dataset, labels: Sequence[int], count: int) -> torch.Tensor:
    """Images (classes, count, 3, H, W) of a dataset: ``count`` of each class, spread over it; NaN for missing ones."""
    of_all = torch.as_tensor(getattr(dataset, "source", dataset).labels)
    rows = []
    for label in labels:
        members = (of_all == label).nonzero().flatten().tolist()
        chosen = [members[k * len(members) // count] for k in range(count)] if len(members) > count else members
        rows.append([sample["image"] for sample in dataset.__getitems__(chosen)] if chosen else [])
    shape = next((image.shape for row in rows for image in row), (3, 1, 1))
    blank = torch.full(shape, torch.nan)
    return torch.stack([torch.stack([*row, *[blank] * (count - len(row))]) for row in rows])
