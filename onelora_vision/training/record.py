"""``results.json``: what a run has measured so far and which phase it has reached, written after each phase.

A run goes through `results.PHASES` in order. A resumed run reads its own record and repeats no recorded phase, unless a
setting that the phase depends on has changed.
"""

import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from onelora_vision.errors import InputError
from onelora_vision.storage.files import write_json
from onelora_vision.tasks.base import Task
from onelora_vision.training.config import default_settings
from onelora_vision.training.report import count_parameters, peak_memory_bytes, versions
from onelora_vision.training.results import PHASES, RESULTS
from onelora_vision.training.setup import Run
from onelora_vision.training.summary import TrainingSummary

# Settings that affect no metrics, and settings that do not affect the metrics before training.
_HARMLESS = {
    "output_dir", "overwrite", "resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "report_to",
    "logging_dir", "push_to_hub", "hub_model_id", "dataloader_num_workers", "dry_run", "cache_dir", "latents_dir",
    "cache_latents", "download", "torch_compile", "gradient_checkpointing", "shard_base", "validation_loss_steps",
    "packing",
}  # fmt: skip
_OF_TRAINING = {
    "max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps", "validation_steps",
    "early_stopping_patience", "on_nan",
}  # fmt: skip


@dataclass
class Record:
    """The content of ``results.json``, the same on every process; the main process writes it.

    Attributes:
        identity: hashes of the base and the data, by what they describe; a resumed run must have the same.
        phase: the last completed phase of `results.PHASES`.
        before, after: metrics before and after training. best: those of the best adapter, with its step.
        seconds: wall time of earlier, interrupted starts of this run.
        held_out: whether the samples of the validation loss are not used for training.
        published: address that the adapter was uploaded to.
    """

    run: Run
    task: Task
    identity: dict[str, str]
    phase: str = "started"
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)
    best: dict | None = None
    seconds: float = 0.0
    published: str | None = None
    summary: TrainingSummary | None = None
    held_out: bool = True
    _was_complete: bool = False

    @classmethod
    def open(cls, run: Run, task: Task, identity: dict[str, str]) -> "Record":
        """The record of this run, including what an earlier start measured. Deletes an earlier run that it replaces.

        Raises:
            InputError: ``results.json`` exists but does not belong to a run.
        """
        record, accelerator = cls(run, task, identity), run.accelerator
        found: list[dict | None] = [None]
        if accelerator.is_main_process:
            if not run.resumes and run.folder.has_trained():
                run.folder.clear()
            found = [record._read()]
        if accelerator.num_processes > 1:
            broadcast_object_list(found)
        if found[0] is not None:
            record._take(found[0])
        return record

    def _read(self) -> dict | None:
        file = self.run.folder.path / RESULTS
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: not the results of a run ({error}); move it away") from error

    def _take(self, found: dict) -> None:
        """Take over what an earlier start of this run measured with the same settings."""
        if found.get("protocol") != self.task.info.protocol or found.get("identity") != self.identity:
            return
        before = default_settings(type(self.run.config)) | found.get("config", {})
        now = json.loads(json.dumps(dataclasses.asdict(self.run.config)))
        changed = {name for name in {*before, *now} if before.get(name) != now.get(name)} - _HARMLESS
        if not changed - _OF_TRAINING and self._is_at_least(found, "baseline"):
            self.phase, self.before = "baseline", found["metrics"]["before"]
            self.seconds = found.get("seconds_total", 0.0)
        if not changed and self._is_at_least(found, "evaluated"):
            self.phase, self.after, self.best = found["phase"], found["metrics"]["after"], found.get("best")
            self.published = found.get("published")
            self._was_complete = self.phase == "complete"

    @staticmethod
    def _is_at_least(found: dict, phase: str) -> bool:
        return found.get("phase") in PHASES[PHASES.index(phase) :]

    def has(self, phase: str) -> bool:
        """Whether ``phase`` is complete."""
        return PHASES.index(self.phase) >= PHASES.index(phase)

    def reach(self, phase: str) -> None:
        """Record that ``phase`` is complete, and write the record."""
        self.phase = phase if not self.has(phase) else self.phase
        if self.run.accelerator.is_main_process:
            with self.run.folder.writing(RESULTS) as path:
                write_json(path, self.content())

    def content(self) -> dict:
        """The content of ``results.json``. Non-finite metrics are null."""
        config, summary = self.run.config, self.summary
        return {
            "task": self.task.info.task,
            "method": config.method,
            "seed": config.seed,
            "phase": self.phase,
            **count_parameters(self.task.adapted),
            "metrics": {"before": finite(self.before), "after": finite(self.after)},
            "best": self.best and {**self.best, "metrics": finite(self.best["metrics"])},
            "validation_loss": _first_and_last(summary.validation_losses, self.held_out) if summary else None,
            "protocol": self.task.info.protocol,
            "retention": self.task.info.extra.get("retention"),
            "steps": summary.steps if summary else 0,
            "skipped_steps": summary.skipped_steps if summary else 0,
            "best_step": summary.best_step if summary else None,
            "seconds_total": self.seconds + (0.0 if self._was_complete else time.perf_counter() - self.run.started),
            "seconds_per_step": summary.seconds_per_step if summary else None,
            "data_seconds_per_step": summary.data_seconds_per_step if summary else None,
            "peak_memory_bytes": peak_memory_bytes(),
            "published": self.published,
            "identity": self.identity,
            "versions": versions(),
            "config": dataclasses.asdict(config),
        }

    def save_details(self, when: str, details: dict[str, Tensor]) -> None:
        """Save the tensors of an evaluation, so pictures can be drawn even after an interruption."""
        if details and self.run.accelerator.is_main_process:
            with self.run.folder.writing(f"evaluations/{when}.safetensors") as path:
                path.write_bytes(safetensors.torch.save({k: v.cpu().contiguous() for k, v in details.items()}))

    def load_details(self, when: str) -> dict[str, Tensor]:
        """What `save_details` saved; empty if the task has none."""
        file = Path(self.run.folder.path) / "evaluations" / f"{when}.safetensors"
        return safetensors.torch.load_file(file) if file.is_file() else {}


def _first_and_last(curve: list[tuple[int, float]], held_out: bool) -> dict[str, float | bool | None] | None:
    return {**finite({"first": curve[0][1], "last": curve[-1][1]}), "held_out": held_out} if curve else None


def finite(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """Metrics in a form that JSON can represent."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
