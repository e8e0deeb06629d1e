"""Fine-tune a causal language model, such as LLaMA-2, on questions with answers, such as MetaMathQA.

Without arguments it adapts the small LLaMA included in the package, which does plain sums, to small stories that
require counting, on a CPU. It takes any decoder of transformers with linear layers, and any JSON or JSONL file with
questions and answers. The loss is computed on the answers' tokens only.

Examples:
  python train_scripts/train_language.py --method lora
  python train_scripts/train_language.py --data_file questions.jsonl --max_length 1024 \\
      --pretrained_model_name_or_path my-llama --mixed_precision bf16 --base_dtype bf16
  python train_scripts/train_language.py --config train_scripts/configs/language/llama2-7b-metamath-onelora.yaml \\
      --data_file MetaMathQA-395K.json
"""

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

from onelora_vision.data.text.formats import EMBEDDED, JSON, ignored_by
from onelora_vision.data.text.prompts import TEMPLATES, find_template
from onelora_vision.errors import InputError
from onelora_vision.training.command_line import check_command_line, parse_config
from onelora_vision.training.config import Schedule, TrainingConfig, option

EMBEDDED_BASE = "embedded/language"
_MEASURED_BATCHES = 50  # over which the effect of packing is reported
_EXACT_MATCH_SAMPLES = 200  # of the embedded job, whose answers are short


@dataclass(kw_only=True)
class ModelOptions:
    group: ClassVar[str] = "model and method"

    pretrained_model_name_or_path: str = option(
        EMBEDDED_BASE, "folder or hub id of a decoder of transformers, with its tokenizer"
    )
    revision: str | None = option(None, "revision of the model on the hub")
    base_dtype: Literal["fp32", "bf16"] = option(
        "fp32", "dtype of the frozen weights; bf16 takes half the memory and needs --mixed_precision bf16"
    )


@dataclass(kw_only=True)
class DataOptions:
    group: ClassVar[str] = "data"

    dataset_name: str | None = option(
        None,
        "arithmetic (small stories), json, or a hub dataset with --download (default: json with --data_file, else "
        "arithmetic)",
    )
    data_file: str | None = option(
        None, "JSONL file, or JSON file with a list, of questions and answers", may_change=True
    )
    download: bool = option(False, "download the hub dataset if it is not in the cache", may_change=True)
    cache_dir: str | None = option(None, "folder for downloads (default: the hub's own cache)", may_change=True)
    prompt_column: str | None = option(None, "column of the questions (default: query or prompt)")
    response_column: str | None = option(None, "column of the answers (default: response or completion)")
    prompt_template: str = option(
        "metamath", f"{', '.join(TEMPLATES)}, or a text with {{query}} in place of the question"
    )
    max_length: int = option(512, "maximum number of tokens of prompt and answer")
    long_rows: Literal["cut", "skip"] = option("cut", "what to do about a longer row: cut its answer, or skip it")
    packing: bool = option(
        False,
        "put several rows of a batch into one sequence of at most --max_length tokens, without mixing them; "
        "the same loss with less padding",
        may_change=True,
    )
    on_bad_row: Literal["error", "skip"] = option(
        "error", "what to do about a row that is not a question with its answer"
    )
    held_out_fraction: float = option(0.2, "fraction of the rows to evaluate on, drawn by --seed")
    validation_fraction: float = option(0.05, "fraction of the training rows held out to choose settings by")
    max_train_samples: int | None = option(None, "train on the first N rows of the split (default: all)")


@dataclass(kw_only=True)
class EvaluationDataOptions:
    group: ClassVar[str] = "evaluation"

    eval_data_file: str | None = option(
        None, "file of the rows to evaluate on, instead of --held_out_fraction", may_change=True
    )
    eval_split: Literal["test", "validation"] = option(
        "test", "rows for the metrics before and after training: held-out ones, or those for choosing settings"
    )
    max_eval_samples: int | None = option(None, "evaluate on the first N rows (default: all)", may_change=True)
    exact_match_samples: int | None = option(
        None,
        "rows whose generated answers are compared; 0: none (default: 200 of arithmetic, else 0)",
        may_change=True,
    )
    max_new_tokens: int | None = option(
        None, "maximum number of tokens of a generated answer (default: 32 for arithmetic, else 256)", may_change=True
    )
    num_examples: int = option(8, "answers before and after training to show in the report; 0: none", may_change=True)


@dataclass(kw_only=True)
class LanguageConfig(EvaluationDataOptions, DataOptions, ModelOptions, TrainingConfig):
    """Settings of the script; the defaults run the embedded job."""

    output_dir: str = option("output/language", "folder for checkpoints, adapter and results", may_change=True)
    max_train_steps: int | None = option(600, "optimizer steps; overrides --num_train_epochs", may_change=True)
    eval_batch_size: int = option(64, "batch size of evaluations", may_change=True)
    learning_rate: float = option(1e-2, "peak learning rate of the adapter's vectors")
    lr_scheduler: Schedule = option("cosine", "learning rate schedule")
    lr_warmup_steps: int = option(20, "optimizer steps of linear warm-up")

    def __post_init__(self):
        super().__post_init__()
        self.dataset_name = self.dataset_name or (JSON if self.data_file else EMBEDDED)
        self._refuse_ignored(ignored_by(self.dataset_name), "dataset_name", self.dataset_name)
        if self.eval_data_file:
            self._refuse_ignored({"held_out_fraction"}, "eval_data_file", self.eval_data_file)
        is_embedded = self.dataset_name == EMBEDDED
        if self.exact_match_samples is None:
            self.exact_match_samples = _EXACT_MATCH_SAMPLES if is_embedded else 0
        if self.max_new_tokens is None:
            self.max_new_tokens = 32 if is_embedded else 256
        find_template(self.prompt_template)
        self._require("held_out_fraction", 0 < self.held_out_fraction < 1, "between 0 and 1")
        self._require("validation_fraction", 0 <= self.validation_fraction < 1, "in [0, 1)")
        for name in ("exact_match_samples", "num_examples"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for name in ("max_train_samples", "max_eval_samples", "max_length", "max_new_tokens"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        if (self.prompt_column is None) != (self.response_column is None):
            raise InputError("--prompt_column and --response_column belong together: give both or neither")
        if self.base_dtype == "bf16" and self.mixed_precision != "bf16":
            raise InputError("--base_dtype bf16 needs --mixed_precision bf16, which computes in the weights' dtype")

    @property
    def columns(self) -> tuple[str, str] | None:
        """The columns of question and answer, if they are given."""
        return (self.prompt_column, self.response_column) if self.prompt_column else None


if __name__ == "__main__":
    check_command_line(LanguageConfig, __doc__)  # before the imports that take seconds

from typing import NamedTuple

from accelerate import Accelerator
from peft import PeftModel

from onelora_vision.backbones.base import enable_gradient_checkpointing
from onelora_vision.backbones.language import LanguageBase
from onelora_vision.backbones.table import base_class
from onelora_vision.data.stream import TrainingBatchSampler, evaluation_loader
from onelora_vision.data.text.dataset import TextDataset
from onelora_vision.data.text.formats import open_rows
from onelora_vision.data.text.packing import PackedDataset
from onelora_vision.data.text.rows import Row, RowReader, held_out, read_rows
from onelora_vision.methods.apply import apply_method
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.tasks.language import LanguageTask
from onelora_vision.training.description import describe
from onelora_vision.training.job import run_job
from onelora_vision.training.loop import try_data
from onelora_vision.training.report import print_plan
from onelora_vision.training.setup import Run, start_run
from onelora_vision.training.validation_loss import WatchedSamples

_log = logging.getLogger(__name__)


class Rows(NamedTuple):
    """Rows to train on, to choose settings by, and to report metrics on; and how many were unreadable."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    bad: int


def open_splits(config: LanguageConfig) -> Rows:
    """The data, split by the seed. If the test split is a separate file, all other rows can be trained on."""
    reader = RowReader(config.columns, config.on_bad_row)
    where = {"download": config.download, "cache_dir": config.cache_dir}
    train = open_rows(config.dataset_name, config.data_file, reader, **where)
    if config.eval_data_file:
        test = read_rows(config.eval_data_file, reader, "--eval_data_file")
        warn_of_common_rows(train, test)
    else:
        train, test = held_out(train, config.held_out_fraction, config.seed)
    validation = []
    if config.validation_fraction:
        train, validation = held_out(
            train, config.validation_fraction, config.seed, stream=1, flag="--validation_fraction"
        )
    elif config.eval_split == "validation" or config.validation_steps:
        raise InputError("validation needs held-out rows: set --validation_fraction, such as 0.05")
    train = train[: config.max_train_samples]
    return Rows(train, validation, test[: config.max_eval_samples], reader.skipped)


def warn_of_common_rows(train: list[Row], test: list[Row]) -> None:
    """Warn how many rows to evaluate on are also trained on."""
    known = {row[:2] for row in train}
    common = sum(row[:2] in known for row in test)
    if common:
        _log.warning("--eval_data_file: %d of its %d rows are also in the training data", common, len(test))


def load_base(config: LanguageConfig) -> LanguageBase:
    """The pre-trained model with its tokenizer."""
    place = config.pretrained_model_name_or_path
    options = {"revision": config.revision, "cache_dir": config.cache_dir, "base_dtype": config.base_dtype}
    return base_class("language", place).load(place, **options).fit()


def adapt(base: LanguageBase, config: LanguageConfig) -> PeftModel:
    """The base with the method's adapter on the linear layers of its blocks, as in the paper."""
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(base.model)
    return apply_method(base.model, config.method, base.adaptation(), **config.method_options)


def encode(rows: list[Row], base: LanguageBase, config: LanguageConfig) -> TextDataset:
    """Rows as tokens of the base."""
    template = find_template(config.prompt_template)
    found = TextDataset.of(rows, base.tokenizer, template, config.max_length, config.long_rows)
    base.require_positions(found.longest)
    return found


def packed(rows: TextDataset, config: LanguageConfig, accelerator: Accelerator) -> PackedDataset:
    """The packed training rows; prints the effect of packing on the first batches."""
    found = PackedDataset(rows, config.max_length)
    batches = TrainingBatchSampler(len(found), config.train_batch_size, _MEASURED_BATCHES, config.seed)
    packing = found.measure(batches)
    accelerator.print(
        f"packing: {packing.rows:g} rows in {packing.sequences:.1f} sequences of at most {config.max_length} tokens; "
        f"{packing.padding:.0%} of the tokens are padding, {packing.padding_unpacked:.0%} without packing"
    )
    return found


def train(config: LanguageConfig, run: Run) -> dict:
    """One run, from the config to its results."""
    accelerator = run.accelerator
    rows = open_splits(config)
    base = load_base(config)
    model = adapt(base, config).to(accelerator.device)
    data = {name: encode(getattr(rows, name), base, config) for name in rows._fields[:3] if getattr(rows, name)}
    accelerator.print(told(data, rows.bad, config.max_length))
    trained, judged = data["train"], data[config.eval_split]
    if written := max(config.exact_match_samples, config.num_examples):
        base.require_room(judged.longest_prompt(written), config.max_new_tokens)
    if config.packing:
        with accelerator.autocast():
            base.require_packing()
        trained = packed(trained, config, accelerator)
    print_plan(config, model, len(data["train"]), accelerator)
    if config.dry_run:
        try_data(run, trained)
        return {}

    if config.max_eval_samples and config.eval_split == "validation":
        judged = encode(judged.rows[: config.max_eval_samples], base, config)
    settings = {
        name: getattr(config, name) for name in ("prompt_template", "max_length", "max_new_tokens", "base_dtype")
    }
    info = describe(run, base, data["train"], config.dataset_name, protocol(config, judged), unit="rows", **settings)
    numbers = (config.exact_match_samples, config.num_examples, config.max_new_tokens)
    task = LanguageTask(model, base, info, judged, *numbers)

    def loader(dataset: TextDataset):
        return accelerator.prepare(evaluation_loader(dataset, config.eval_batch_size, config.dataloader_num_workers))

    validation = data.get("validation")
    watched = WatchedSamples(validation or data["train"], held_out=validation is not None)
    return run_job(run, task, trained, loader(judged), validation and loader(validation), watched)


def told(data: dict[str, TextDataset], bad: int, max_length: int) -> str:
    """One line with the sizes of the splits, and numbers of rows that are too long or unreadable."""
    sizes = ", ".join(f"{len(part):,} to {name}" for name, part in data.items()).replace("to train", "to train on")
    cut, skipped = (sum(getattr(part, name) for part in data.values()) for name in ("cut", "skipped"))
    notes = [f"{bad:,} bad ones skipped"] if bad else []
    notes += [
        f"{count:,} longer than {max_length} tokens {what}"
        for count, what in ((cut, "cut"), (skipped, "skipped"))
        if count
    ]
    return "rows: " + "; ".join([sizes, *notes])


def protocol(config: LanguageConfig, data: TextDataset) -> str:
    """One line on how the metrics are computed."""
    template = config.prompt_template if config.prompt_template in TEMPLATES else "own"
    line = (
        f"{config.dataset_name} {config.eval_split}, {len(data)} rows of at most {config.max_length} tokens, {template} "
        "prompt, mean over the answers' tokens"
    )
    if not config.exact_match_samples:
        return line
    compared = min(config.exact_match_samples, len(data))
    return f"{line}; exact match of the final number, greedy, {compared} rows, at most {config.max_new_tokens} tokens"


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    config = parse_config(LanguageConfig, argv, __doc__)
    with start_run(config) as run:
        train(config, run)


if __name__ == "__main__":
    main()
