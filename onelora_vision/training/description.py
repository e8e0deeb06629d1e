"""What the files of a trained adapter record: its base, how it was trained, and how it was evaluated."""

from collections.abc import Sized
from typing import Any

import torch

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import Base
from onelora_vision.methods.names import find_method
from onelora_vision.training.optim import samples_per_step
from onelora_vision.training.setup import Run


def describe(
    run: Run, base: Base, dataset: Sized, name: str, protocol: str, *, unit: str = "images", **extra: Any
) -> AdapterInfo:
    """Describe the adapter that ``run`` trains on ``base``.

    Args:
        dataset: the training samples. name: of the dataset.
        protocol: how the metrics are computed. unit: what the samples are, in the plural.
        extra: settings needed to load or use the adapter.
    """
    config = run.config
    return AdapterInfo(
        task=base.task,
        method=find_method(config.method).name,
        base=config.pretrained_model_name_or_path,
        base_fingerprint=base.fingerprint(),
        class_names=base.class_names,
        protocol=protocol,
        data=f"{len(dataset):,} {unit} of {name}",
        extra={
            **extra,
            "host": base.host_call(config.pretrained_model_name_or_path),
            "training": _facts(run, name),
        },
    )


def _facts(run: Run, dataset: str) -> dict[str, str | int | float]:
    config, accelerator = run.config, run.accelerator
    return {
        "dataset": dataset,
        "samples_per_step": samples_per_step(config, accelerator.num_processes),
        "learning_rate": config.learning_rate,
        "head_learning_rate": config.head_learning_rate or config.learning_rate,
        "schedule": config.lr_scheduler,
        "seed": config.seed,
        "precision": "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision,
        "hardware": _hardware(accelerator.device, accelerator.num_processes),
    }


def _hardware(device: torch.device, processes: int) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"{processes} x {name}" if processes > 1 else name
