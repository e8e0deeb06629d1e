"""The settings shared by all training scripts.

Flags have the same names as in diffusers. A script inherits `TrainingConfig`, adds its own fields with `option` in
classes that set their ``group`` in the help, and overrides defaults; `command_line.parse_config` does the rest.
"""

import dataclasses
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, Literal

from onelora_vision.errors import InputError
from onelora_vision.methods.names import Method, check_options, check_quantize, find_method
from onelora_vision.methods.peft_config import changes_base, method_of, read_peft_config
from onelora_vision.storage.files import atomic_file

Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


def option(default, help: str, may_change: bool = False):
    """A config field with its help text. ``may_change``: the value may differ when a run is resumed."""
    return dataclasses.field(default=default, metadata={"help": help, "may_change": may_change})


@dataclass(kw_only=True)
class MethodOptions:
    group: ClassVar[str] = "model and method"

    method: str = option("onelora", "fine-tuning method: onelora, lora, bitfit, head, full, sum+norms, …")
    peft_config: str | None = option(
        None, "JSON or YAML file with a PEFT config to use as the method; adapts the usual layers unless it names some"
    )
    rank: int | None = option(None, "rank, for methods that have one (default: the method's own, 1 for lora)")
    lora_alpha: float | None = option(None, "LoRA's alpha (default: the rank, which is a scale of 1)")
    compression: Literal["sum", "random", "singular", "subspace"] = option("sum", "how 1LoRA compresses its input")
    compression_rank: int | None = option(None, "directions of the compression subspace (default: 16)")
    sum_scale: Literal["none", "rms"] = option(
        "none", "rms: divide the learning rate of each b by the rms of its layer's sums, so one rate fits more models"
    )
    target_modules: str | None = option(
        None, "adapt only layers whose name matches this regular expression, such as attn (default: all)"
    )


@dataclass(kw_only=True)
class OptimizationOptions:
    group: ClassVar[str] = "optimization"

    train_batch_size: int = option(16, "samples per step and process, before gradient accumulation", may_change=True)
    max_train_steps: int | None = option(1000, "optimizer steps; overrides --num_train_epochs", may_change=True)
    num_train_epochs: int | None = option(None, "passes over the data, if --max_train_steps is null", may_change=True)
    gradient_accumulation_steps: int = option(1, "batches per optimizer step", may_change=True)
    learning_rate: float = option(1e-3, "peak learning rate of the adapter's vectors")
    head_learning_rate: float | None = option(
        None, "learning rate of the head or label table (default: --learning_rate)"
    )
    scale_lr: bool = option(False, "multiply the learning rates by processes x batch size x accumulation")
    lr_scheduler: Schedule = option("constant", "learning rate schedule")
    lr_warmup_steps: int = option(0, "optimizer steps of linear warm-up")
    lr_num_cycles: int = option(1, "restarts of cosine_with_restarts")
    lr_power: float = option(1.0, "exponent of the polynomial schedule")
    adam_beta1: float = option(0.9, "AdamW's decay of the gradient's mean")
    adam_beta2: float = option(0.999, "AdamW's decay of the gradient's mean square")
    adam_weight_decay: float = option(
        0.0, "AdamW's weight decay, on all trained parameters, norms and biases included"
    )
    adam_epsilon: float = option(1e-8, "AdamW's epsilon")
    max_grad_norm: float = option(1.0, "clip gradients to this norm; 0: no clipping")
    use_ema: bool = option(False, "keep an exponential moving average of the trained weights; evaluate and save it")
    ema_decay: float = option(0.9999, "decay of the moving average, reached after a warm-up")
    on_nan: Literal["stop", "skip"] = option("stop", "what to do when the loss or gradient is NaN", may_change=True)


@dataclass(kw_only=True)
class EvaluationOptions:
    group: ClassVar[str] = "evaluation"

    eval_batch_size: int = option(32, "batch size of evaluations", may_change=True)
    validation_steps: int = option(0, "steps between evaluations during training; 0: none", may_change=True)
    validation_loss_steps: int | None = option(
        None, "steps between points of the validation loss; 0: none (default: about 20 points)", may_change=True
    )
    metric_for_best_model: str | None = option(None, "metric that chooses the best adapter, which is kept in best/")
    greater_is_better: bool = option(True, "whether a higher metric is better")
    early_stopping_patience: int = option(0, "stop after N evaluations without a new best; 0: never", may_change=True)


@dataclass(kw_only=True)
class RunOptions:
    group: ClassVar[str] = "output, checkpoints and logs"

    output_dir: str = option("output", "folder for checkpoints, adapter and results", may_change=True)
    overwrite: bool = option(
        False, "replace an earlier run in --output_dir; only its own files are deleted", may_change=True
    )
    seed: int = option(0, "random seed; the same seed gives the same run")
    checkpointing_steps: int = option(500, "steps between checkpoints; 0: only after the last step", may_change=True)
    checkpoints_total_limit: int | None = option(
        None, "number of most recent checkpoints to keep (default: all)", may_change=True
    )
    resume_from_checkpoint: str | None = option(None, "checkpoint folder to resume from, or 'latest'", may_change=True)
    report_to: Literal["auto", "tensorboard", "wandb", "jsonl", "none"] = option(
        "auto", "where to log metrics; auto: tensorboard if installed; jsonl: a file of JSON lines", may_change=True
    )
    logging_dir: str = option("logs", "folder for the logs, inside --output_dir", may_change=True)
    push_to_hub: bool = option(False, "upload the adapter to the Hugging Face hub at the end", may_change=True)
    hub_model_id: str | None = option(
        None, "repository to upload to (default: the name of --output_dir)", may_change=True
    )
    dry_run: bool = option(
        False, "print what would be trained and for how long, read a batch, then stop", may_change=True
    )


@dataclass(kw_only=True)
class HardwareOptions:
    group: ClassVar[str] = "hardware"

    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "mixed precision (default: that of accelerate's config)"
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass to save memory", may_change=True
    )
    shard_base: bool = option(False, "shard the frozen blocks across processes (FSDP2)", may_change=True)
    quantize: Literal["none", "int8", "nf4"] = option(
        "none", "keep the weights of the adapted layers in 8 bits (int8) or 4 (nf4)"
    )
    torch_compile: bool = option(False, "compile the network's blocks; the first steps are slower", may_change=True)
    dataloader_num_workers: int = option(0, "processes that load data; 0: the main process", may_change=True)


@dataclass(kw_only=True)
class TrainingConfig(HardwareOptions, RunOptions, EvaluationOptions, OptimizationOptions, MethodOptions):
    """Settings of the training loop. Raises an `InputError` that names the flag if a value is out of range.

    Attributes:
        peft_fields: contents of the ``peft_config`` file.
    """

    peft_fields: ClassVar[dict | None] = None

    def __post_init__(self):
        self._require("output_dir", bool(self.output_dir.strip()), "the name of a folder")
        for name in ("data_dir", "train_data_dir", "eval_data_dir", "retention_dir"):
            place = getattr(self, name, None)
            if place and os.path.realpath(place) == os.path.realpath(self.output_dir):
                raise InputError(f"--output_dir {self.output_dir} is --{name}: choose a folder without data")
        for name in ("train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "lr_num_cycles"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_train_steps", "num_train_epochs", "checkpoints_total_limit"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "head_learning_rate", "adam_epsilon", "lr_power", "lora_alpha"):
            self._require(name, getattr(self, name) is None or getattr(self, name) > 0, "greater than 0")
        for name in (
            "lr_warmup_steps",
            "adam_weight_decay",
            "max_grad_norm",
            "dataloader_num_workers",
            "checkpointing_steps",
            "validation_steps",
            "early_stopping_patience",
        ):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        steps = self.validation_loss_steps
        self._require("validation_loss_steps", steps is None or steps >= 0, "0 or more")
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        row = self._method()
        check_options(row, self.rank, self.lora_alpha, self.compression, self.target_modules, self.compression_rank)
        check_quantize(row, self.quantize, self.peft_fields)
        self._require("quantize", self.quantize == "none" or not self.shard_base, "none with --shard_base")
        self._require("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        if self.max_train_steps is None and self.num_train_epochs is None:
            raise InputError("neither --max_train_steps nor --num_train_epochs is set: give one of them")
        if self.metric_for_best_model and not self.validation_steps:
            raise InputError("--metric_for_best_model needs evaluations during training: set --validation_steps")
        if self.early_stopping_patience and not self.metric_for_best_model:
            raise InputError("--early_stopping_patience needs a metric to compare: set --metric_for_best_model")

    def _method(self) -> Method:
        """The row of ``--method``, or of the type in ``--peft_config``."""
        if self.peft_config is None:
            return find_method(self.method)
        self.peft_fields = read_peft_config(self.peft_config)
        name = method_of(self.peft_fields, self.peft_config)
        if self.method not in (type(self).method, name):
            raise InputError(f"--method {self.method} and --peft_config of {name}: give one of them")
        for flag in ("rank", "lora_alpha"):
            if getattr(self, flag) is not None:
                raise InputError(f"--{flag} with --peft_config: set it in {self.peft_config}")
        if changes_base(SimpleNamespace(**self.peft_fields)) and self.metric_for_best_model:
            raise InputError(
                f"--metric_for_best_model with init_lora_weights={self.peft_fields['init_lora_weights']}: an adapter "
                "of this kind cannot be restored during training; leave out one of them"
            )
        self.method = name
        return find_method(name)

    @property
    def headline(self) -> str:
        """One line on what the run will do."""
        names = ("pretrained_model_name_or_path", "dataset_name")
        base, data = (getattr(self, name, None) for name in names)
        on = "".join(f" {word} {name}" for word, name in (("on", base), ("with", data)) if name)
        return f"{'dry run of ' * self.dry_run}{self.method}{on}, seed {self.seed}, into {self.output_dir}"

    @property
    def method_options(self) -> dict:
        """Arguments of `onelora_vision.methods.apply.apply_method`, except the model, the method and its modules."""
        names = ("rank", "lora_alpha", "compression", "compression_rank", "target_modules", "seed", "quantize")
        return {name: getattr(self, name) for name in names} | {"peft_fields": self.peft_fields}

    def _refuse_ignored(self, flags: Collection[str], name: str, value: str) -> None:
        """Refuse ``flags`` that are set but have no effect with ``--name value``."""
        for field in dataclasses.fields(self):
            if field.name in flags and getattr(self, field.name) not in (field.default, ""):
                raise InputError(
                    f"--{field.name} has no effect with --{name} {value}: leave it out, or choose another --{name}"
                )

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:  # also for NaN, which compares false
            raise InputError(f"--{name} is {getattr(self, name)!r}, but must be {what}")


def default_settings(config_class: type[TrainingConfig]) -> dict:
    """Default settings after a JSON round trip, for example for runs from before an option existed."""
    fields = [field for field in dataclasses.fields(config_class) if field.default is not dataclasses.MISSING]
    return json.loads(json.dumps({field.name: field.default for field in fields}))


def save_config(config: TrainingConfig, path: str | Path) -> None:
    """Write the config as YAML that ``--config`` can read."""
    import yaml

    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))
