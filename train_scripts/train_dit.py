"""Fine-tune a class-conditional DiT with 1LoRA or one of its peers.

Without arguments: the embedded job. A small DiT that draws printed characters learns scikit-learn's real handwriting,
in minutes on two CPU cores, without network. With --pretrained_model_name_or_path facebook/DiT-XL-2-256 and
--dataset_name food101 the same code is the real thing; train_scripts/configs/dit/ has its settings.
"""

from dataclasses import dataclass
from typing import Literal

from onelora_vision.data.classes.formats import EMBEDDED, ignored_by
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.methods.names import find_method
from onelora_vision.training.config import Schedule, TrainingConfig, check_command_line, option

# Flags without effect on the embedded job, whose pictures are drawn at the model's size.
EMBEDDED_IGNORES = {"max_train_samples", "resolution", "center_crop", "random_flip", "cache_latents", "latents_dir"}
DINOV2 = "vit_large_patch14_dinov2.lvd142m"


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The numbers of a flag that takes several, with commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{name} is {text!r}, but must be numbers with commas between them") from None


@dataclass(kw_only=True)
class DiTConfig(TrainingConfig):
    """Settings of this script; the defaults run the embedded job."""

    pretrained_model_name_or_path: str = option(EMBEDDED, "DiT pipeline: a folder, a hub id, or 'embedded'")
    revision: str | None = option(None, "revision of the hub repository")
    variant: str | None = option(None, "variant of the weights, such as fp16")
    cache_dir: str | None = option(None, "where the hub's files are cached", may_change=True)
    stock_numerics: bool = option(False, "diffusers' timestep frequencies and norm eps instead of the original DiT's")
    fuse_qkv: bool = option(False, "adapt one fused qkv per block instead of q, k, v")

    dataset_name: str | None = option(
        None,
        "embedded (handwritten digits), imagefolder, food101, cifar10, …, or a hub data set "
        "(default: imagefolder with --data_dir, else embedded)",
    )
    data_dir: str | None = option(None, "folder of the data set", may_change=True)
    download: bool = option(False, "download the data set into --data_dir if it is not there", may_change=True)
    image_column: str = option("image", "column of the images, for a hub data set")
    label_column: str = option("label", "column of the labels, for a hub data set")
    max_train_samples: int | None = option(None, "use only so many training images, drawn by --seed")
    on_bad_image: Literal["error", "skip"] = option("error", "what to do about an image that cannot be read")
    resolution: int | None = option(None, "side of the training images in pixels (default: the model's)")
    center_crop: bool = option(True, "crop the centre; otherwise a random square")
    random_flip: bool = option(False, "mirror half of the training images")
    cache_latents: bool = option(False, "encode the training images once and keep their latents", may_change=True)
    latents_dir: str | None = option(None, "folder of these latents (default: in the user's cache)", may_change=True)

    class_dropout_prob: float = option(0.1, "share of samples trained without their class, for guidance")
    sampler: Literal["ddim", "dpm++", "ddpm"] = option("dpm++", "sampler of the evaluation and the picture")
    num_inference_steps: int = option(20, "its denoising steps")
    guidance_scale: float = option(2.5, "its classifier-free guidance; 1: none")
    guidance_channels: int | None = option(None, "latent channels that are guided; 3 in the original (default: all)")
    guidance_interval: str = option("0,1", "share of the timesteps that is guided, such as 0.1,0.8")
    guidance_scales: str | None = option(None, "scales to evaluate at in the end, such as 1.0,1.5,2.0, with a plot")
    fid_features: Literal["auto", "none", "embedded", "inception", "dinov2"] = option(
        "auto", "features of the Fréchet distance"
    )
    fid_weights: str | None = option(None, "weights of inception or dinov2: a file, or download", may_change=True)
    fid_timm_model: str = option(DINOV2, "timm's transformer behind dinov2")
    fid_split: Literal["test", "validation", "train"] = option("test", "real images that samples are compared with")
    fid_num_samples: int = option(500, "images made for it, before and after; 0: none")
    validation_classes: str | None = option(None, "classes in the picture, with commas (default: the first ten)")
    num_validation_images: int = option(4, "images of each class in the picture")

    output_dir: str = option("output/dit", "folder for checkpoints, adapter and results", may_change=True)
    train_batch_size: int = option(64, "samples per step and process, before accumulation", may_change=True)
    eval_batch_size: int = option(125, "samples per batch of an evaluation", may_change=True)
    max_train_steps: int | None = option(600, "optimizer steps; overrides --num_train_epochs", may_change=True)
    learning_rate: float = option(6e-3, "peak learning rate of the adapter's vectors")
    head_learning_rate: float | None = option(3e-2, "the same for the label table")
    lr_scheduler: Schedule = option("linear", "shape of the learning rate over the steps")
    lr_warmup_steps: int = option(50, "optimizer steps over which the rate rises from zero, at most the run")

    def __post_init__(self):
        super().__post_init__()
        self.dataset_name = self.dataset_name or ("imagefolder" if self.data_dir else EMBEDDED)
        embedded = EMBEDDED_IGNORES if self.dataset_name == EMBEDDED else set()
        self._refuse_ignored(
            ignored_by(self.dataset_name) - {"cache_dir"} | embedded, "dataset_name", self.dataset_name
        )
        self._require("class_dropout_prob", 0 <= self.class_dropout_prob < 1, "in [0, 1)")
        self._require("fid_num_samples", self.fid_num_samples == 0 or self.fid_num_samples >= 2, "0, or at least 2")
        self._require("num_validation_images", self.num_validation_images >= 0, "0 or more")
        self._require("max_train_samples", self.max_train_samples is None or self.max_train_samples >= 1, "at least 1")
        self.sampling()  # refuses what cannot be sampled with
        self.swept_scales()

    def sampling(self) -> SamplingSettings:
        interval = numbers("guidance_interval", self.guidance_interval)
        self._require("guidance_interval", len(interval) == 2, "two numbers, such as 0,1")
        return SamplingSettings(
            self.sampler, self.num_inference_steps, self.guidance_scale, self.guidance_channels, interval
        )

    def swept_scales(self) -> tuple[float, ...]:
        return numbers("guidance_scales", self.guidance_scales) if self.guidance_scales else ()


if __name__ == "__main__":
    check_command_line(DiTConfig, __doc__)  # before the imports that take seconds

import torch

from onelora_vision import embedded
from onelora_vision.adapters.file import fingerprint
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import enable_gradient_checkpointing
from onelora_vision.backbones.dit import DiTBase, class_ids, dit_adaptation, load_dit
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.content import content_hashes
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.latents import LatentDataset, cache_latents
from onelora_vision.data.synthetic.digits import HandwrittenDigits
from onelora_vision.methods.apply import apply_method
from onelora_vision.metrics.features import cached_features, open_features
from onelora_vision.metrics.generative import Features, FeatureSet, Protocol, autoencoder_floor, weights_hash
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.tasks.generation import GenerationTask
from onelora_vision.tasks.sample_evaluation import SampleEvaluator, SamplePicture, reference_features
from onelora_vision.training.config import parse_config
from onelora_vision.training.job import run_job
from onelora_vision.training.report import print_plan
from onelora_vision.training.setup import Run, start_run


def load_base(config: DiTConfig) -> DiTBase:
    path = embedded.DIT if config.pretrained_model_name_or_path == EMBEDDED else config.pretrained_model_name_or_path
    options = {"revision": config.revision, "variant": config.variant, "cache_dir": config.cache_dir}
    return load_dit(path, **options, stock_numerics=config.stock_numerics)


def open_data(config: DiTConfig, base: DiTBase, split: str):
    """The images of one split: training images augmented, others as they are."""
    training = split == "train"
    if config.dataset_name == EMBEDDED:
        return HandwrittenDigits(split, augment=training)
    source = open_class_images(
        config.dataset_name,
        config.data_dir,
        split,
        download=config.download,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    if training and config.max_train_samples is not None:
        count = min(config.max_train_samples, len(source))
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(config.seed))
        source = source.subset(sorted(order[:count].tolist()))
    side = config.resolution or base.transformer.config.sample_size * 2 ** (
        len(base.vae.config.block_out_channels) - 1
    )
    transform = SquareCrop(side, config.center_crop or not training, config.random_flip and training)
    return ClassImageDataset(source, transform, config.on_bad_image)


def with_cached_latents(config: DiTConfig, base: DiTBase, dataset, accelerator):
    """The training images as kept latents; ``dataset`` itself where these cannot be kept."""
    loading = (config.eval_batch_size, config.dataloader_num_workers)
    return cache_latents(dataset, base.vae, weights_hash(base.vae), config.latents_dir, accelerator, *loading)


def make_evaluator(config: DiTConfig, base: DiTBase, accelerator) -> SampleEvaluator | None:
    """What measures samples of the model, or None where nothing is to be measured.

    For the embedded job it knows the autoencoder's own distance.
    """
    wanted = config.fid_features
    if wanted == "auto":
        wanted = EMBEDDED if config.dataset_name == EMBEDDED else "none"
    if wanted == "none" or config.fid_num_samples == 0:
        return None
    features = open_features(wanted, config.fid_weights, config.fid_timm_model)
    dataset = open_data(config, base, config.fid_split)
    reference = measure_reference(config, features, dataset, accelerator)
    protocol = Protocol(
        generated=config.fid_num_samples,
        reference=len(reference),
        split=f"{config.dataset_name}/{config.fid_split}",
        crop="none" if config.dataset_name == EMBEDDED else f"center {dataset.transform.resolution}",
        resize="none" if config.dataset_name == EMBEDDED else "box+bicubic",
        sampler=config.sampler,
        steps=config.num_inference_steps,
        guidance=config.guidance_scale,
        guidance_channels=str(config.guidance_channels or "all"),
        guidance_interval=config.guidance_interval,
        precision="fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        vae=weights_hash(base.vae),
        seed=config.seed,
        ema=config.use_ema,
        features=features.name,
        weights_hash=features.weights_hash,
    )
    floor = None
    if config.dataset_name == EMBEDDED:
        floor = autoencoder_floor(base.vae, dataset.images(), reference.statistics, features)
    return SampleEvaluator(
        base.vae,
        dict(base.scheduler.config),
        base.class_names,
        features,
        reference,
        config.fid_num_samples,
        config.sampling(),
        config.seed,
        config.eval_batch_size,
        protocol,
        floor,
    )


def measure_reference(config: DiTConfig, features: Features, dataset, accelerator) -> FeatureSet:
    """The features of the real images, those of a folder of images kept for the next run."""

    def compute() -> FeatureSet:
        return reference_features(
            features, dataset, accelerator, config.eval_batch_size, config.dataloader_num_workers
        )

    if not isinstance(dataset, ClassImageDataset) or features.class_names:  # logits are not kept
        return compute()
    parts = [*content_hashes(dataset.source), str(dataset.transform), features.name, features.weights_hash]
    return cached_features(parts, compute, accelerator.is_main_process)


def shown_classes(config: DiTConfig, base: DiTBase) -> list[int]:
    names = config.validation_classes.split(",") if config.validation_classes else base.class_names[:10]
    return class_ids(names, base.class_names)


def make_picture(config: DiTConfig, base: DiTBase) -> SamplePicture | None:
    """What is drawn of the model, or None where nothing is."""
    if config.num_validation_images == 0:
        return None
    labels = shown_classes(config, base)
    return SamplePicture(
        base.vae,
        dict(base.scheduler.config),
        [base.class_names[label] for label in labels],
        labels,
        config.num_validation_images,
        config.sampling(),
        config.seed,
        config.eval_batch_size,
    )


def take_classes(base: DiTBase, class_names: list[str], config: DiTConfig, accelerator) -> None:
    """Give the network a label table for ``class_names``, and set it up as the config asks."""
    generator = torch.Generator().manual_seed(config.seed)
    matches = base.transformer.set_classes(class_names, base.class_names, generator)
    accelerator.print(f"{len(class_names)} classes, {matches.describe(base.class_names)}")
    base.class_names = list(class_names)
    shown_classes(config, base)  # a misspelt class is found now, not after the training
    if config.fuse_qkv:
        base.transformer.fuse_qkv()
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(base.transformer)


def adapter_info(config: DiTConfig, base: DiTBase, base_fingerprint: str, protocol_line: str) -> AdapterInfo:
    """What the adapter's files say about it."""
    extra = {name: getattr(config, name) for name in ("fuse_qkv", "stock_numerics")}
    return AdapterInfo(
        task="generation",
        method=find_method(config.method).name,
        base=config.pretrained_model_name_or_path,
        base_fingerprint=base_fingerprint,
        class_names=base.class_names,
        null_class=base.transformer.null_class,
        protocol=protocol_line,
        extra={**extra, "sampling": vars(config.sampling())},
    )


def train(config: DiTConfig, run: Run) -> dict:
    """One run, from the config to its results."""
    accelerator = run.accelerator

    # Base with the data's classes, and the adapter
    base = load_base(config)
    dataset = open_data(config, base, "train")
    data_identity = dataset.source.identity() if isinstance(dataset, ClassImageDataset) else ""
    base_fingerprint = fingerprint(base.transformer, dit_adaptation(base.transformer).whole_modules)
    take_classes(base, dataset.class_names, config, accelerator)
    model = apply_method(base.transformer, config.method, dit_adaptation(base.transformer), **config.method_options)
    if accelerator.is_main_process:
        print_plan(config, model, len(dataset), accelerator.num_processes)
    if config.dry_run:
        return {}

    # Task
    base.vae.to(accelerator.device)
    model.to(accelerator.device)
    evaluator, picture, scaling_factor = None, make_picture(config, base), base.vae.config.scaling_factor
    with run.phase("measuring the real images"):
        evaluator = make_evaluator(config, base, accelerator)
    if config.cache_latents:
        with run.phase("encoding the training images"):
            dataset = with_cached_latents(config, base, dataset, accelerator)
    caches_latents = isinstance(dataset, LatentDataset)
    if caches_latents:
        # Evaluations borrow the autoencoder; training has no use for it any more.
        base.vae = base.vae.to("cpu") if evaluator is not None or picture is not None else None
    task = GenerationTask(
        model,
        None if caches_latents else base.vae,
        dict(base.scheduler.config),
        config.class_dropout_prob,
        evaluator,
        scaling_factor,
        adapter_info(config, base, base_fingerprint, evaluator.protocol.line() if evaluator else "not measured"),
        picture,
        config.swept_scales(),
    )
    task.hint = find_method(config.method).hint
    task.identity = {"weights of the base": base_fingerprint, "files of the training data": data_identity}
    return run_job(run, task, dataset)


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse_config(DiTConfig, argv, __doc__)
    with start_run(config) as started:
        train(config, started)


if __name__ == "__main__":
    main()
