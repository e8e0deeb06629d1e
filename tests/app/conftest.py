"""Adapters of the embedded bases, made on the spot: what ships may be trained anew."""

import pytest
import torch

from onelora_vision.adapters.bases import load_base
from onelora_vision.adapters.files import AdapterInfo, save_adapter
from onelora_vision.backbones.depth_anything import depth_adaptation
from onelora_vision.backbones.dit import dit_adaptation
from onelora_vision.backbones.vit import vit_adaptation
from onelora_vision.methods import apply_method, find_method

ADAPTATIONS = {"generation": dit_adaptation, "depth": depth_adaptation, "classification": vit_adaptation}
PLACES = {"generation": "embedded", "depth": "embedded/depth", "classification": "embedded"}


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory):
    """Write an adapter with random values for an embedded base: ``make("generation", seed=1, method="lora")``."""

    def make(task, seed=1, method="onelora", class_names=("1", "2", "A"), place=None, size=0.05):
        info = AdapterInfo(task, find_method(method).name, PLACES[task])
        if task == "depth":
            info.extra = {"max_depth": 40}
        else:
            info.class_names = list(class_names)
        base = load_base(info)
        info.base_fingerprint = base.fingerprint
        model = apply_method(base.model, method, ADAPTATIONS[task](base.model), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += (
                    size * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean().clamp(0.1)
                )
        place = place or tmp_path_factory.mktemp("adapters") / f"{task}-{method}-{seed}.safetensors"
        return save_adapter(model, place, info)

    return make
