"""Families of image classifiers in timm and transformers: each trains, saves, reloads and merges, or is refused in one line.

``python tests/backbones/test_families.py`` prints the table of all of them.
"""

import copy
import tempfile
from pathlib import Path

import torch

from onelora_vision.adapters.files import AdapterInfo, read_adapter, save_adapter
from onelora_vision.backbones.vit import ViT, logits_of, replace_head, vit_adaptation
from onelora_vision.methods import apply_method
from onelora_vision.tuners import probe_gradients

CLASSES = ["a", "b", "c"]


def timm_modules():
    from timm.models._registry import _module_to_models

    return sorted(_module_to_models)


# The smallest variant of each timm module, made smaller where its arguments allow.
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
STAGES = {"depths": (1, 1, 1, 1)}
TIMM = {
    "beit": ("beit_base_patch16_224", {"img_size": 32, "patch_size": 8, **SMALL}),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 32, "patch_size": 8, **SMALL}),
    "vision_transformer": ("test_vit", {"img_size": 32}),
}


def build_timm(module, device=None):
    import timm

    name, options = TIMM[module]
    with torch.device(device or "cpu"):
        model = timm.create_model(name, num_classes=3, **options)
    side = options.get("img_size") or model.pretrained_cfg["input_size"][-1]
    return model, (3, side, side)


@torch.no_grad()
def awaken(model):
    """Random values for everything, so that no gate of the initialisation is closed."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def check(model, size):
    """Train a step, save, reload and merge; the number of adapted layers."""
    torch.manual_seed(0)
    model = replace_head(ViT(model, {}, None, "base"), CLASSES).model
    adaptation = vit_adaptation(model)
    base = copy.deepcopy(awaken(model))
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = logits_of(base, images)
    assert expected.shape == (2, 3)
    adapted = apply_method(model, "onelora", adaptation)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(adapted.eval(), images), expected, atol=1e-4, rtol=1e-4)
    logits_of(adapted.train(), images).square().sum().backward()
    probe_gradients(adapted)
    vectors = {name: p for name, p in adapted.named_parameters() if "onelora_" in name}
    still = [name for name, vector in vectors.items() if not vector.grad.abs().max() > 0]
    assert len(vectors) == len(adaptation.target_modules) and not still, still
    # the step in training mode has moved the running statistics of batch norms, which are the base's
    base.load_state_dict({k: v for k, v in plain_state(adapted).items() if k in base.state_dict()}, strict=False)
    with torch.no_grad():
        for vector in vectors.values():
            vector.uniform_(-0.01, 0.01)
        trained = logits_of(adapted.eval(), images)
        assert not torch.allclose(trained, expected)
        with tempfile.TemporaryDirectory() as place:
            save_adapter(adapted, Path(place) / "adapter", AdapterInfo("classification", "onelora", "base"))
            again = read_adapter(Path(place) / "adapter").attach(base).eval()
        assert torch.equal(logits_of(again, images), trained)
        merged = adapted.merge_and_unload().eval()
        torch.testing.assert_close(logits_of(merged, images), trained, atol=1e-3, rtol=1e-3)
    return len(vectors)


def plain_state(adapted):
    return {key.replace(".base_layer", ""): value for key, value in adapted.get_base_model().state_dict().items()}
