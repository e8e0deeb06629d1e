"""Class-conditional image generation with a latent diffusion transformer."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset

from onelora_vision import seeding
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import OwnParts
from onelora_vision.backbones.dit import DiTBase
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.latents import posterior
from onelora_vision.data.stream import SampleRef
from onelora_vision.diffusion.guidance import base_prediction, distilled_target
from onelora_vision.diffusion.latents import LatentScale
from onelora_vision.diffusion.loss_settings import LossSettings
from onelora_vision.diffusion.objective import objective_of
from onelora_vision.diffusion.schedule import draw_shares, min_snr_weights
from onelora_vision.metrics.direction import changes
from onelora_vision.metrics.generative import Features
from onelora_vision.tasks.base import FOR_THE_CARD, Task
from onelora_vision.tasks.retention import SEED, Retention, own_rows
from onelora_vision.tasks.sample_evaluation import (
    ImageSampler,
    SampleEvaluator,
    SamplePicture,
    lent,
    measure_reference,
    sweep_guidance,
)

# Streams for independent uses of one sample's seed.
LATENT, NOISE, TIMESTEP, DROPOUT = 10, 11, 12, 13


class LazyLatents(Dataset):
    """Images as latents, encoded on every read: for the few images of a validation loss.

    Args:
        dataset: of items with ``image``, which is replaced by ``mean`` and ``std``.
        vae: the autoencoder. device: where it encodes; it is only moved there for that time.
    """

    def __init__(self, dataset: Dataset, vae: nn.Module, device: torch.device):
        self.dataset, self.vae, self.device = dataset, vae, device

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, ref: SampleRef | int) -> dict:
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef | int]) -> list[dict]:
        samples = self.dataset.__getitems__(refs)
        with lent(self.vae, self.device) as vae:
            latents = posterior(vae, torch.stack([sample.pop("image") for sample in samples]))
        return [{**sample, "mean": mean.cpu(), "std": std.cpu()} for sample, mean, std in zip(samples, *latents)]


class GenerationTask(Task):
    """Trains a DiT or SiT: adds noise to a latent and predicts the target of the base's objective.

    Args:
        model: a `DiT` with adapters.
        vae: the frozen autoencoder from images to latents. ``None`` if batches already contain latents.
        scheduler_config: config of the scheduler the base was trained with, which determines its objective.
        class_dropout_prob: fraction of samples whose label becomes the null class, for classifier-free guidance. One
            draw per sample, from the sample's own seed.
        evaluator: called with the model by `evaluate`; ``None`` for a task that is only trained.
        scale: normalises latents to unit size; default: the autoencoder's.
        info: the description in the adapter's files.
        picture: drawn after evaluations and at the end. scales: guidance scales to evaluate at the end.
        loss: settings of the training loss.
    """

    def __init__(
        self,
        model: PeftModel,
        vae: nn.Module | None,
        scheduler_config: dict,
        class_dropout_prob: float = 0.1,
        evaluator: SampleEvaluator | None = None,
        scale: LatentScale | None = None,
        info: AdapterInfo | None = None,
        picture: SamplePicture | None = None,
        scales: Sequence[float] = (),
        loss: LossSettings = LossSettings(),
    ):
        super().__init__(model, info)
        self.picture, self.scales, self.loss = picture, scales, loss
        self.vae = vae.requires_grad_(False).eval() if vae is not None else None
        self.scale = scale or LatentScale.of(vae)
        self.class_dropout_prob = class_dropout_prob
        self.null_class = model.null_class
        self.evaluator = evaluator
        self.objective = objective_of(scheduler_config)

    def latents(self, batch: dict) -> torch.Tensor:
        """Latents (N, C, h, w), fp32 and of unit size, sampled from the posteriors of a batch's images.

        ``batch`` has ``image`` (N, 3, H, W) in [0, 1], or the posteriors' ``mean`` and ``std`` (N, C, h, w) from a
        cache.
        """
        mean, std = posterior(self.vae, batch["image"]) if "image" in batch else (batch["mean"], batch["std"])
        noise = seeding.randn(batch["seed"].tolist(), mean.shape[1:], LATENT).to(mean.device)
        return self.scale.normalize(mean + std * noise)

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """``loss`` (mse, plus vlb if a variance is learned) of ``batch``: image or mean and std, label, seed."""
        seeds = batch["seed"].tolist()
        dropped = (seeding.rand(seeds, DROPOUT) < self.class_dropout_prob).to(batch["label"].device)
        labels = torch.where(dropped, self.null_class, batch["label"])
        t = self.objective.times(draw_shares(seeds, TIMESTEP, self.loss))
        losses = self._losses(batch, t, labels, self.loss)
        return {"loss": sum(losses.values()), **{name: loss.detach() for name, loss in losses.items()}}

    def validation_loss(self, batch: dict) -> torch.Tensor:
        """The loss with all classes kept, evenly spread times, and equal weights for all times.

        When training towards guidance, it is the loss of the prediction with the guidance removed. `distilled_target`
        contains the model's own prediction, so the plain loss would rise as the guidance is learnt.
        """
        count = len(batch["seed"])
        t = self.objective.times((torch.arange(count) + 0.5) / count)
        return sum(self._losses(batch, t, batch["label"], replace(self.loss, snr_gamma=None)).values())

    def _losses(
        self, batch: dict, t: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> dict[str, torch.Tensor]:
        x0 = self.latents(batch)
        t, labels = t.to(x0.device), labels.to(x0.device)
        noise = seeding.randn(batch["seed"].tolist(), x0.shape[1:], NOISE).to(x0.device)
        objective, channels = self.objective, x0.shape[1]
        xt, time, target = objective.noised(x0, noise, t), objective.timestep(t), objective.target(x0, noise)
        # The base first: its activations are freed before those for the backward pass are stored.
        base = base_prediction(self.adapted, xt, time) if settings.guidance_distillation else None
        output = self.model(xt, timestep=time, class_labels=labels).sample
        if base is not None:
            predictions = (objective.predicted(answer, channels) for answer in (output, base))
            target = self._guided(target, *predictions, t, labels, settings)
        losses = objective.losses(output, x0, xt, noise, t, target)
        if settings.snr_gamma is not None:
            losses["mse"] = losses["mse"] * min_snr_weights(objective.schedule, t, settings.snr_gamma)
        return {name: loss.mean() for name, loss in losses.items()}

    def _guided(self, target, conditional, unconditional, t, labels, settings: LossSettings) -> torch.Tensor:
        """The target of `distilled_target` for samples that have a class and a time within the guided interval."""
        (low, high), share = settings.guidance_interval, self.objective.share(t)
        applies = (labels != self.null_class) & (low <= share) & (share < high)
        scale, channels = settings.guidance_distillation, settings.guidance_channels
        return distilled_target(target, conditional, unconditional, scale, channels, applies)

    def identity(self) -> dict[str, str]:
        return super().identity() | {"objective": str(self.objective)}

    def evaluate(self, loader, accelerator) -> dict[str, float]:
        """The evaluator's metrics for samples of the model; ``loader`` is ignored."""
        return self.evaluator(accelerator.unwrap_model(self.model), accelerator) if self.evaluator else {}

    def draw(self, path: Path, step: int, for_the_card: Path | None = None) -> None:
        """Samples of the base and of the model on the same noise, and training images (not in ``for_the_card``)."""
        if self.picture is not None:
            title, metrics = f"{self.info.method}, {step} steps", changes(self.info.metrics)
            self.picture.draw(path, self.adapted, title, metrics, for_the_card)

    def report(self, folder: Path, step: int, before: dict, after: dict, accelerator) -> None:
        """``samples.png``, and ``guidance.json`` and ``guidance.png`` if there are guidance scales to sweep."""
        if self.evaluator is not None and self.scales:
            sweep_guidance(self.evaluator, self.adapted, self.scales, accelerator, folder)
        if accelerator.is_main_process:
            (folder / FOR_THE_CARD).mkdir()
            self.draw(folder / "samples.png", step, folder / FOR_THE_CARD / "samples.png")


def generator_retention(
    base: DiTBase,
    own: OwnParts,
    model: PeftModel,
    sampler: ImageSampler,
    features: Features,
    data: ClassImageDataset,
    count: int,
    precision: str = "fp32",
    num_workers: int = 0,
) -> Retention:
    """``fd_<features>`` between samples and the old data's real images.

    Also ``class_accuracy``, if the features have a classifier that knows the classes.

    Args:
        sampler, features: how samples are made and evaluated; precision: of the network during sampling.
        data: the old data; its classes are the base's (see `own_rows`); num_workers: processes that read it.
        count: number of samples, equally many of each class; if there are more classes than that, as many classes,
            spread over all.

    Raises:
        InputError: the base lacks a class.
    """
    rows = own_rows(data.class_names, own.class_names, len(own.class_names))
    classes = [number * len(rows) // count for number in range(count)] if count < len(rows) else range(len(rows))
    names, real = [data.class_names[number] for number in classes], f"{data.source.name}/{data.source.split}"

    @functools.cache
    def evaluator(accelerator: Accelerator) -> SampleEvaluator:
        loading = (sampler.batch_size, num_workers)
        return SampleEvaluator(
            sampler,
            names,
            features,
            measure_reference(features, data, real, accelerator, sampler.vae, *loading),
            count,
            SEED,
            precision,
            rows=[rows[number] for number in classes],
        )

    def evaluate(accelerator: Accelerator) -> dict[str, float]:
        found = evaluator(accelerator)(model, accelerator, "sampling the base's classes")
        return {name: found[name] for name in (f"fd_{features.name}", "class_accuracy") if name in found}

    used = sampler.settings
    protocol = (
        f"{count:,} samples of {len(names):,} of the base's own classes, {used.sampler}, {used.steps} steps, {used.guidance_text()}, "
        f"{precision}, and {len(data):,} images of {real}, features {features.name} {features.weights_hash}"
    )
    return Retention(base, own, protocol, data.identity(), evaluate)
