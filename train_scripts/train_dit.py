"""Fine-tune a class-conditional DiT or SiT with 1LoRA or another method.

Without arguments it runs the embedded job: a small DiT that generates printed characters learns handwritten digits
(MNIST) in minutes, on two CPU cores and without network access. Settings for real models are in
train_scripts/configs/dit/.

Examples:
  python train_scripts/train_dit.py --method lora --rank 4
  python train_scripts/train_dit.py --config train_scripts/configs/dit/food101-xl2-onelora.yaml --data_dir food-101
  accelerate launch train_scripts/train_dit.py --pretrained_model_name_or_path facebook/DiT-XL-2-256 \\
      --data_dir my-pictures --cache_latents --fid_features dinov2 --fid_weights download
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from onelora_vision.data.classes.formats import EMBEDDED, GLYPHS, ignored_by, needs_folder
from onelora_vision.errors import InputError, nearest
from onelora_vision.metrics.direction import METRICS, higher_is_better
from onelora_vision.training.class_data import ClassDataOptions
from onelora_vision.training.command_line import check_command_line, parse_config
from onelora_vision.training.config import Schedule, TrainingConfig, option
from onelora_vision.training.loss_options import LossOptions
from onelora_vision.training.retention_options import OldData, RetentionOptions
from onelora_vision.training.sampling_options import GUIDANCE_SCALE

RETENTION_SAMPLES = 360  # ten of each class of the embedded base
EMBEDDED_DISTILLATION = 1.8  # chosen on the validation split, see docs/dit.md
# Flags without effect in the embedded job, whose images are drawn at the model's size.
EMBEDDED_IGNORES = {
    "max_train_samples", "resolution", "center_crop", "random_flip", "cache_latents", "latents_dir", "latents_dtype",
}  # fmt: skip


@dataclass(kw_only=True)
class ModelOptions:
    group: ClassVar[str] = "model and method"

    pretrained_model_name_or_path: str = option(
        EMBEDDED, "DiT or SiT pipeline: a folder, a hub id, 'embedded' or 'embedded/sit'"
    )
    objective: Literal["auto", "epsilon", "velocity"] = option(
        "auto", "what the base predicts (auto: as its scheduler says); other values must agree with the scheduler"
    )
    revision: str | None = option(None, "revision of the hub repository")
    variant: str | None = option(None, "variant of the weights, such as fp16")
    cache_dir: str | None = option(
        None, "folder for files from the hub (default: the hub's own cache)", may_change=True
    )
    stock_numerics: bool = option(False, "diffusers' timestep frequencies and norm eps instead of the original DiT's")
    fuse_qkv: bool = option(False, "adapt one fused qkv per block instead of q, k, v")
    class_dropout_prob: float = option(0.1, "fraction of samples trained without their class, for guidance")


@dataclass(kw_only=True)
class DataOptions(ClassDataOptions):
    validation_fraction: float = option(
        0.0,
        "fraction of each class's training images held out for the validation loss, if there is no validation split",
    )
    max_train_samples: int | None = option(None, "use only N training images, drawn by --seed (default: all)")
    resolution: int | None = option(None, "side of the training images in pixels (default: the model's)")
    center_crop: bool = option(True, "crop the centre; otherwise a random square")
    random_flip: bool = option(False, "mirror half of the training images")
    cache_latents: bool = option(False, "encode the training images once and keep their latents", may_change=True)
    latents_dtype: Literal["fp32", "fp16", "bf16"] = option(
        "fp32", "dtype of the stored latents; half precision halves their size"
    )
    latents_dir: str | None = option(
        None, "folder of the stored latents (default: in the user's cache)", may_change=True
    )


@dataclass(kw_only=True)
class DiTConfig(LossOptions, RetentionOptions, DataOptions, ModelOptions, TrainingConfig):
    """Settings of this script; the defaults run the embedded job."""

    old_data = OldData("generation", GLYPHS, "imagefolder", ignored_by, needs_folder)

    output_dir: str = option("output/dit", "folder for checkpoints, adapter and results", may_change=True)
    train_batch_size: int = option(64, "samples per step and process, before gradient accumulation", may_change=True)
    eval_batch_size: int = option(125, "batch size of evaluations", may_change=True)
    max_train_steps: int | None = option(700, "optimizer steps; overrides --num_train_epochs", may_change=True)
    learning_rate: float = option(6e-3, "peak learning rate of the adapter's vectors")
    head_learning_rate: float | None = option(2e-2, "peak learning rate of the label table")
    lr_scheduler: Schedule = option("cosine", "learning rate schedule")
    lr_warmup_steps: int = option(20, "optimizer steps of linear warm-up")
    retention_samples: int | None = option(
        None,
        f"samples of the base's own classes for measuring retention (default: {RETENTION_SAMPLES})",
        may_change=True,
    )

    def __post_init__(self):
        super().__post_init__()
        if self._leaves_guidance_to_the_embedded_job():
            self.guidance_distillation = EMBEDDED_DISTILLATION
        ignored = self.ignored_flags(ignored_by(self.dataset_name)) - {"cache_dir"}  # which is for the model here
        ignored |= EMBEDDED_IGNORES if self.dataset_name == EMBEDDED else set()
        self._refuse_ignored(ignored, "dataset_name", self.dataset_name)
        self._check_latents()
        self._require("class_dropout_prob", 0 <= self.class_dropout_prob < 1, "in [0, 1)")
        self._require("validation_fraction", 0 <= self.validation_fraction < 1, "in [0, 1)")
        self._require("fid_num_samples", self.fid_num_samples == 0 or self.fid_num_samples >= 2, "0, or at least 2")
        best = self.metric_for_best_model  # the available metrics are only known after evaluating the base
        if best and higher_is_better(best) is None:
            raise InputError(f"--metric_for_best_model {best}: no such metric{nearest(best, METRICS, 'metric')}")
        if self.fid_reference and self.fid_features != "inception":
            raise InputError(
                "--fid_reference contains statistics of Inception features: it needs --fid_features inception"
            )
        if self.retention:
            self._require(
                "retention_samples", self.retention_samples is None or self.retention_samples >= 2, "at least 2"
            )
            if self.fid_features == "none" or (self.fid_features == "auto" and not self.is_base_embedded):
                raise InputError(
                    "--retention measures samples: choose their features with --fid_features (inception and dinov2 need "
                    "--fid_weights)"
                )
        self._require("num_validation_images", self.num_validation_images >= 0, "0 or more")
        self._require("max_train_samples", self.max_train_samples is None or self.max_train_samples >= 1, "at least 1")
        self.loss_settings()  # refuses what cannot be trained or sampled with
        self.swept_scales()

    def _check_latents(self) -> None:
        """Refuse flags of the latent cache without ``--cache_latents``, and settings that it cannot support."""
        alone = {"latents_dir": self.latents_dir, "latents_dtype": self.latents_dtype != "fp32"}
        for flag, is_set in alone.items():
            if is_set and not self.cache_latents:
                raise InputError(f"--{flag} has no effect without --cache_latents: add that, or leave this out")
        if self.cache_latents and self.cache_images != "none":
            raise InputError("--cache_images has no effect with --cache_latents, which keeps more: leave it out")
        if self.cache_latents and not self.center_crop:
            raise InputError("--cache_latents needs --center_crop: a random crop has no latent that could be kept")

    def _leaves_guidance_to_the_embedded_job(self) -> bool:
        """Whether base and data are the embedded ones, and guidance is left open by all flags and files.

        ``--peft_config`` rules this out, as some PEFT configs change the base, which then cannot guide.
        """
        embedded = self.dataset_name == self.pretrained_model_name_or_path == EMBEDDED
        guidance = (self.guidance_distillation, self.guidance_scale, self.guidance_scales, self.peft_config)
        return embedded and not self.guidance_base and all(value is None for value in guidance)


if __name__ == "__main__":
    check_command_line(DiTConfig, __doc__)  # before the imports that take seconds


from peft import PeftModel

from onelora_vision.backbones.base import OwnParts, enable_gradient_checkpointing
from onelora_vision.backbones.dit import DiTBase, class_ids
from onelora_vision.backbones.table import base_class
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.formats import open_class_images, open_split
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.latents import EncodedImages, LatentDataset, cache_latents
from onelora_vision.data.synthetic.digits import HandwrittenDigits
from onelora_vision.diffusion.guidance import require_base
from onelora_vision.diffusion.latents import LatentScale
from onelora_vision.diffusion.sampling import fitting
from onelora_vision.errors import MissingSplit, listed
from onelora_vision.methods.apply import apply_method
from onelora_vision.metrics.features import open_features
from onelora_vision.metrics.generative import require_known, weights_hash
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.tasks.generation import GenerationTask, LazyLatents, generator_retention
from onelora_vision.tasks.retention import Retention
from onelora_vision.tasks.sample_evaluation import (
    ImageSampler,
    SampleEvaluator,
    SamplePicture,
    measure_reference,
    published_reference,
)
from onelora_vision.training.decoding import keep_decoded
from onelora_vision.training.description import describe
from onelora_vision.training.job import run_job
from onelora_vision.training.loop import try_data
from onelora_vision.training.report import print_plan
from onelora_vision.training.setup import Run, start_run
from onelora_vision.training.validation_loss import WatchedSamples


def load_base(config: DiTConfig) -> DiTBase:
    options = {"revision": config.revision, "variant": config.variant, "cache_dir": config.cache_dir}
    place = config.pretrained_model_name_or_path
    base = base_class("generation", place).load(place, **options, stock_numerics=config.stock_numerics)
    if config.objective not in ("auto", base.objective.name):
        raise InputError(
            f"--objective {config.objective}: {place} was trained to predict {base.objective}, as its scheduler says; "
            "leave --objective out, or convert the checkpoint again with the right --model"
        )
    return base


def check_objective(config: DiTConfig, base: DiTBase) -> None:
    """Refuse settings for bases with another objective, before the data is read."""
    objective = base.objective.name
    if config.snr_gamma is not None and objective != "epsilon":
        raise InputError(
            f"--snr_gamma weights the loss of bases that predict the noise, but this one predicts the {objective}: leave it out"
        )


def take_classes(base: DiTBase, class_names: list[str], config: DiTConfig, accelerator) -> None:
    """Give the network a label table for ``class_names``, and set it up according to the config."""
    known = base.class_names
    base.fit(class_names, seed=config.seed, fuse_qkv=config.fuse_qkv)
    accelerator.print(f"{len(class_names)} classes ({listed(class_names, 8)}), {base.matches.describe(known)}")
    shown_classes(config, base)  # finds misspelt classes now rather than after training
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(base.model)


def open_data(config: DiTConfig, base: DiTBase, split: str, augments: bool = False):
    """The images of one split, plain or augmented for training."""
    if config.dataset_name == EMBEDDED:
        return HandwrittenDigits(split)
    source = open_split(split=split, validation_fraction=config.validation_fraction, **config.data_source)
    if split == "train" and config.max_train_samples is not None:
        source = source.drawn(config.max_train_samples, config.seed)
    side = config.resolution or base.image_size
    transform = SquareCrop(side, config.center_crop or not augments, config.random_flip and augments)
    return ClassImageDataset(source, transform, config.on_bad_image)


def as_it_is(dataset):
    """The dataset without its augmentation."""
    if not isinstance(dataset, ClassImageDataset):
        return dataset
    plain = replace(dataset.transform, center_crop=True, random_flip=False)
    return ClassImageDataset(dataset.source, plain, dataset.on_bad_image)


def make_evaluator(config: DiTConfig, base: DiTBase, sampler: ImageSampler, accelerator) -> SampleEvaluator | None:
    """The evaluator of the model's samples, or None if nothing is to be evaluated."""
    wanted = config.fid_features
    if wanted == "auto":
        wanted = "embedded" if config.dataset_name == EMBEDDED else "none"
        if wanted == "none" and config.fid_num_samples:
            accelerator.print(
                "samples are not evaluated; to evaluate them, use --fid_features inception or dinov2 with --fid_weights"
            )
    if wanted == "none" or config.fid_num_samples == 0:
        return None
    features = open_features(wanted, config.fid_weights, config.fid_timm_model)
    if features.class_names:
        require_known(base.class_names, features.class_names)  # otherwise its features mean nothing here
    if config.fid_reference:
        reference = published_reference(features, config.fid_reference)
    else:
        dataset, name = open_data(config, base, config.fid_split), f"{config.dataset_name}/{config.fid_split}"
        loading = (config.eval_batch_size, config.dataloader_num_workers)
        reference = measure_reference(features, dataset, name, accelerator, base.vae, *loading)
    return SampleEvaluator(
        sampler,
        base.class_names,
        features,
        reference,
        config.fid_num_samples,
        seed=config.seed,
        precision=precision_of(accelerator),
        ema=config.use_ema,
        distillation=config.guidance_distillation,
        stock_numerics=config.stock_numerics,
    )


def precision_of(accelerator) -> str:
    """The network's precision while sampling."""
    return "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def make_retention(
    config: DiTConfig,
    base: DiTBase,
    own: OwnParts,
    model: PeftModel,
    sampler: ImageSampler,
    evaluator: SampleEvaluator | None,
    accelerator,
) -> Retention:
    """The evaluation of samples of the base's own classes against its old data."""
    source = {**config.data_source, "dataset_name": config.retention_dataset, "data_dir": config.retention_dir}
    images = open_class_images(split="test", **source)
    data = ClassImageDataset(images, SquareCrop(base.image_size), config.on_bad_image)
    name = "embedded" if config.fid_features == "auto" else config.fid_features
    features = evaluator.features if evaluator else open_features(name, config.fid_weights, config.fid_timm_model)
    count, workers = config.retention_samples or RETENTION_SAMPLES, config.dataloader_num_workers
    return generator_retention(base, own, model, sampler, features, data, count, precision_of(accelerator), workers)


def shown_classes(config: DiTConfig, base: DiTBase) -> list[int]:
    """The classes in the picture: the requested ones, or ten spread over all."""
    count = len(base.class_names)
    if not config.validation_classes:
        return [k * count // 10 for k in range(10)] if count > 10 else list(range(count))
    return class_ids(config.validation_classes.split(","), base.class_names)


def watched_images(config: DiTConfig, base: DiTBase, training, accelerator) -> WatchedSamples | None:
    """The images for the validation loss: the validation split, or else training images.

    Never the test split, which must not influence any choice. None if no validation loss is wanted.
    """
    if config.validation_loss_steps == 0:
        return None
    try:
        images, held_out = open_data(config, base, "validation"), True
    except MissingSplit:
        images, held_out = training, False
    return WatchedSamples(LazyLatents(images, base.vae, accelerator.device), held_out)


def make_picture(config: DiTConfig, base: DiTBase, sampler: ImageSampler, training) -> SamplePicture | None:
    """The picture of the model's samples, or None if there is none."""
    if config.num_validation_images == 0:
        return None
    labels = shown_classes(config, base)
    names = [base.class_names[label] for label in labels]
    guided = None
    if config.guidance_distillation:
        guided = replace(sampler, settings=replace(sampler.settings, guidance_scale=GUIDANCE_SCALE))
    return SamplePicture(sampler, names, labels, config.num_validation_images, config.seed, training, guided)


def train(config: DiTConfig, run: Run) -> dict:
    """One run, from the config to its results."""
    accelerator = run.accelerator

    # Base with the data's classes, and the adapter
    if config.fid_reference and not Path(config.fid_reference).is_file():
        raise InputError(f"--fid_reference {config.fid_reference}: no such file")
    base = load_base(config)
    sampling = fitting(config.sampling(), base.model.config.in_channels, base.schedule)
    check_objective(config, base)
    own = base.own_parts() if config.retention else None
    dataset = open_data(config, base, "train", augments=True)
    take_classes(base, dataset.class_names, config, accelerator)
    model = apply_method(base.model, config.method, base.adaptation(), **config.method_options)
    loss = config.loss_settings()
    if config.guidance_base or config.guidance_distillation:
        require_base(model)
    print_plan(config, model, len(dataset), accelerator)
    if config.dry_run:
        try_data(run, dataset)
        return {}

    # Samples: how they are made, measured and shown
    base.vae.to(accelerator.device)
    model.to(accelerator.device)
    training = as_it_is(dataset)
    sampler = ImageSampler(base.vae, base.schedule, sampling, config.eval_batch_size)
    picture = make_picture(config, base, sampler, training)
    watched = watched_images(config, base, training, accelerator)
    with run.phase("measuring the real images"):
        evaluator = make_evaluator(config, base, sampler, accelerator)
    retention = make_retention(config, base, own, model, sampler, evaluator, accelerator) if own else None

    # Data: images, or their latents, which leave the autoencoder to the evaluations
    vae = base.vae
    if isinstance(dataset, HandwrittenDigits):
        dataset, vae = EncodedImages(dataset, vae, config.eval_batch_size), None
    elif config.cache_latents:
        loading = (config.eval_batch_size, config.dataloader_num_workers, config.latents_dtype)
        with run.phase("encoding the training images"):
            dataset = cache_latents(dataset, vae, weights_hash(vae), config.latents_dir, accelerator, *loading)
        if isinstance(dataset, LatentDataset):
            vae.to("cpu")
            vae = None
    else:
        keep_decoded(run, dataset)

    # Train, evaluate, save
    settings = {name: getattr(config, name) for name in ("fuse_qkv", "stock_numerics")}
    settings |= {"objective": str(base.objective), "sampling": vars(sampler.settings)}
    protocol = evaluator.protocol.line() if evaluator else "not measured"
    info = describe(run, base, dataset, config.dataset_name, protocol, **settings)
    info.null_class = base.model.null_class
    info.extra["training"] |= loss.facts()
    task = GenerationTask(
        model,
        vae,
        base.schedule,
        config.class_dropout_prob,
        evaluator,
        LatentScale.of(base.vae),
        info,
        picture,
        config.swept_scales(),
        loss,
    )
    return run_job(run, task, dataset, watched=watched, retention=retention)


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse_config(DiTConfig, argv, __doc__)
    with start_run(config) as run:
        train(config, run)


if __name__ == "__main__":
    main()
