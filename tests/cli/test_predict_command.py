import json

import numpy as np
import pytest
from PIL import Image

from onelora_vision.adapters.files import AdapterInfo, fingerprint, save_adapter
from onelora_vision.backbones.depth_anything import depth_adaptation, load_depth_anything
from onelora_vision.backbones.vit import load_vit, replace_head, vit_adaptation
from onelora_vision.cli import main
from onelora_vision.methods import apply_method


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in {"one": (40, 30), "zwö": (33, 50)}.items():
        pixels = np.random.default_rng(len(name)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    vit = replace_head(load_vit(), ["ä", "b", "c"], seed=3)
    mark = fingerprint(vit.model, ["head"])
    info = AdapterInfo("classification", "onelora", vit.base, mark, class_names=vit.class_names)
    model = apply_method(vit.model, "onelora", vit_adaptation(vit.model))
    return save_adapter(model, tmp_path_factory.mktemp("classifier") / "adapter", info)


@pytest.fixture(scope="module")
def depth(tiny_depth_anything, tmp_path_factory):
    base = tmp_path_factory.mktemp("depth") / "base"
    tiny_depth_anything().save_pretrained(base)
    model = load_depth_anything(base)
    info = AdapterInfo("depth", "onelora", str(base), fingerprint(model, ["head"]), extra={"max_depth": 10})
    return save_adapter(apply_method(model, "onelora", depth_adaptation(model)), base.parent / "adapter", info)


def run(*argv) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, argv)])
    return ended.value.code


def test_classes_of_a_folder_of_pictures(classifier, pictures, capsys):
    assert run("--adapter", classifier, pictures, "--top", 2, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [str(pictures / "one.png"), str(pictures / "zwö.png")]
    for row in rows:
        shares = [entry["probability"] for entry in row["classes"]]
        assert len(shares) == 2 and shares == sorted(shares, reverse=True) and 0.5 < sum(shares) <= 1
    assert run("--adapter", classifier, pictures / "one.png") == 0
    printed = capsys.readouterr().out
    assert "one.png" in printed and "ä" in printed and "%" in printed


def test_depth_is_written_in_millimetres_and_in_colour(depth, pictures, tmp_path, capsys):
    assert run("--adapter", depth, pictures, "-o", tmp_path, "--npy", "--far", 10, "--json") == 0
    first = json.loads(capsys.readouterr().out)[0]
    metres = np.load(tmp_path / "one_depth.npy")
    assert metres.shape == (30, 40) and first["unit"] == "m" and first["max"] == pytest.approx(float(metres.max()))
    with Image.open(first["depth"]) as image:
        np.testing.assert_allclose(np.asarray(image) / 1000, metres, atol=0.0006)
    with Image.open(first["color"]) as image:
        assert image.size == (40, 30) and image.mode == "RGB"


def test_bad_input_is_named(classifier, pictures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    generation = tmp_path / "generation"
    model = apply_method(load_vit().model, "onelora", vit_adaptation(load_vit().model))
    save_adapter(model, generation, AdapterInfo("generation", "onelora", "embedded"))
    for arguments, message in (
        ((classifier, tmp_path / "broken.png"), "broken.png"),
        ((classifier, tmp_path / "empty"), "no pictures"),
        ((classifier, tmp_path / "nowhere.png"), "nowhere.png"),
        ((tmp_path / "nothing", pictures), "no such file"),
        ((generation, pictures), "an adapter for generation"),
        ((classifier, pictures, "--top", 0), "--top is 0"),
    ):
        assert run("--adapter", *arguments) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and message in error
