"""Fine-tune a depth model, such as Depth Anything or DPT, to metric depth.

Without arguments it adapts the small model included in the package from rendered rooms (up to 10 m) to rendered streets
(2-80 m), on a CPU. It takes any Depth Anything or DPT of transformers, and NYU, KITTI, DIODE, Hypersim, Virtual KITTI 2
or a metadata.jsonl. All depths are in metres.

Examples:
  python train_scripts/train_depth.py --method bitfit
  python train_scripts/train_depth.py --config train_scripts/configs/depth/nyu_to_kitti.yaml --train_data_dir kitti
  accelerate launch train_scripts/train_depth.py --train_data_dir my-frames --max_depth 20 \\
      --pretrained_model_name_or_path depth-anything/Depth-Anything-V2-Small-hf
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from onelora_vision.data.depth.formats import FORMATS, find_format, needs_folder, open_frames
from onelora_vision.errors import InputError, MissingSplit
from onelora_vision.training.command_line import check_command_line, parse_config
from onelora_vision.training.config import Schedule, TrainingConfig, option
from onelora_vision.training.decoding import DecodingOptions, keep_decoded
from onelora_vision.training.retention_options import OldData, RetentionOptions

EMBEDDED = "embedded/depth"


@dataclass(kw_only=True)
class ModelOptions:
    group: ClassVar[str] = "model and method"

    pretrained_model_name_or_path: str = option(
        EMBEDDED, "folder or hub id of a depth model of transformers (Depth Anything, DPT)"
    )
    revision: str | None = option(None, "revision of the model on the hub")
    variant: str | None = option(None, "variant of the model's files, such as fp16")
    cache_dir: str | None = option(
        None, "folder for files from the hub (default: the hub's own cache)", may_change=True
    )
    max_depth: int | None = option(
        None, "maximum depth of the head in metres (default: the model's, or more if the caps need it)"
    )
    fuse_qkv: bool = option(False, "adapt one fused qkv per block instead of q, k, v")
    train_head: bool = option(False, "fully train the head (three convolutions) in addition to the adapter")


@dataclass(kw_only=True)
class DataOptions(DecodingOptions):
    group: ClassVar[str] = "data"

    dataset_name: str | None = option(
        None,
        f"{', '.join(FORMATS)} (default: jsonl with --train_data_dir, else streets)",
    )
    train_data_dir: str | None = option(None, "folder of the training data (NYU: or the .mat file)", may_change=True)
    train_split: str | None = option(None, "split to train on (default: the dataset's)")
    train_split_file: str | None = option(
        None, "list of the training files, such as KITTI's Eigen split", may_change=True
    )
    max_train_samples: int | None = option(None, "train on the first N frames (default: all)")
    on_bad_image: Literal["error", "skip"] = option("error", "what to do about a frame that cannot be read")
    caps: str | None = option(None, "protocol for the depth range and the crop to evaluate (default: the dataset's)")
    resolution: int | str | None = option(None, "network input: 518 (shorter side) or 392x518 (default: the model's)")
    random_flip: bool = option(True, "mirror training images at random")
    color_jitter: bool = option(True, "vary gamma, brightness and tint of training images by up to 10 percent")


@dataclass(kw_only=True)
class LossOptions:
    group: ClassVar[str] = "optimization"

    loss: Literal["silog", "ssi"] = option(
        "silog", "silog: in metres; ssi: up to scale and shift, for relative models"
    )
    silog_lambda: float = option(0.5, "lambda of the SiLog loss; 0.85: ZoeDepth")
    silog_factor: float = option(1.0, "factor of the SiLog loss; 10: ZoeDepth")
    gradient_weight: float = option(0.5, "weight of the gradient matching loss, which sharpens edges")


@dataclass(kw_only=True)
class EvaluationDataOptions:
    group: ClassVar[str] = "evaluation"

    eval_dataset_name: str | None = option(None, "dataset to evaluate on (default: --dataset_name)", may_change=True)
    eval_data_dir: str | None = option(
        None, "folder of the evaluation data (default: --train_data_dir)", may_change=True
    )
    eval_split: str | None = option(None, "split to evaluate on (default: the dataset's)", may_change=True)
    eval_split_file: str | None = option(None, "list of the files to evaluate on", may_change=True)
    max_eval_samples: int | None = option(None, "evaluate on the first N frames (default: all)", may_change=True)
    num_validation_images: int = option(6, "rows of the comparison picture; 0: no picture", may_change=True)


@dataclass(kw_only=True)
class DepthConfig(EvaluationDataOptions, RetentionOptions, LossOptions, DataOptions, ModelOptions, TrainingConfig):
    """Settings of the script; the defaults run the embedded job."""

    old_data = OldData("depth", "rooms", "jsonl", lambda name: find_format(name).ignores, needs_folder)

    output_dir: str = option("output/depth", "folder for checkpoints, adapter and results", may_change=True)
    max_train_steps: int | None = option(400, "optimizer steps; overrides --num_train_epochs", may_change=True)
    learning_rate: float = option(1e-2, "peak learning rate of the adapter's vectors")
    lr_scheduler: Schedule = option("cosine", "learning rate schedule")
    lr_warmup_steps: int = option(20, "optimizer steps of linear warm-up")

    def __post_init__(self):
        super().__post_init__()
        self._require("silog_lambda", 0 <= self.silog_lambda <= 1, "in [0, 1]")
        self._require("silog_factor", self.silog_factor > 0, "greater than 0")
        for name in ("gradient_weight", "num_validation_images"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("max_train_samples", "max_eval_samples", "max_depth"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        self.dataset_name = self.dataset_name or ("jsonl" if self.train_data_dir else "streets")
        train_name, eval_name = self.dataset_names
        ignored, eval_ignored = find_format(train_name).ignores, find_format(eval_name).ignores
        ignored_by_both = self.ignored_flags(frozenset({"on_bad_image"}) & ignored & eval_ignored)
        ignored_in_training = {f"train_{flag}" for flag in ignored} | ({"cache_images"} & ignored)
        self._refuse_ignored(ignored_in_training | ignored_by_both, "dataset_name", train_name)
        self._refuse_ignored({f"eval_{flag}" for flag in eval_ignored}, "eval_dataset_name", eval_name)

    @property
    def dataset_names(self) -> tuple[str, str]:
        """The datasets to train on and to evaluate on."""
        return self.dataset_name, self.eval_dataset_name or self.dataset_name


if __name__ == "__main__":
    check_command_line(DepthConfig, __doc__)  # before the imports that take seconds

import math

from accelerate import Accelerator
from peft import PeftModel

from onelora_vision.backbones.base import OwnParts, enable_gradient_checkpointing
from onelora_vision.backbones.depth import DepthBase
from onelora_vision.backbones.table import base_class
from onelora_vision.data.depth.caps import Caps, caps_by_name
from onelora_vision.data.depth.dataset import DepthDataset, InputSize
from onelora_vision.data.stream import evaluation_loader
from onelora_vision.methods.apply import apply_method
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.tasks.depth import DepthTask, depth_retention
from onelora_vision.tasks.retention import SEED, Retention
from onelora_vision.training.description import describe
from onelora_vision.training.job import run_job
from onelora_vision.training.loop import try_data
from onelora_vision.training.report import print_plan
from onelora_vision.training.setup import Run, start_run
from onelora_vision.training.validation_loss import WatchedSamples


def train(config: DepthConfig, run: Run) -> dict:
    """One run, from the config to its results."""
    accelerator = run.accelerator
    base = load_base(config)
    own = base.own_parts() if config.retention else None
    base.fit(**fitting_head(base, config, accelerator), fuse_qkv=config.fuse_qkv)
    model = adapt(base, config).to(accelerator.device)
    size = InputSize.parse(base.resolution(config.resolution), base.patch_size)
    train_data, eval_data = open_data(config, base, size)
    retention = make_retention(config, base, own, model, size, accelerator) if own else None
    print_plan(config, model, len(train_data), accelerator)
    if config.dry_run:
        try_data(run, train_data)
        return {}

    settings = {"max_depth": base.max_depth, "resolution": config.resolution, "fuse_qkv": config.fuse_qkv}
    how = protocol(config.dataset_names[1], eval_split(config), eval_data, size, config.loss == "ssi")
    info = describe(run, base, train_data, config.dataset_name, how, **settings)
    keep_decoded(run, train_data)
    losses = (config.loss, config.silog_lambda, config.silog_factor, config.gradient_weight)
    task = DepthTask(model, base, eval_data.caps, *losses, info, (eval_data, config.num_validation_images))
    loader = accelerator.prepare(evaluation_loader(eval_data, config.eval_batch_size, config.dataloader_num_workers))
    return run_job(run, task, train_data, loader, loader, watched_frames(config, base, size), retention)


def load_base(config: DepthConfig) -> DepthBase:
    """The pre-trained model, of the family named in its config."""
    place = config.pretrained_model_name_or_path
    options = {"revision": config.revision, "variant": config.variant, "cache_dir": config.cache_dir}
    return base_class("depth", place).load(place, **options)


def adapt(base: DepthBase, config: DepthConfig) -> PeftModel:
    """The base with the method's adapter on the encoder's linear layers, as in the paper."""
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(base.model)
    return apply_method(base.model, config.method, base.adaptation(), **config.method_options)


def fitting_head(base: DepthBase, config: DepthConfig, accelerator: Accelerator) -> dict:
    """How to fit the head: metric and with enough range for the data, if the loss needs it; and whether to train it."""
    if config.loss == "ssi":
        if base.is_metric:
            raise InputError(
                f"{config.pretrained_model_name_or_path} is a metric checkpoint, and --loss ssi trains relative "
                "inverse depth: use --loss silog, or a relative checkpoint"
            )
        return {"train_head": config.train_head}
    if config.max_depth is None:
        base.require_metric(config.pretrained_model_name_or_path, config.loss)
        far = max(caps_of(name, config, base).far for name in config.dataset_names)
        if far <= base.max_depth:
            return {"train_head": config.train_head}
        accelerator.print(f"the head's range is extended from {base.max_depth} m to the caps' {far:g} m")
        return {"train_head": config.train_head, "max_depth": math.ceil(far)}
    relative = not base.is_metric
    if relative:
        accelerator.print(
            f"warning: {config.pretrained_model_name_or_path} is a relative checkpoint: its head's last layer is "
            f"reinitialised for {config.max_depth} m, and the whole head is trained and saved with the adapter"
        )
    return {"train_head": config.train_head or relative, "max_depth": config.max_depth}


def caps_of(name: str, config: DepthConfig, base: DepthBase) -> Caps:
    """The depths to evaluate: by ``--caps``, else the dataset's protocol, else the model's range, if it has one."""
    protocol = config.caps or FORMATS[name].caps
    return caps_by_name(protocol) if protocol else Caps(1e-3, float(config.max_depth or base.max_depth or 100))


def open_data(config: DepthConfig, base: DepthBase, size: InputSize) -> tuple[DepthDataset, DepthDataset]:
    """The data to train on and to evaluate on."""
    train_name, eval_name = config.dataset_names
    train_split = config.train_split or FORMATS[train_name].train_split
    train_frames = open_frames(train_name, config.train_data_dir, train_split, config.train_split_file)
    eval_root = config.eval_data_dir or config.train_data_dir
    eval_frames = open_frames(eval_name, eval_root, eval_split(config), config.eval_split_file)
    augmentation = {"random_flip": config.random_flip, "color_jitter": config.color_jitter}
    train_caps, eval_caps = caps_of(train_name, config, base), caps_of(eval_name, config, base)
    return (
        DepthDataset(
            train_frames,
            train_caps,
            size,
            train=True,
            limit=config.max_train_samples,
            **augmentation,
            on_bad_image=config.on_bad_image,
        ),
        DepthDataset(eval_frames, eval_caps, size, limit=config.max_eval_samples, on_bad_image=config.on_bad_image),
    )


def watched_frames(config: DepthConfig, base: DepthBase, size: InputSize) -> WatchedSamples | None:
    """The frames for the validation loss: the validation split, or else training frames without augmentation.

    Never the test split. None if no validation loss is wanted.
    """
    if config.validation_loss_steps == 0:
        return None
    name, root = config.dataset_names[0], config.train_data_dir
    try:
        frames, held_out = open_frames(name, root, "validation"), True
    except MissingSplit:
        split = config.train_split or FORMATS[name].train_split
        frames, held_out = open_frames(name, root, split, config.train_split_file), False
    caps, limit = caps_of(name, config, base), None if held_out else config.max_train_samples
    data = DepthDataset(frames, caps, size, limit=limit, on_bad_image=config.on_bad_image)
    return WatchedSamples(data, held_out)


def eval_split(config: DepthConfig) -> str:
    """The split to evaluate on."""
    return config.eval_split or FORMATS[config.dataset_names[1]].eval_split


def make_retention(
    config: DepthConfig, base: DepthBase, own: OwnParts, model: PeftModel, size: InputSize, accelerator: Accelerator
) -> Retention:
    """The evaluation of the base's depth on its old data, within the base's own range."""
    name, split = config.retention_dataset, FORMATS[config.retention_dataset].eval_split
    frames = open_frames(name, config.retention_dir, split)
    with base.with_own_parts(own):
        is_metric, far = base.is_metric, base.max_depth
    caps = caps_by_name(FORMATS[name].caps) if FORMATS[name].caps else Caps(1e-3, float(far or 100))
    count, on_bad_image = config.retention_samples, config.on_bad_image
    data = DepthDataset(frames, caps, size, limit=count, drawn_by=SEED, on_bad_image=on_bad_image)
    loader = accelerator.prepare(evaluation_loader(data, config.eval_batch_size, config.dataloader_num_workers))
    return depth_retention(base, own, model, data, loader, protocol(name, split, data, size, not is_metric))


def protocol(name: str, split: str, data: DepthDataset, size: InputSize, aligned: bool) -> str:
    """One line on how the metrics of a dataset are computed."""
    caps, shape = data.caps, f"{size.height}x{size.width}" if size.width else f"shorter side {size.height}"
    alignment = ", scale and shift aligned per image" if aligned else ""
    return (
        f"{name} {split}, {len(data)} images, {caps.near:g}-{caps.far:g} m, crop {caps.crop}, "
        f"input {shape}, prediction resized to the truth and clamped{alignment}, mean over images"
    )


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse_config(DepthConfig, argv, __doc__)
    with start_run(config) as run:
        train(config, run)


if __name__ == "__main__":
    main()
