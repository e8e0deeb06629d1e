"""How a training script starts: processes, signals, random generators, and its output folder."""

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
_NOTHING = "; start again with the same command, which takes what is in the cache already"
RESUME = "resume with the same command and --resume_from_checkpoint latest"


class Run:
    """A training run: its config, its processes, its folder, and how it ends when it does not reach its end.

    Attributes:
        config, accelerator: settings and processes.
        folder: the output folder, whose ``path`` is resolved.
        interruption: SIGTERM and SIGINT. resumes: whether it continues the run whose files are in its folder.
        kept: what of the training is on disk already, in words; for the line that a failure ends with.
    """

    def __init__(self, config: TrainingConfig, accelerator: Accelerator, interruption: Interruption):
        self.config, self.accelerator, self.interruption = config, accelerator, interruption
        self.folder = RunFolder(config.output_dir)
        self.started = time.perf_counter()
        self.kept, self.resumes = "", False

    @contextlib.contextmanager
    def phase(self, doing: str) -> Iterator[None]:
        """Name what the block does in the one line that it ends with if it fails or is stopped, with what is kept.

        What takes long is named when it begins, too.

        Raises:
            Stopped: SIGTERM or SIGINT arrived.
            InputError, TrainingError: as in the block, or for want of memory or disk space.
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
        """Let the task write its adapter, as it is now, into the folder ``name`` of the output folder."""
        if self.accelerator.is_main_process:
            task.save(self.folder.path / name, pictures)

    def _kept(self) -> str:
        return f"; {self.kept}: {RESUME}" if self.kept else ""


@contextlib.contextmanager
def start_run(config: TrainingConfig) -> Iterator[Run]:
    """Make the processes known to each other, take the output folder and seed the generators, for a block.

    A dry run touches no folder.

    Raises:
        InputError: the folder is in use, or holds another run or foreign files; the checkpoint to resume from does not
            exist; or the setting of accelerate is one that checkpoints cannot be written under.
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
            run.accelerator.end_training()  # the logs are written to their end
            raise
        finally:
            if run.accelerator.is_main_process:
                run.folder.remove_if_empty()
        run.accelerator.end_training()


@contextlib.contextmanager
def naming_lost_workers(config: TrainingConfig) -> Iterator[None]:
    """Turn the end of a process that loads data into a one-line `TrainingError`.

    The loader reports it as "DataLoader worker … exited", unless it is fetching a batch from that process just then.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        is_reported = str(error).startswith("DataLoader worker")
        if not is_reported and (isinstance(error, RuntimeError) or not config.dataloader_num_workers):
            raise
        reason = str(error).splitlines()[0].rstrip(". ") if is_reported else "DataLoader worker exited unexpectedly"
        raise TrainingError(
            f"{reason}, often for want of memory; try fewer than --dataloader_num_workers {config.dataloader_num_workers}"
        ) from error


def _accelerator(config: TrainingConfig) -> Accelerator:
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            # As a plugin: a plain number would lose to the environment variable that `accelerate launch` sets.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                config.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=_tracker(config),
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / config.logging_dir)
            ),
            # A trained part that a batch does not reach, as with a frozen branch, must not stop DDP.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"accelerate refuses these settings: {one_line(error)}") from error
    if accelerator.distributed_type in _SHARDED:
        raise InputError(
            f"{accelerator.distributed_type.value} shards the optimizer, which checkpoints here do not support; use "
            "DDP (accelerate launch --multi_gpu), and --shard_base to share the frozen base among the processes"
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
