"""Classify with an adapter: the base that its file names, the head that it trained, the classes that it knows."""

from dataclasses import replace
from pathlib import Path

import torch

from onelora_vision.adapters.bases import load_base, require_same_base
from onelora_vision.adapters.file import read_adapter
from onelora_vision.backbones.vit import ViT
from onelora_vision.errors import InputError
from onelora_vision.runtime.device import choose_device


def load_classifier(
    adapter: str | Path, base: str | Path | None = None, device: str | torch.device | None = None
) -> ViT:
    """Load an adapter file or folder of `train_classification` together with its base, for `predict_classes`.

    Args:
        adapter: a folder, or a single ``.safetensors`` file.
        base: where the base is, if not where the adapter's file says.
        device: by default CUDA where there is one.

    Raises:
        InputError: not a classification adapter, or another base than it was trained on.
    """
    loaded = read_adapter(adapter)
    info = loaded.info
    if info.task != "classification" or not info.class_names:
        raise InputError(f"{adapter}: an adapter for {info.task or 'no task that is named'}, not for classification")
    found = load_base(info, base)
    require_same_base(loaded, found)
    device = choose_device(device)
    return replace(found.loaded, model=loaded.attach(found.model).to(device).eval())
