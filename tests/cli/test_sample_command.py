import json

import numpy as np
import pytest
import torch
from PIL import Image

from onelora_vision.adapters.files import AdapterInfo, save_adapter
from onelora_vision.backbones.dit import dit_adaptation, load_dit
from onelora_vision.generator import load_generator
from onelora_vision.methods import apply_method
from onelora_vision.sampling_settings import SamplingSettings


@pytest.fixture(scope="module")
def adapter(dit_folder, tmp_path_factory):
    base = load_dit(dit_folder)
    names = ["pie", "sushi", "crème brûlée"]
    base.transformer.set_classes(names, generator=torch.Generator().manual_seed(0))
    model = apply_method(base.transformer, "onelora", dit_adaptation(base.transformer))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    info = AdapterInfo("generation", "onelora", str(dit_folder), class_names=names, null_class=3)
    info.extra = {"sampling": {"sampler": "ddim", "steps": 3}}
    return save_adapter(model, tmp_path_factory.mktemp("adapter") / "a", info)


def test_images_can_be_drawn_again_from_what_they_say(onelora, adapter, tmp_path):
    code, result, _ = onelora(
        "sample", adapter, "-o", tmp_path, "--classes", "2,PIE", "--num_images", 3, "--seed", 5, "--device", "cpu",
        "--formats", "png,grid,npz", "--guidance_interval", 0, 0.9, "--json",
    )  # fmt: skip
    assert code == 0 and result["images"] == 6 and result["classes"] == ["crème brûlée", "pie"]
    names = [f"{label:04d}-{seed:05d}.png" for label in (0, 2) for seed in (5, 6, 7)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "grid.png", "samples.npz"]
    image = Image.open(tmp_path / "0002-00006.png")
    assert image.text["onelora.class"] == "crème brûlée" and image.text["onelora.label"] == "2"
    settings = json.loads(image.text["onelora.settings"])
    assert settings.pop("adapter") == str(adapter) and settings.pop("adapted") is True
    settings["guidance_interval"] = tuple(settings["guidance_interval"])
    assert (settings["sampler"], settings["steps"], settings["guidance_interval"]) == ("ddim", 3, (0, 0.9))
    again = load_generator(adapter, device="cpu").sample(
        [image.text["onelora.class"]], [int(image.text["onelora.seed"])], SamplingSettings(**settings)
    )
    difference = np.array(image).astype(int) - (again[0].permute(1, 2, 0) * 255).round().int().numpy()
    assert np.abs(difference).max() <= 1
    archive = np.load(tmp_path / "samples.npz")
    assert archive["arr_0"].dtype == np.uint8 and archive["arr_0"].shape == (6, 16, 16, 3)
    assert archive["arr_1"].tolist() == [2, 2, 2, 0, 0, 0]
    assert np.array_equal(archive["arr_0"][1], np.array(image))
    assert Image.open(tmp_path / "grid.png").size == (3 * 18 - 2, 2 * 18 - 2)


def test_the_base_alone_and_bad_input(onelora, adapter, tmp_path):
    common = ("sample", adapter, "-o", tmp_path, "--num_images", 1, "--formats", "npz", "--device", "cpu")
    onelora(*common)
    adapted = np.load(tmp_path / "samples.npz")["arr_0"]
    onelora(*common, "--without_adapter")
    assert adapted.shape == (3, 16, 16, 3)
    assert not np.array_equal(adapted, np.load(tmp_path / "samples.npz")["arr_0"])
    for flags, message in {
        ("--classes", "sushy"): "did you mean 'sushi'",
        ("--formats", "pgn"): "did you mean 'png'",
        ("--num_images", 0): "--num_images",
        ("--sampler", "dimm"): "did you mean 'ddim'",
    }.items():
        code, _, error = onelora(*common, *flags)
        assert code == 2 and message in error
