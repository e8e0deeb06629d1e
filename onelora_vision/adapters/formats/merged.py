"""The whole model with the adapter merged, as saved by its own library."""

from pathlib import Path

import torch
from torch import nn

from onelora_vision.adapters.formats.job import TORCH_DTYPES, Job, Written
from onelora_vision.backbones.base import output_of
from onelora_vision.errors import InputError, one_line
from onelora_vision.tuners import hosts


def write(job: Job, folder: Path) -> Written:
    """Merge and save."""
    model, written = merge(job)
    job.base.save_merged(model, folder, TORCH_DTYPES[job.dtype], job.max_shard_size)
    return written


@torch.no_grad()
def merge(job: Job) -> tuple[nn.Module, Written]:
    """Merge the adapter into the base's network, and return it with its outputs.

    Raises:
        InputError: a change cannot be merged into the base's weights.
    """
    for module, parts in job.layout.layers.items():
        if "onelora_beta" in parts and job.base.model.get_submodule(module).bias is None:
            raise InputError(f"{job.adapter.path}: {module} has no bias in the base, so its beta cannot be merged")
    base, inputs = job.base, job.base.example()
    plain = output_of(base.model, inputs)
    adapted = job.adapter.attach(base.model)
    hosts.check_mergeable(adapted.get_base_model(), job.layout.layers)  # the tuners of other methods do not check
    try:
        merged = adapted.merge_and_unload().eval()
    except (NotImplementedError, ValueError) as error:  # a method of PEFT that cannot merge, at all or on such layers
        raise InputError(
            f"{job.adapter.path}: {job.adapter.info.method} cannot be merged into this base ({one_line(error, 200)}); use "
            "the adapter as it is"
        ) from error
    return merged, Written(["everything"], output_of(merged, inputs), plain)
