"""The whole model with the adapter merged into it, as its own library saves it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from onelora_vision.adapters.bases import output_of
from onelora_vision.adapters.formats.job import TORCH_DTYPES, Job, Written
from onelora_vision.errors import InputError
from onelora_vision.tuners import hosts


@torch.no_grad()
def write(job: Job, folder: Path) -> Written:
    """Merge and save."""
    for module, parts in job.layout.layers.items():
        if "onelora_beta" in parts and job.base.model.get_submodule(module).bias is None:
            raise InputError(f"{job.adapter.path}: {module} has no bias in the base, so its beta cannot be merged")
    base, inputs = job.base, job.base.example()
    if base.host == "diffusers":
        base.model.conditioning.time_proj.downscale_freq_shift = 1  # a pipeline cannot say otherwise
    plain = output_of(base.model, inputs)
    adapted = job.adapter.attach(base.model)
    hosts.check_mergeable(adapted.get_base_model(), job.layout.layers)  # adapters of other methods do not ask
    merged = adapted.merge_and_unload().eval()
    expected = output_of(merged, inputs)
    _SAVERS[base.host](job, merged, folder)
    return Written(["everything"], expected, plain)


def _save_pipeline(job: Job, merged: nn.Module, folder: Path) -> None:
    from onelora_vision.backbones.dit import save_pipeline

    pipeline = replace(job.base.loaded, transformer=merged)
    save_pipeline(pipeline, folder, TORCH_DTYPES[job.dtype], max_shard_size=job.max_shard_size)


def _save_timm(job: Job, merged: nn.Module, folder: Path) -> None:
    import timm

    labels = {"label_names": job.adapter.info.class_names} if job.adapter.info.class_names else {}
    model = merged.to(TORCH_DTYPES[job.dtype])
    timm.models.save_for_hf(model, folder, model_config=labels, safe_serialization=True)


def _save_transformers(job: Job, merged: nn.Module, folder: Path) -> None:
    from onelora_vision.backbones.fuse import unfuse_qkv

    unfuse_qkv(merged).to(TORCH_DTYPES[job.dtype]).save_pretrained(folder, max_shard_size=job.max_shard_size)
    processor = Path(job.base.source) / "preprocessor_config.json"
    if processor.is_file():
        (folder / processor.name).write_bytes(processor.read_bytes())


_SAVERS: dict[str, Callable] = {"diffusers": _save_pipeline, "timm": _save_timm, "transformers": _save_transformers}
