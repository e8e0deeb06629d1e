"""How a training script starts: the accelerator that fits its config, in an output folder of its own."""

import importlib.util
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
)

from onelora_vision.errors import InputError
from onelora_vision.seeding import seed_all
from onelora_vision.training.checkpoint import find_checkpoint, lock_folder
from onelora_vision.training.config import TrainingConfig

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def start_run(config: TrainingConfig) -> Accelerator:
    """Make the accelerator, take the output folder and seed the generators; a dry run touches no folder.

    Raises:
        InputError: the folder is in use or holds another run's checkpoints, the checkpoint to resume from does not
            exist, or the setting of accelerate is one that checkpoints cannot be written under.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            # As a plugin: a plain number would lose to the environment variable that `accelerate launch` sets.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                config.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=_tracker(config.report_to),
            project_config=ProjectConfiguration(
                project_dir=config.output_dir, logging_dir=str(Path(config.output_dir) / config.logging_dir)
            ),
            # A trained part that a batch does not reach, as with a frozen branch, must not stop DDP.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"accelerate refuses these settings: {' '.join(str(error).split())}") from error
    if accelerator.distributed_type in _SHARDED:
        raise InputError(
            f"{accelerator.distributed_type.value} shards the optimizer, which checkpoints here do not support; use "
            "DDP (accelerate launch --multi_gpu), and --shard_base to share the frozen base among the processes"
        )
    if not config.dry_run:
        if accelerator.is_main_process:
            lock_folder(config.output_dir)
        find_checkpoint(config.output_dir, config.resume_from_checkpoint)
    seed_all(config.seed)
    return accelerator


def _tracker(report_to: str) -> str | None:
    if report_to == "auto":
        return "tensorboard" if importlib.util.find_spec("tensorboard") else None
    return None if report_to == "none" else report_to
