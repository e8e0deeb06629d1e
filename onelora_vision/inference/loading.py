"""Loading of adapters with their bases, used by the command line, the app and users alike."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from onelora_vision.adapters.bases import load_base, require_same_base
from onelora_vision.adapters.file import read_adapter
from onelora_vision.adapters.hub import local_adapter
from onelora_vision.backbones.table import TASKS, named
from onelora_vision.errors import InputError
from onelora_vision.runtime.device import choose_device

if TYPE_CHECKING:
    from onelora_vision.inference.classification import Classifier
    from onelora_vision.inference.depth import DepthEstimator
    from onelora_vision.inference.generation import Generator
    from onelora_vision.inference.language import Answerer


def load_adapted(
    adapter: str | Path,
    base: str | Path | None = None,
    device: str | torch.device | None = None,
    *,
    task: str | None = None,
) -> "Generator | Classifier | DepthEstimator | Answerer":
    """Load an adapter together with its base, in eval mode.

    Args:
        adapter: a folder or a single ``.safetensors`` file written by the training scripts, or a hub id.
        base: where the base is, if different from the location in the adapter's file.
        device: default: CUDA if available.
        task: the task that the adapter must be for; None accepts any.

    Returns a `Generator`, a `Classifier`, a `DepthEstimator` or an `Answerer`, depending on the adapter's task.

    Raises:
        InputError: not an adapter, an adapter for another task, or a different base than it was trained on.
    """
    loaded = read_adapter(local_adapter(adapter))
    info = loaded.info
    if info.task not in TASKS or task not in (None, info.task):
        raise InputError(
            f"{adapter}: an adapter for {info.task or 'no task that is named'}, not for {task or ' or '.join(TASKS)}"
        )
    device = choose_device(device)
    found = load_base(info, base, as_trained=True)
    require_same_base(info, loaded.path, found)
    found.model = loaded.attach(found.model).to(device).eval()
    return named(TASKS[info.task].model)(found, info)
