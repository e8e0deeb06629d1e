import json

import pytest
import torch
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from onelora_vision.backbones.depth_anything import (
    DepthAnythingBase,
    depth_adaptation,
    set_max_depth,
    small_depth_anything,
)
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method, trainable_parameters


@pytest.fixture(scope="module")
def tiny(tiny_depth_anything):
    return tiny_depth_anything


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    path = tmp_path_factory.mktemp("depth-anything")
    tiny().half().save_pretrained(path)
    return path


def predict(model, images):
    return DepthAnythingBase(model=model).depth(images)


def is_metric(model):
    return DepthAnythingBase(model=model).is_metric


IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_a_saved_model_loads_in_fp32_and_predicts_the_same(tiny, folder):
    model = DepthAnythingBase.load(folder).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    depth = predict(model.eval(), IMAGES)
    assert depth.shape == (2, 16, 16)
    torch.testing.assert_close(depth, predict(tiny().half().float(), IMAGES))
    assert depth.min() >= 0
    assert depth.max() <= 10


def test_images_are_normalized_as_the_checkpoints_expect(tiny):
    seen = []
    model = tiny()
    model.backbone.embeddings.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    predict(model, torch.tensor([0.485, 0.456, 0.406])[None, :, None, None].expand(1, 3, 16, 16))
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 16, 16), atol=1e-6, rtol=0)


def test_the_embedded_base_is_small_and_metric():
    model = DepthAnythingBase.load().model
    assert is_metric(model)
    assert model.config.max_depth == 10
    fresh = small_depth_anything(10)
    assert {name: p.shape for name, p in model.named_parameters()} == {n: p.shape for n, p in fresh.named_parameters()}
    assert sum(parameter.numel() for parameter in model.parameters()) * 2 < 4e6


def test_the_papers_counts_on_vit_l():
    backbone = Dinov2Config(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, out_indices=[5, 12, 18, 24],
        patch_size=14, image_size=518, reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=1024, fusion_hidden_size=256)
    with torch.device("meta"):
        model = DepthAnythingForDepthEstimation(config)
    adaptation = depth_adaptation(model)
    assert len(adaptation.target_modules) == 144
    assert sum(model.get_submodule(name).out_features for name in adaptation.target_modules) == 221_184
    norms = [model.get_submodule(name) for name in adaptation.norm_modules]
    assert sum(p.numel() for norm in norms for p in norm.parameters(recurse=False)) == 100_352
    assert adaptation.whole_modules == []


def test_only_the_encoder_is_adapted(tiny):
    model = tiny()
    adapted = apply_method(model, "onelora", depth_adaptation(model))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4 * 6
    assert all("backbone.encoder.layer." in name and "onelora" in name for name in trained)
    assert trainable_parameters(adapted) == 4 * (3 * 16 + 16 + 64 + 16)
    depth = predict(adapted, IMAGES)
    torch.testing.assert_close(depth, predict(tiny(), IMAGES))  # b starts at zero
    depth.sum().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)


def test_train_head_trains_the_head_whole_and_nothing_of_the_neck(tiny):
    model = tiny()
    adapted = apply_method(model, "onelora", depth_adaptation(model, train_head=True))
    assert isinstance(adapted.get_base_model().head, ModulesToSaveWrapper)
    whole = [n for n, p in adapted.named_parameters() if p.requires_grad and "modules_to_save" in n]
    assert len(whole) == 6
    assert all(".head." in name for name in whole)


@torch.no_grad()
def test_a_longer_range_keeps_the_odds_in_proportion_to_metres(tiny):
    model = tiny()
    before = predict(model, IMAGES)
    set_max_depth(model, 80)
    after = predict(model, IMAGES)
    # odds d / (10 - d) become an eighth: d' = 80 d / (80 - 7 d)
    torch.testing.assert_close(after, 80 * before / (80 - 7 * before), rtol=1e-4, atol=1e-4)
    assert model.config.max_depth == model.head.max_depth == 80
    set_max_depth(model, 80)
    torch.testing.assert_close(predict(model, IMAGES), after)
    set_max_depth(model, 10)
    torch.testing.assert_close(predict(model, IMAGES), before, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_relative_head_becomes_a_metric_one_that_starts_flat(tiny, tmp_path):
    model = tiny("relative", max_depth=1)
    assert not is_metric(model)
    set_max_depth(model, 20)
    assert is_metric(model)
    torch.testing.assert_close(predict(model, IMAGES), torch.full((2, 16, 16), 20 * torch.tensor(-1.0).sigmoid()))
    model.save_pretrained(tmp_path)
    reloaded = DepthAnythingBase.load(tmp_path).model
    assert is_metric(reloaded)
    assert reloaded.head.max_depth == 20


def test_relative_checkpoints_are_refused_where_metres_are_needed(tiny):
    DepthAnythingBase(model=tiny()).require_metric("a/metric-one", "silog")
    with pytest.raises(InputError, match=r"a/relative-one is a relative checkpoint .* give --max_depth"):
        DepthAnythingBase(model=tiny("relative")).require_metric("a/relative-one", "silog")


@pytest.mark.parametrize("max_depth", [0, -3, 2.5])
def test_ranges_that_are_none(tiny, max_depth):
    with pytest.raises(InputError, match="max_depth"):
        set_max_depth(tiny(), max_depth)


def test_what_is_no_depth_anything_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        DepthAnythingBase.load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"no config\.json there"):
        DepthAnythingBase.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(InputError, match="a 'dinov2' model, not a Depth Anything"):
        DepthAnythingBase.load(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(InputError, match="cannot be loaded as Depth Anything"):
        DepthAnythingBase.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be loaded as Depth Anything") as caught:
        DepthAnythingBase.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path, folder):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    without_mask = {name: value for name, value in weights.items() if not name.endswith("mask_token")}
    save_file(without_mask, tmp_path / "model.safetensors", metadata={"format": "pt"})
    DepthAnythingBase.load(tmp_path)
    del without_mask["head.conv2.weight"]
    save_file(without_mask, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"missing or of another shape: head\.conv2\.weight"):
        DepthAnythingBase.load(tmp_path)
