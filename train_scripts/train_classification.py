"""Fine-tune an image classifier.

Without arguments it adapts the small ViT included in the package from printed characters to handwritten digits, with 20
images per class, on a CPU. It takes any ViT of timm or transformers and any dataset of `onelora_vision.data.classes`.

Examples:
  python train_scripts/train_classification.py --seeds 0,1,2
  python train_scripts/train_classification.py --config train_scripts/configs/classification/cifar10-vit-b16.yaml \\
      --data_dir cifar10 --download
  accelerate launch train_scripts/train_classification.py --data_dir my-pictures \\
      --pretrained_model_name_or_path vit_base_patch16_224.augreg_in21k
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from onelora_vision.data.classes.formats import EMBEDDED, GLYPHS, ignored_by, needs_folder
from onelora_vision.errors import InputError, listed
from onelora_vision.methods.names import find_method
from onelora_vision.training.class_data import ClassDataOptions
from onelora_vision.training.command_line import check_command_line, parse_config
from onelora_vision.training.config import Schedule, TrainingConfig, option
from onelora_vision.training.retention_options import OldData, RetentionOptions


@dataclass(kw_only=True)
class ModelOptions:
    group: ClassVar[str] = "model and method"

    pretrained_model_name_or_path: str = option(
        EMBEDDED, "timm name, folder, hub id or checkpoint file, or 'embedded'"
    )
    architecture: str | None = option(None, "timm name of a checkpoint file's architecture")
    resolution: int | None = option(None, "side of the images in pixels (default: the base's)")
    fresh_head: bool = option(False, "start from a new head even if the base's head has the classes")
    drop_path: float = option(0.0, "stochastic depth rate (timm)")
    fuse_qkv: bool = option(False, "adapt one fused qkv per block if the model (transformers) has separate q, k, v")
    freeze_norms: bool = option(False, "freeze the normalisation layers, also with --method full")


@dataclass(kw_only=True)
class DataOptions(ClassDataOptions):
    cache_dir: str | None = option(
        None, "folder for what `datasets` downloads (default: its own cache)", may_change=True
    )
    few_shot: int | None = option(None, "training images per class; 0: all (default: 20 for embedded, else all)")
    validation_fraction: float = option(
        0.1, "fraction of the training images held out if there is no validation split"
    )
    crop_scale: float = option(0.7, "smallest area of the random crop; 1: no random crop")
    random_flip: bool = option(False, "mirror images at random")
    aa: str | None = option(None, "timm's automatic augmentation, such as rand-m9-mstd0.5-inc1")
    reprob: float = option(0.0, "probability of erasing a random box")
    mixup: float = option(0.0, "alpha of mixup; 0: off")
    cutmix: float = option(0.0, "alpha of cutmix; 0: off")
    smoothing: float = option(0.0, "label smoothing")


@dataclass(kw_only=True)
class SplitOptions:
    group: ClassVar[str] = "evaluation"

    eval_split: Literal["test", "validation"] = option("test", "split for the metrics before and after training")
    train_on_validation: bool = option(
        False, "also train on the validation split, for a final run with chosen settings"
    )
    seeds: str | None = option(None, "comma-separated seeds: one run each, then mean and std in results.json")


@dataclass(kw_only=True)
class ClassificationConfig(SplitOptions, RetentionOptions, DataOptions, ModelOptions, TrainingConfig):
    """Settings of the script; the defaults run the embedded job."""

    old_data = OldData("classification", GLYPHS, "imagefolder", ignored_by, needs_folder)

    output_dir: str = option("output/classification", "folder for checkpoints, adapter and results", may_change=True)
    train_batch_size: int = option(32, "samples per step and process, before gradient accumulation", may_change=True)
    eval_batch_size: int = option(64, "batch size of evaluations", may_change=True)
    max_train_steps: int | None = option(300, "optimizer steps; overrides --num_train_epochs", may_change=True)
    learning_rate: float = option(1e-2, "peak learning rate of the adapter's vectors")
    head_learning_rate: float | None = option(1e-2, "peak learning rate of the head")
    lr_scheduler: Schedule = option("cosine", "learning rate schedule")

    def __post_init__(self):
        super().__post_init__()
        ignored = self.ignored_flags(ignored_by(self.dataset_name))
        self._refuse_ignored(ignored, "dataset_name", self.dataset_name)
        for name in ("drop_path", "reprob", "smoothing", "validation_fraction"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("crop_scale", 0 < self.crop_scale <= 1, "in (0, 1]")
        for name in ("mixup", "cutmix", "few_shot", "resolution"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 0, "0 or more")
        if self.train_on_validation and (self.eval_split == "validation" or self.validation_steps):
            raise InputError("--train_on_validation leaves no images to evaluate on: use the test split, once")
        if (self.mixup or self.cutmix) and self.train_batch_size % 2:
            raise InputError(
                f"mixup and cutmix pair the images of a batch: --train_batch_size {self.train_batch_size} is odd"
            )
        if self.freeze_norms and find_method(self.method).trains_norms:
            raise InputError(f"--freeze_norms contradicts --method {self.method}, which trains the norms")


if __name__ == "__main__":
    check_command_line(ClassificationConfig, __doc__)  # before the imports that take seconds

from functools import partial
from pathlib import Path

from accelerate import Accelerator
from peft import PeftModel

from onelora_vision.backbones.base import OwnParts, enable_gradient_checkpointing, norms_with_parameters
from onelora_vision.backbones.table import base_class
from onelora_vision.backbones.vit import ViTBase
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.formats import open_class_images, open_training_images
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.stream import evaluation_loader
from onelora_vision.methods.apply import apply_method
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.storage.files import write_json
from onelora_vision.tasks.classification import ClassificationTask, classifier_retention
from onelora_vision.tasks.retention import SEED, Retention
from onelora_vision.training.decoding import keep_decoded
from onelora_vision.training.description import describe
from onelora_vision.training.folder import RunFolder
from onelora_vision.training.job import run_job
from onelora_vision.training.loop import try_data
from onelora_vision.training.report import aggregate_seeds, print_plan
from onelora_vision.training.setup import Run, start_run
from onelora_vision.training.validation_loss import WatchedSamples


def open_images(config: ClassificationConfig) -> tuple[ClassImages, ClassImages | None, ClassImages]:
    """Images to train on, to choose settings by, and to report metrics on (validation images, to compare runs)."""
    source = {**config.data_source, "seed": config.seed, "cache_dir": config.cache_dir}
    training, validation = open_training_images(validation_fraction=config.validation_fraction, **source)
    if validation is None and config.validation_steps:
        raise InputError(
            "--validation_steps needs held-out images: set --validation_fraction, such as 0.1, and use at least two "
            "images per class"
        )
    few = config.few_shot if config.few_shot is not None else 20 if config.dataset_name == EMBEDDED else 0
    if few:
        training = training.few_shot(few, config.seed)
    if config.train_on_validation and validation is not None:
        training, validation = training.joined(validation), None
    if config.eval_split == "test":
        return training, validation, open_class_images(split="test", **source)
    if validation is None:
        raise InputError("--eval_split validation needs held-out images: set --validation_fraction, such as 0.1")
    return training, validation, validation


def load_base(config: ClassificationConfig, class_names: list[str]) -> tuple[ViTBase, OwnParts | None]:
    """The pre-trained classifier with a head for ``class_names``, and its original head if retention is measured."""
    place = config.pretrained_model_name_or_path
    base = base_class("classification", place).load(
        place,
        architecture=config.architecture,
        resolution=config.resolution,
        drop_path=config.drop_path,
    )
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(base.model)
    own = base.own_parts() if config.retention else None
    return base.fit(class_names, seed=config.seed, fresh=config.fresh_head, fuse_qkv=config.fuse_qkv), own


def adapt(base: ViTBase, config: ClassificationConfig) -> PeftModel:
    """The base with the method's adapter."""
    model = apply_method(base.model, config.method, base.adaptation(), **config.method_options)
    if config.freeze_norms:
        for name in norms_with_parameters(model):
            model.get_submodule(name).requires_grad_(False)
    return model


def training_transform(base: ViTBase, config: ClassificationConfig):
    """timm's training transform at the base's size, with the requested augmentation.

    It returns uint8 images, which the task normalises, except with random erasing, which timm applies after
    normalising.
    """
    augments = config.crop_scale < 1 or config.random_flip or config.aa or config.reprob
    if not augments:
        return base.transform
    return base.training_transform(
        scale=(config.crop_scale, 1.0),
        ratio=(3 / 4, 4 / 3) if config.crop_scale < 1 else (1.0, 1.0),
        hflip=0.5 if config.random_flip else 0.0,
        color_jitter=None,
        auto_augment=config.aa,
        re_prob=config.reprob,
        normalize=config.reprob > 0,
    )


def make_evaluation_loader(images: ClassImages, base: ViTBase, config: ClassificationConfig, accelerator: Accelerator):
    """A loader of all images, distributed over the processes."""
    dataset = ClassImageDataset(images, base.transform, config.on_bad_image)
    return accelerator.prepare(evaluation_loader(dataset, config.eval_batch_size, config.dataloader_num_workers))


def make_retention(
    base: ViTBase, own: OwnParts, model: PeftModel, config: ClassificationConfig, accelerator: Accelerator
) -> Retention:
    """The evaluation of the base's own classes on its old data."""
    source = {**config.data_source, "dataset_name": config.retention_dataset, "data_dir": config.retention_dir}
    images = open_class_images(split="test", cache_dir=config.cache_dir, **source)
    if config.retention_samples is not None:
        images = images.drawn(config.retention_samples, SEED)
    loader = partial(make_evaluation_loader, base=base, config=config, accelerator=accelerator)
    return classifier_retention(base, own, model, images, loader)


def train(config: ClassificationConfig, run: Run) -> dict:
    """One run, from the config to its results."""
    accelerator = run.accelerator
    training, validation, test = open_images(config)
    base, own = load_base(config, training.class_names)
    model = adapt(base, config).to(accelerator.device)
    retention = make_retention(base, own, model, config, accelerator) if own else None
    sizes = {images.split: len(images) for images in (training, validation, test) if images is not None}
    shown = ", ".join(f"{count:,} of {split}" for split, count in sizes.items())
    accelerator.print(f"{len(base.class_names)} classes ({listed(base.class_names, 8)}); images: {shown}")
    print_plan(config, model, len(training), accelerator)
    dataset = ClassImageDataset(training, training_transform(base, config), config.on_bad_image)
    if config.dry_run:
        try_data(run, dataset)
        return {}

    protocol = f"{len(test)} images of {test.name} {test.split} at {base.data_config['input_size'][-1]} pixels"
    settings = {name: getattr(config, name) for name in ("architecture", "resolution", "fuse_qkv")}
    info = describe(run, base, training, training.name, protocol, **settings, preprocessing=base.preprocessing)
    mean, std = base.normalisation
    mixing = (config.smoothing, config.mixup, config.cutmix)
    task = ClassificationTask(model, base.class_names, *mixing, mean, std, info, test)
    keep_decoded(run, dataset)
    loader = partial(make_evaluation_loader, base=base, config=config, accelerator=accelerator)
    if validation is None:
        return run_job(run, task, dataset, loader(test), retention=retention)
    watched = WatchedSamples(ClassImageDataset(validation, base.transform, config.on_bad_image))
    return run_job(run, task, dataset, loader(test), loader(validation), watched, retention)


def run_seeds(config: ClassificationConfig) -> dict:
    """Run each seed in a folder inside ``output_dir``, and compute mean and standard deviation."""
    try:
        seeds = [int(seed) for seed in config.seeds.split(",")]
    except ValueError:
        raise InputError(f"--seeds {config.seeds}: expected comma-separated whole numbers, such as 0,1,2,3") from None
    output = Path(config.output_dir)
    runs = [replace(config, seed=seed, seeds=None, output_dir=str(output / f"seed-{seed}")) for seed in seeds]
    results = []
    for single in runs:
        with start_run(single) as run:
            results.append(train(single, run))
            is_main = run.accelerator.is_main_process
    if not all(results) or not is_main:  # a dry run, or not the main process
        return {}
    means, folder = aggregate_seeds(results), RunFolder(output)
    with folder.writing("results.json") as path:
        write_json(path, {**means, "runs": results})
    for name, value in means["metrics"].items():
        print(f"{name:6} {value['mean']:8.4f} ± {value['std'] or 0:.4f} over seeds {config.seeds}")
    return means


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse_config(ClassificationConfig, argv, __doc__)
    if config.seeds:
        run_seeds(config)
        return
    with start_run(config) as run:
        train(config, run)


if __name__ == "__main__":
    main()
