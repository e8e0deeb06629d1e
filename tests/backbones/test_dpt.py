"""A second family of depth models, which the scripts, commands and the app reach through its row in the table alone."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation

from onelora_vision.adapters.export import export
from onelora_vision.adapters.inspection import examine
from onelora_vision.backbones.dpt import DPTBase
from onelora_vision.backbones.table import base_class
from onelora_vision.budget.memory import plan
from onelora_vision.budget.parameters import count
from onelora_vision.cli.main import main as onelora
from onelora_vision.data.synthetic.scenes import render_scene
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from train_scripts.train_depth import main

SIZES = {"neck_hidden_sizes": [4, 4, 8, 8], "fusion_hidden_size": 8}
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
}


def plain_config():
    return DPTConfig(**SIZES, **ENCODER, patch_size=8, backbone_out_indices=[0, 1, 2, 3])


def dinov2_config():
    encoder = Dinov2Config(**ENCODER, patch_size=8, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    return DPTConfig(**SIZES, backbone_config=encoder)


def save(config, folder):
    torch.manual_seed(0)
    model = DPTForDepthEstimation(config)
    with torch.no_grad():
        for parameter in model.parameters():  # the library's own initialisation hardly lets anything through
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[plain_config, dinov2_config], ids=["vit", "dinov2"])
def folder(request, tmp_path_factory):
    return save(request.param(), tmp_path_factory.mktemp("dpt"))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of the script on two rendered streets, as users run it."""
    place = tmp_path_factory.mktemp("run")
    lines = []
    for index in range(2):
        scene = render_scene("streets", index, 32, 32)
        Image.fromarray(scene.image).save(place / f"{index}.png")
        np.save(place / f"{index}.npy", scene.depth)
        lines.append({"image": f"{index}.png", "depth": f"{index}.npy", "split": ("train", "test")[index]})
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    flags = ["--pretrained_model_name_or_path", str(folder), "--dataset_name", "jsonl", "--train_data_dir", str(place)]
    flags += ["--output_dir", str(place / "out"), "--report_to", "none", "--max_train_steps", "2", "--loss", "ssi"]
    with pytest.raises(SystemExit) as done:
        main(flags)
    assert done.value.code == 0
    return SimpleNamespace(adapter=place / "out" / "adapter", picture=place / "0.png", flags=flags)


@torch.no_grad()
def test_the_config_decides_the_family_and_the_encoder_is_adapted(folder):
    base = base_class("depth", folder).load(folder)
    assert isinstance(base, DPTBase) and not base.is_metric and base.max_depth is None
    adaptation = base.adaptation()
    assert len(adaptation.target_modules) == 4 * 6 and not adaptation.whole_modules
    assert all(".encoder.layer" in name for name in adaptation.target_modules)
    height, width = (32, 48) if "backbone" in dict(base.model.named_children()) else (32, 32)
    depth = base.depth(torch.rand(2, 3, height, width))
    assert depth.shape[1] * width == depth.shape[2] * height
    seen = []
    base.model.register_forward_pre_hook(
        lambda module, inputs, names: seen.append(names["pixel_values"]), with_kwargs=True
    )
    base.depth(torch.tensor(base.mean)[None, :, None, None].expand(1, 3, 32, 32))
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 32, 32), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("forked_reloads")
def test_what_is_trained_is_used_inspected_and_exported(trained, folder, tmp_path):
    results = json.loads((trained.adapter.parent / "results.json").read_text())
    assert results["metrics"]["after"] != results["metrics"]["before"]
    adapted = load_adapted(trained.adapter)
    depth = adapted(Image.open(trained.picture))
    assert depth.shape == (32, 32) and adapted.max_depth is None
    findings = {finding["check"] for finding in examine(trained.adapter, folder) if finding["level"] == "problem"}
    assert not findings & {"base", "fit", "bypassed"}
    for target in ("peft-lora", "merged"):
        assert export(trained.adapter, target, tmp_path / target)["error"] < 1e-4
    with pytest.raises(SystemExit) as done:
        onelora(["predict", "--adapter", str(trained.adapter), str(trained.picture), "-o", str(tmp_path / "maps")])
    assert done.value.code == 0
    np.testing.assert_allclose(np.load(tmp_path / "maps" / "0_depth.npy"), depth, rtol=1e-4)


def test_its_own_vit_takes_squares_alone(trained, folder):
    adapted = load_adapted(trained.adapter)
    assert adapted(Image.new("RGB", (90, 50))).shape == (50, 90)
    if "backbone" in dict(adapted.base.model.get_base_model().named_children()):
        assert adapted.base.resolution("32x48") == "32x48"
        return
    with pytest.raises(InputError, match="takes square images only, such as 32"):
        adapted.base.resolution("32x48")


def test_it_is_counted_and_planned(folder):
    assert count(str(folder), "onelora")["layers"] == 24
    assert plan(str(folder), "onelora", batch=1, precision="fp32")["plain"]["peak"] > 0
    assert count("dpt-large", "onelora")["adapter_parameters"] == 24 * (4 * 1024 + 4096 + 1024)


def test_a_range_in_metres_is_refused(folder, trained, capsys):
    with pytest.raises(InputError, match="predicts relative depth"):
        DPTBase.load(folder).fit(max_depth=10)
    with pytest.raises(SystemExit) as done:
        main([*trained.flags[:-2], "--max_depth", "10", "--overwrite"])
    errors = capsys.readouterr().err
    assert done.value.code == 2 and "error: DPT's head predicts relative depth" in errors, errors


def test_the_app_takes_it(folder, trained, tmp_path):
    from app.bases import Bases
    from onelora_vision.adapters.file import read_adapter

    adapter = read_adapter(trained.adapter)
    bases = Bases({"mine": folder}, fetch=lambda name: name)
    assert isinstance(bases.base(adapter.info), DPTBase)
