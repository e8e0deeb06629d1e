"""The settings that all training scripts share, and how a command line and a YAML file become them.

The flags carry diffusers' names. A script inherits `TrainingConfig`, adds its own fields with `option`, and overrides
defaults; `parse_config` does the rest.
"""

import dataclasses
import os
import re
import sys
import typing
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from onelora_vision.errors import InputError, nearest
from onelora_vision.methods.names import check_options, find_method
from onelora_vision.runtime.command import ends_at_once
from onelora_vision.storage.files import atomic_file
from onelora_vision.storage.textfiles import named_file, read_text

_PATH_ENDINGS = ("_dir", "_file", "_path", "_weights")  # of settings that are paths
Config = TypeVar("Config", bound="TrainingConfig")
Schedule = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]


def option(default, help: str, may_change: bool = False):
    """A config field with its line of help. ``may_change``: a resumed run may have another value."""
    return dataclasses.field(default=default, metadata={"help": help, "may_change": may_change})


@dataclass(kw_only=True)
class TrainingConfig:
    """Settings of the training loop; raises `InputError` naming the flag when a value is out of range."""

    output_dir: str = option("output", "folder for checkpoints, adapter and results", may_change=True)
    overwrite: bool = option(False, "replace the earlier run in output_dir; only its own files", may_change=True)
    seed: int = option(0, "seed of everything random: the run is a function of it")

    method: str = option("onelora", "fine-tuning method: onelora, lora, bitfit, head, full, sum+norms, …")
    rank: int = option(1, "rank, for the methods that have one")
    lora_alpha: float | None = option(None, "LoRA's alpha (default: the rank, that is a scale of 1)")
    compression: Literal["sum", "random", "singular"] = option("sum", "what 1LoRA compresses its input with")
    sum_scale: Literal["none", "rms"] = option(
        "none", "rms: each b learns at the rate over the rms of its layer's sums, so that one rate fits more models"
    )
    target_modules: str | None = option(
        None, "adapt only layers in whose name this regular expression is found, such as attn (default: all)"
    )

    train_batch_size: int = option(16, "samples per step and process, before accumulation", may_change=True)
    eval_batch_size: int = option(32, "samples per batch of an evaluation", may_change=True)
    max_train_steps: int | None = option(1000, "optimizer steps; overrides --num_train_epochs", may_change=True)
    num_train_epochs: int | None = option(None, "passes over the data, if --max_train_steps is null", may_change=True)
    gradient_accumulation_steps: int = option(1, "batches per optimizer step", may_change=True)
    gradient_checkpointing: bool = option(False, "recompute activations in backward to save memory", may_change=True)
    shard_base: bool = option(False, "share the frozen blocks among the processes (FSDP2)", may_change=True)
    torch_compile: bool = option(False, "compile the network's blocks; the first steps take longer", may_change=True)

    learning_rate: float = option(1e-3, "peak learning rate of the adapter's vectors")
    head_learning_rate: float | None = option(
        None, "the same for the task's head or label table (default: learning_rate)"
    )
    scale_lr: bool = option(False, "multiply the rates by processes x batch size x accumulation")
    lr_scheduler: Schedule = option("constant", "shape of the learning rate over the steps")
    lr_warmup_steps: int = option(0, "optimizer steps over which the rate rises from zero, at most the run")
    lr_num_cycles: int = option(1, "restarts of cosine_with_restarts")
    lr_power: float = option(1.0, "exponent of the polynomial schedule")
    adam_beta1: float = option(0.9, "AdamW's decay of the gradient's mean")
    adam_beta2: float = option(0.999, "AdamW's decay of the gradient's mean square")
    adam_weight_decay: float = option(0.0, "AdamW's weight decay, on everything trained, norms and biases too")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: not clipped")

    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "autocast (default: accelerate's own config)")
    use_ema: bool = option(False, "average the trained weights; evaluate and save the average")
    ema_decay: float = option(0.9999, "decay of that average, reached after a warm-up")

    dataloader_num_workers: int = option(0, "processes that load data; 0: the main one", may_change=True)
    checkpointing_steps: int = option(500, "steps between checkpoints; 0: only after the last step", may_change=True)
    checkpoints_total_limit: int | None = option(None, "checkpoints kept, the newest (default: all)", may_change=True)
    resume_from_checkpoint: str | None = option(None, "a checkpoint folder, or 'latest'", may_change=True)
    validation_steps: int = option(0, "steps between evaluations; 0: none during training", may_change=True)
    metric_for_best_model: str | None = option(None, "keep the best adapter, by this figure of the evaluations")
    greater_is_better: bool = option(True, "whether the best is the greatest")
    early_stopping_patience: int = option(
        0, "stop after so many evaluations without a new best; 0: never", may_change=True
    )
    on_nan: Literal["stop", "skip"] = option("stop", "what to do about a NaN in loss or gradient", may_change=True)

    report_to: Literal["auto", "tensorboard", "wandb", "none"] = option(
        "auto", "where figures are logged; auto: tensorboard if installed", may_change=True
    )
    logging_dir: str = option("logs", "folder for the logs, inside the output folder", may_change=True)
    push_to_hub: bool = option(False, "upload the adapter to the Hugging Face hub at the end", may_change=True)
    hub_model_id: str | None = option(
        None, "repository to upload to (default: the output folder's name)", may_change=True
    )
    dry_run: bool = option(False, "print what would be trained and how long, then stop", may_change=True)

    def __post_init__(self):
        for name in ("rank", "train_batch_size", "eval_batch_size", "gradient_accumulation_steps", "lr_num_cycles"):
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
        for name in ("adam_beta1", "adam_beta2", "ema_decay"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        row = find_method(self.method)
        check_options(row, self.rank, self.lora_alpha, self.compression, self.target_modules)
        self._require("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        if self.max_train_steps is None and self.num_train_epochs is None:
            raise InputError("neither --max_train_steps nor --num_train_epochs is set: give one of them")
        if self.metric_for_best_model and not self.validation_steps:
            raise InputError("--metric_for_best_model needs evaluations during training: set --validation_steps")
        if self.early_stopping_patience and not self.metric_for_best_model:
            raise InputError("--early_stopping_patience needs to know what is best: set --metric_for_best_model")

    @property
    def headline(self) -> str:
        """What the run will do, in a line."""
        names = ("pretrained_model_name_or_path", "dataset_name")
        base, data = (getattr(self, name, None) for name in names)
        on = "".join(f" {word} {name}" for word, name in (("on", base), ("with", data)) if name)
        return f"{'dry run of ' * self.dry_run}{self.method}{on}, seed {self.seed}, into {self.output_dir}"

    @property
    def method_options(self) -> dict:
        """What `onelora_vision.methods.apply.apply_method` takes besides model, method and places."""
        names = ("rank", "lora_alpha", "compression", "target_modules", "seed")
        return {name: getattr(self, name) for name in names}

    def _refuse_ignored(self, flags: Collection[str], name: str, value: str) -> None:
        """Refuse ``flags`` that were set although they have no effect with ``--name value``."""
        for field in dataclasses.fields(self):
            if field.name in flags and getattr(self, field.name) not in (field.default, ""):
                raise InputError(
                    f"--{field.name} has no effect with --{name} {value}: leave it out, or choose another --{name}"
                )

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:  # also for NaN, which compares false
            raise InputError(f"--{name} is {getattr(self, name)!r}, but must be {what}")


def parse_config(config_class: type[Config], argv: list[str] | None = None, description: str | None = None) -> Config:
    """The config of a command line: defaults, then ``--config file.yaml``, then the flags.

    ``-`` and ``_`` are the same in names; a bool is ``--flag``, ``--no_flag`` or ``--flag true``. ``--help`` prints
    and exits.

    Raises:
        InputError: for an unknown flag or key (naming the nearest one) or a value of the wrong type or range.
    """
    from jsonargparse import ArgumentError

    arguments = [_with_underscores(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    parser = _parser(config_class, description)
    _refuse_unknown_flags(arguments, config_class)
    try:
        values = parser.parse_args(_config_files_first(arguments, config_class))
    except ArgumentError as error:
        raise InputError(_readable(error.message, typing.get_type_hints(config_class))) from None
    return config_class(**{field.name: values[field.name] for field in dataclasses.fields(config_class)})


def check_command_line(config_class: type[TrainingConfig], description: str | None) -> None:
    """Check the flags of the script that runs, and say what it will do; bad input ends the program.

    A script calls it between its settings and its other imports, so that neither need wait for torch.
    """

    def check() -> None:
        config = parse_config(config_class, None, description)
        if os.environ.get("RANK", "0") == "0":
            print(config.headline, flush=True)

    ends_at_once(check)


def save_config(config: TrainingConfig, path: str | Path) -> None:
    """Write the config as YAML that ``--config`` reads back."""
    import yaml

    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True))


def _parser(config_class: type[TrainingConfig], description: str | None):
    from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser

    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; flags override it")
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = {"action": ActionYesNo, "nargs": "?"} if types[field.name] is bool else {"type": types[field.name]}
        parser.add_argument(
            f"--{field.name}", default=field.default, help=field.metadata.get("help", "").replace("%", "%%"), **kind
        )
    return parser


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _refuse_unknown_flags(arguments: list[str], config_class: type[TrainingConfig]) -> None:
    types = typing.get_type_hints(config_class)
    names = {"config", "print_config", "help", *types} | {f"no_{name}" for name, kind in types.items() if kind is bool}
    for argument in arguments:
        name = argument[2:].partition("=")[0]
        if argument.startswith("--") and name not in names:
            known = [f"--{known}" for known in sorted(names)]
            raise InputError(f"unknown flag --{name}{nearest('--' + name, known, 'flag')}")


def _config_files_first(arguments: list[str], config_class: type[TrainingConfig]) -> list[str]:
    """Check the files' keys, and move ``--config file`` to the front, so that a flag beats it wherever it stands."""
    files, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        path = value if equals else next(remaining, None)
        if path is None:
            raise InputError("--config needs the path of a YAML file")
        files += ["--config", _checked_settings(path, config_class)]
    return files + rest


def _checked_settings(path: str, config_class: type[TrainingConfig]) -> str:
    """The text of a YAML file whose keys exist, with / in its paths."""
    import yaml

    text = read_text(path, "--config")
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"cannot read --config {path}: {_one_line(str(error))}") from None
    if not isinstance(settings, dict):
        raise InputError(f"--config {path}: expected lines of 'name: value', found {type(settings).__name__}")
    known = [field.name for field in dataclasses.fields(config_class)]
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"--config {path}: unknown key {key!r}{nearest(key, known, 'key')}")
        if key.endswith(_PATH_ENDINGS) and isinstance(value, str):
            settings[key] = os.fspath(named_file(Path(), value)) if "\\" in value else value
    return yaml.safe_dump(settings, allow_unicode=True)


def _readable(message: str, types: dict[str, type]) -> str:
    """The parser's complaint about a value, as one line in the words of the flags."""
    message = _one_line(message)
    name = re.search(r'Parser key "(\w+)"|argument --(\w+).*invalid', message)
    value = re.search(r"(?:Got|Given) value: (.*)$|invalid \w+ value: '(.*)'", message)
    if not name or not value:
        return message
    name, value = name[1] or name[2], value[1] or value[2]
    return f"--{name} is {value}, but must be {_words(types[name])}"


def _words(kind) -> str:
    """A field's type in words: ``int | None`` is "a whole number or null"."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_args(kind):
        return " or ".join(map(_words, typing.get_args(kind)))
    return {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}.get(kind, "text")


def _one_line(text: str) -> str:
    return " ".join(text.split())
