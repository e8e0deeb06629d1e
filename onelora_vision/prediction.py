"""Classify with an adapter: the base that its file names, the head that it trained, the classes that it knows."""

from dataclasses import replace
from pathlib import Path

import torch

from onelora_vision.adapters.files import fingerprint, read_adapter
from onelora_vision.backbones.fuse import fuse_qkv
from onelora_vision.backbones.vit import ViT, classifier_names, load_vit, replace_head
from onelora_vision.errors import InputError


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
    place = str(base or info.base)
    options = {key: info.extra.get(key) for key in ("architecture", "resolution")}
    vit = replace_head(load_vit(place, **options), info.class_names)
    found = fingerprint(vit.model, classifier_names(vit.model))
    if info.base_fingerprint and found != info.base_fingerprint:
        raise InputError(
            f"{adapter}: trained on another base than {place} (fingerprint {info.base_fingerprint}, found {found}); "
            f"the file names {info.base!r}"
        )
    if info.extra.get("fuse_qkv"):
        fuse_qkv(vit.model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return replace(vit, model=loaded.attach(vit.model).to(device).eval())
