import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from onelora_vision import embedded
from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import fingerprint
from onelora_vision.backbones.fuse import fuse_qkv
from onelora_vision.backbones.vit import ViTBase, vit_adaptation
from onelora_vision.backbones.vit_heads import classifier_names, logits_of
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.methods.apply import apply_method, trainable_parameters


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An adapter of the embedded ViT for three new classes, with random values, and the model that it was saved from."""
    vit = ViTBase.load().fit(["ä", "b", "c"], seed=3)
    info = AdapterInfo(
        task="classification",
        method="onelora_norms",
        base=vit.source,
        base_fingerprint=fingerprint(vit.model, ["head"]),
        class_names=vit.class_names,
    )
    model = apply_method(vit.model, "onelora_norms", vit_adaptation(vit.model)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return save_adapter(model, tmp_path_factory.mktemp("trained") / "adapter", info), model


@pytest.mark.parametrize("file", ["", "adapter_model.safetensors"])
def test_a_loaded_classifier_answers_as_the_trained_one(trained, file):
    folder, model = trained
    vit = load_adapted(folder / file, device="cpu")
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(logits_of(vit.base.model, images), logits_of(model, images))
    found = vit.classify([Image.new("RGB", (50, 40), "red")])
    assert {name for name, _ in found[0]} == {"ä", "b", "c"}
    assert sum(probability for _, probability in found[0]) == pytest.approx(1, abs=1e-5)
    for wrong in (Image.new("RGB", (50, 40)), ["picture.png"]):
        with pytest.raises(InputError, match="classify takes a list of Pillow images"):
            vit.classify(wrong)


def test_fused_attention_is_fused_again(tmp_path):
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    vit = ViTBase.load(str(tmp_path / "base")).fit(["a", "b"], seed=0)
    mark = fingerprint(vit.model, classifier_names(vit.model))
    fuse_qkv(vit.model)
    model = apply_method(vit.model, "lora", vit_adaptation(vit.model)).eval()
    assert trainable_parameters(model) == (16 + 48) + (16 + 16) + 2 * (16 + 32) + 2 * 17
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    info = AdapterInfo("classification", "lora", vit.source, mark, class_names=["a", "b"], extra={"fuse_qkv": True})
    save_adapter(model, tmp_path / "adapter", info)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = logits_of(model, images)
        assert torch.equal(logits_of(load_adapted(tmp_path / "adapter", device="cpu").base.model, images), expected)


def test_another_base_is_refused(trained, tmp_path):
    shutil.copytree(embedded.VIT, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["blocks.3.mlp.fc1.weight"] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors")
    with pytest.raises(InputError, match="trained on another base"):
        load_adapted(trained[0], base=tmp_path / "other")


def test_an_adapter_of_another_task_is_refused(trained, tmp_path):
    model = trained[1]
    save_adapter(model, tmp_path / "a", AdapterInfo("generation", "onelora", "embedded"))
    with pytest.raises(InputError, match="an adapter for generation, not for classification"):
        load_adapted(tmp_path / "a", task="classification")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"] == "ONELORA"
