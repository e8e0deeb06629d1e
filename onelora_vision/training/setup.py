"""Startup of a training script: processes, signals, random generators, and its output folder."""

import contextlib
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
)

from onelora_vision.errors import InputError, Stopped, TrainingError, WriteError, message_of, one_line
from onelora_vision.seeding import seed_all
from onelora_vision.tasks.base import Task
from onelora_vision.training.checkpoint import find_checkpoint
from onelora_vision.training.config import TrainingConfig
from onelora_vision.training.folder import RunFolder
from onelora_vision.training.interrupt import Interruption, in_touch
from onelora_vision.training.metrics_file import MetricsFile
from onelora_vision.training.sharding import ONE_PROCESS

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_SLOW = ("measuring", "encoding", "decoding", "drawing")
_NOTHING = "; start again with the same command, which reuses what is already in the cache"
RESUME = "resume with the same command and --resume_from_checkpoint latest"


class Run:
    """A training run: its config, its processes, its folder, and how it reports a premature end.

    Attributes:
        config, accelerator: settings and processes.
        folder: the output folder, whose ``path`` is resolved.
        interruption: SIGTERM and SIGINT. resumes: whether it continues the run whose files are in its folder.
        kept: what is already on disk, in words, for the message of a failure.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, interruption: Interruption):
        self.config, self.accelerator, self.interruption = config, accelerator, interruption
        self.folder = RunFolder(config.output_dir)
        self.started = time.perf_counter()
        self.kept, self.resumes = "", False

    @contextlib.contextmanager
    def phase(self, doing: str) -> Iterator[None]:
        """Run a block; if it fails or is stopped, the one-line message says what it was ``doing`` and what is on disk.

        Slow phases are also announced when they begin.

        Raises:
            Stopped: SIGTERM or SIGINT arrived.
            InputError, TrainingError: from the block, or because memory or disk space ran out.
        """
        if doing.startswith(_SLOW):
            self.accelerator.print(f"{doing} …", flush=True)
        try:
            with in_touch(self.accelerator.process_index), naming_lost_workers(self.config):
                yield
        except Stopped as stopped:
            raise Stopped(
                stopped.signal, f"{Stopped(stopped.signal).message} while {doing}{self._kept() or _NOTHING}"
            ) from stopped
        except InputError as error:
            raise InputError(f"{message_of(error)}{self._kept()}") from error
        except (TrainingError, WriteError) as error:
            raise TrainingError(f"{error}{self._kept()}") from error
        except torch.OutOfMemoryError as error:
            advice = "try a smaller --train_batch_size or --eval_batch_size, or --gradient_checkpointing"
            raise TrainingError(f"out of memory while {doing}; {advice}{self._kept()}") from error
        except Exception as error:
            error.add_note(f"while {doing}{self._kept()}")
            raise

    def save_adapter(self, task: Task, name: str, pictures: tuple[Path, ...] = ()) -> None:
        """Let the task write its current adapter to the folder ``name`` inside the output folder."""
        if self.accelerator.is_main_process:
            task.save(self.folder.path / name, pictures)

    def _kept(self) -> str:
        return f"; {self.kept}: {RESUME}" if self.kept else ""


@contextlib.contextmanager
def start_run(config: TrainingConfig) -> Iterator[Run]:
    """Connect the processes, lock the output folder and seed the generators for the duration of a block.

    A dry run does not touch any folder.

    Raises:
        InputError: the folder is in use, or contains another run or foreign files; the checkpoint to resume from does
            not exist; or checkpoints cannot be written under accelerate's settings.
    """
    with Interruption() as interruption:
        run = Run(config, _accelerator(config), interruption)
        if not config.dry_run:
            found = find_checkpoint(config.output_dir, config.resume_from_checkpoint)
            run.resumes = run.folder.contains(found)
            if run.accelerator.is_main_process:
                run.folder.take()
                run.folder.require_free(run.resumes, config.overwrite)
        seed_all(config.seed)
        try:
            yield run
        except Stopped:
            run.accelerator.end_training()  # flushes the logs
            raise
        finally:
            if run.accelerator.is_main_process:
                run.folder.remove_if_empty()
        run.accelerator.end_training()


@contextlib.contextmanager
def naming_lost_workers(config: TrainingConfig) -> Iterator[None]:
    """Turn the death of a data worker into a one-line `TrainingError`.

    The loader reports it as "DataLoader worker … exited", unless it is fetching a batch from that worker at that
    moment.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        is_reported = str(error).startswith("DataLoader worker")
        if not is_reported and (isinstance(error, RuntimeError) or not config.dataloader_num_workers):
            raise
        reason = str(error).splitlines()[0].rstrip(". ") if is_reported else "DataLoader worker exited unexpectedly"
        raise TrainingError(
            f"{reason}, often because memory ran out; try fewer than --dataloader_num_workers "
            f"{config.dataloader_num_workers}"
        ) from error


def _accelerator(config: TrainingConfig) -> Accelerator:
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            # As a plugin: the environment variable set by `accelerate launch` would override a plain number.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                config.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=_tracker(config),
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / config.logging_dir)
            ),
            # DDP must not fail if a batch does not reach some trained parameters, as with a frozen branch.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"accelerate refuses these settings: {one_line(error)}") from error
    if accelerator.distributed_type in _SHARDED:
        raise InputError(
            f"{accelerator.distributed_type.value} shards the optimizer, which checkpoints here do not support; use "
            "DDP (accelerate launch --multi_gpu), and --shard_base to shard the frozen base across the processes"
        )
    if config.shard_base and accelerator.num_processes == 1 and not config.dry_run:
        raise InputError(ONE_PROCESS)  # before the base is measured
    return accelerator


def _tracker(config: TrainingConfig) -> str | MetricsFile | None:
    report_to = config.report_to
    if report_to == "jsonl":
        return MetricsFile(Path(config.output_dir) / config.logging_dir)
    if report_to == "auto":
        return "tensorboard" if importlib.util.find_spec("tensorboard") else None
    return None if report_to == "none" else report_to
