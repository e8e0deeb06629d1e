"""Finding and replacing the head of an image classifier of timm or transformers."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from onelora_vision.backbones.class_names import match_classes
from onelora_vision.errors import InputError


def classifier_names(model: nn.Module) -> list[str]:
    """Full names of the Linear layers that compute the logits; empty if the model has no head.

    timm records them. In transformers, they are next to the base model and have one output per label.
    """
    if hasattr(model, "pretrained_cfg"):
        names = model.pretrained_cfg.get("classifier") or ()
        names, modules = [names] if isinstance(names, str) else list(names), dict(model.named_modules())
        return [name for name in names if isinstance(modules.get(name), nn.Linear)]
    return [
        f"{child}.{name}".rstrip(".")
        for child, part in model.named_children()
        if not isinstance(part, PreTrainedModel)
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]


def require_heads(model: nn.Module) -> list[str]:
    if getattr(model, "num_classes", None) == 0:
        raise InputError(f"{type(model).__name__} has no classification head: give the number of classes to make one")
    heads = classifier_names(model)
    if not heads:
        raise InputError(f"{type(model).__name__} has no Linear classification layer, so it cannot be fine-tuned here")
    return heads


def replace_head(model: nn.Module, names: list[str], known: Sequence[str], seed: int = 0, fresh: bool = False) -> None:
    """Replace the head as described in `ViTBase._fit`; ``known`` are the classes of the current head."""
    if getattr(model, "num_classes", None) == 0:
        model.reset_classifier(len(names))
    found = {} if fresh else match_classes(names, known).rows
    rows = [found[name] for name in names] if set(names) <= set(found) else None
    generator = torch.Generator().manual_seed(seed)
    for place in require_heads(model):
        old = model.get_submodule(place)
        head = nn.Linear(old.in_features, len(names), bias=old.bias is not None)
        with torch.no_grad():
            nn.init.trunc_normal_(head.weight, std=0.02, a=-0.04, b=0.04, generator=generator)
            if rows is not None:
                head.weight.copy_(old.weight[rows])
            if old.bias is not None:
                head.bias.copy_(torch.zeros(len(names)) if rows is None else old.bias[rows])
        model.set_submodule(place, head.to(old.weight))
    _record_classes(model, names)


def _record_classes(model: nn.Module, names: list[str]) -> None:
    """Record the classes where the host's own code looks them up."""
    if hasattr(model, "pretrained_cfg"):
        model.num_classes = len(names)
    else:
        model.num_labels = model.config.num_labels = len(names)
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: k for k, name in enumerate(names)}


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (B, classes) for normalised images (B, 3, H, W), for timm and transformers models."""
    output = model(images)
    return output if isinstance(output, torch.Tensor) else output.logits
