"""A MiSS folder of PEFT: at rank 1, MiSS is 1LoRA without beta and gamma, and with the sum as compression.

PEFT computes ``W0 x + beta0 + b * sum_i x_i`` (`peft.tuners.miss`), so a layer's ``miss_block`` (1, d) is b itself.
"""

from pathlib import Path

import torch
from peft import MissConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from onelora_vision.adapters.file import Adapter, write_adapter
from onelora_vision.adapters.formats.job import Job, Written
from onelora_vision.adapters.formats.reading import Found, Source, own_changes
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.adapters.layout import Layout, layout_of
from onelora_vision.adapters.lowrank import LowRank, low_rank
from onelora_vision.backbones.base import Base
from onelora_vision.errors import InputError
from onelora_vision.tuners.matching import exact_pattern


def write(job: Job, folder: Path) -> Written:
    """Write the folder.

    Raises:
        InputError: the adapter has more than b; the message names it and a format that can hold it.
    """
    if problem := _more_than_b(job.adapter):
        raise InputError(f"{job.adapter.path}: MiSS cannot hold {problem}; export with --to {_other_format(job)}")
    found = job.stock()
    config = MissConfig(
        r=1,
        target_modules=exact_pattern(found.changes) if found.changes else DUMMY_TARGET_MODULES,
        modules_to_save=list(found.whole) or None,
    )
    layers = {module: {"miss_block": change.up.t().clone()} for module, change in found.changes.items()}
    write_adapter(config, Layout(layers, found.whole).to_tensors(), job.info("miss"), folder)
    return job.written(found)


def _more_than_b(adapter: Adapter) -> str:
    """Name what an adapter has in addition to b, which MiSS at rank 1 cannot hold; empty if there is nothing."""
    config, kind = adapter.config, kind_of(adapter.config)
    if not kind.vectors:
        return f"{kind.title}, only 1LoRA"
    parts = [vector for name, vector in kind.vectors.items() if name in kind.expected_parts(config) and vector != "b"]
    if config.use_sum and config.compression != "sum":
        parts.append(f"the {config.compression} compression")
    return " and ".join(parts)


def _other_format(job: Job) -> str:
    try:
        low_rank(job.adapter, job.layout, job.base.model)
    except InputError:
        return "merged"
    return "peft-lora"


def read(source: Source, base: Base) -> Found:
    """Read the folder.

    Raises:
        InputError: the rank is not 1.
    """
    if source.config.r != 1:
        raise InputError(f"{source.path}: not 1LoRA: MiSS with r={source.config.r}, while 1LoRA is MiSS with r=1")
    layout = layout_of(source.config, source.tensors, str(source.path))
    # A single column of ones is enough: b does not depend on the layer's width, and q, k, v may be fused in the base.
    changes = {
        module: LowRank(torch.ones(1, 1), parts["miss_block"].t().float()) for module, parts in layout.layers.items()
    }
    return Found(own_changes(changes, base), layout.whole)
