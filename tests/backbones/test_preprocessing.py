"""A transformers base sees the pixels of its own image processor, a timm base those of timm's transform."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.preprocessing import image_size, load_processor, measure
from onelora_vision.backbones.vit import ViTBase, vit_adaptation
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.methods.apply import apply_method

SQUARE = {"height": 24, "width": 24}
CROP = {"size": {"shortest_edge": 28}, "crop_size": SQUARE, "do_center_crop": True}
UNEVEN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}

# Settings of a preprocessor_config.json by the type of its processor, with a model type that uses it.
PROCESSORS = {
    "vit": ("ViTImageProcessor", {"size": SQUARE, "resample": 3}),
    "deit": ("DeiTImageProcessor", {"size": {"height": 28, "width": 28}, "crop_size": SQUARE, **UNEVEN}),
    "beit": ("BeitImageProcessor", {"size": {"height": 28, "width": 28}, "crop_size": SQUARE, "do_center_crop": True}),
    "dinov2": ("BitImageProcessor", {**CROP, **UNEVEN, "resample": 3}),
    "siglip": ("SiglipImageProcessor", {"size": SQUARE}),
    "clip": ("CLIPImageProcessor", CROP),
    "swin": ("ViTImageProcessor", {"size": SQUARE, **UNEVEN}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 24}, "crop_pct": 0.875}),
    "convnextv2": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "pvt": ("PvtImageProcessor", {"size": SQUARE}),
    "mobilevit": ("MobileViTImageProcessor", {"size": {"shortest_edge": 28}, "crop_size": SQUARE}),
    "levit": ("LevitImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": SQUARE}),
    "efficientnet": ("EfficientNetImageProcessor", {"size": SQUARE, "rescale_offset": True, "include_top": True}),
    "mobilenet_v2": ("MobileNetV2ImageProcessor", CROP),
    "poolformer": ("PoolFormerImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": SQUARE, "crop_pct": 0.9}),
    "segformer": ("SegformerImageProcessor", {"size": SQUARE}),
    "vit-unscaled": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "do_normalize": False}),
    "vit-legacy": ("ViTFeatureExtractor", {"size": 24}),
}


def write_processor(folder, kind):
    name, settings = PROCESSORS[kind]
    key = "feature_extractor_type" if name.endswith("Extractor") else "image_processor_type"
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps({key: name, **settings}))
    return str(folder)


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 61), (75, 30), (9, 9))]


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_are_those_of_the_processor(kind, tmp_path):
    base = write_processor(tmp_path, kind)
    processor, reference = load_processor(base), AutoImageProcessor.from_pretrained(base)
    config, is_reversed = measure(base, processor)
    transform = pickle.loads(
        pickle.dumps(
            ViTBase(model=None, data_config=config, processor=processor, reverses_channels=is_reversed).transform
        )
    )
    for picture in pictures():
        pixels = transform(picture)
        assert torch.equal(pixels, reference(images=picture, return_tensors="pt")["pixel_values"][0].float())
        assert pixels.shape == config["input_size"] and pixels.dtype == torch.float32


@pytest.mark.parametrize("kind", PROCESSORS)
def test_training_has_the_size_and_the_scale_of_the_processor(kind, tmp_path):
    base = write_processor(tmp_path, kind)
    processor = load_processor(base)
    vit = with_processor(measure(base, processor), processor)
    height, width = vit.data_config["input_size"][1:]
    flat = Image.new("RGB", (50, 40), (200, 100, 30))
    train = vit.training_transform(scale=(0.5, 1.0), hflip=0.5, color_jitter=None, normalize=True)
    assert train(flat).shape == (3, height, width)
    torch.testing.assert_close(train(flat), vit.transform(flat), atol=1e-4, rtol=1e-4)
    as_bytes = vit.training_transform(scale=(0.5, 1.0), hflip=0.5, color_jitter=None, normalize=False)(flat)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in vit.normalisation)
    torch.testing.assert_close((as_bytes / 255 - mean) / std, vit.transform(flat), atol=1e-4, rtol=1e-4)


def with_processor(measured, processor):
    config, is_reversed = measured
    return ViTBase(model=None, data_config=config, processor=processor, reverses_channels=is_reversed)


def test_mobilevit_takes_bgr(tmp_path):
    config, is_reversed = measure("x", load_processor(write_processor(tmp_path, "mobilevit")))
    assert is_reversed and config["mean"] == (0, 0, 0) and config["std"] == (1, 1, 1)


def test_dinov2s_crop_goes_before_the_size_in_its_config(tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model("dinov2", **sizes, num_labels=2))
    model.save_pretrained(tmp_path)
    write_processor(tmp_path, "dinov2")
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    vit = ViTBase.load(str(tmp_path))
    assert vit.data_config["input_size"] == (3, 28, 28) and vit.data_config["interpolation"] == "bicubic"
    assert vit.data_config["mean"] == (0.1, 0.2, 0.3)
    assert vit.transform(pictures()[0]).shape == (3, 28, 28)


def test_a_base_without_a_processor_has_the_size_of_its_config():
    assert image_size(AutoConfig.for_model("vit", image_size=[32, 48])) == (32, 48)
    assert image_size(AutoConfig.for_model("siglip", vision_config={"image_size": 56})) == (56, 56)
    assert image_size(AutoConfig.for_model("resnet")) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"image_processor_type": "ImageGPTImageProcessor", "size": SQUARE, "clusters": [[0, 0, 0]]},
            "gives .*input_ids",
        ),
        ({"image_processor_type": "ImageGPTImageProcessor"}, "takes no picture"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "its image processor gives"),
        ({"image_processor_type": "BitImageProcessor", "do_center_crop": False}, "images .* of one size"),
        ({"image_processor_type": "NoSuchImageProcessor"}, "its image processor cannot be loaded"),
    ],
)
def test_processors_that_cannot_feed_a_classifier(settings, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=message) as caught:
        measure(str(tmp_path), load_processor(str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_an_adapter_is_refused_when_its_base_makes_other_pixels(tmp_path):
    vit = ViTBase.load(save_vit(tmp_path / "base")).fit(["a", "b"])
    model = apply_method(vit.model, "onelora", vit_adaptation(vit.model))
    info = AdapterInfo("classification", "onelora", vit.source, class_names=["a", "b"])
    info.extra["preprocessing"] = vit.preprocessing
    save_adapter(model, tmp_path / "adapter", info)
    picture = pictures()[0]
    assert torch.equal(load_adapted(tmp_path / "adapter").base.transform(picture), vit.transform(picture))
    file = tmp_path / "base" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "resample": 0}))
    with pytest.raises(InputError, match=r"trained on pictures with resample 3, but .*base makes them with 0"):
        load_adapted(tmp_path / "adapter")


def test_settings_are_written_as_json_for_timm_too():
    settings = ViTBase.load().preprocessing
    assert settings["input_size"] == [3, 32, 32] and json.loads(json.dumps(settings)) == settings


def save_vit(folder):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model("vit", **sizes, image_size=24, patch_size=8)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    return write_processor(folder, "vit")


def test_a_model_that_does_not_take_its_processors_size_is_refused(tmp_path):
    base = save_vit(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(InputError, match="does not classify images of 224 x 224 pixels") as caught:
        ViTBase.load(base)
    assert "\n" not in str(caught.value)
