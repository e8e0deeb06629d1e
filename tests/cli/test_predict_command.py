import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onelora_vision.adapters.file import read_adapter, save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import fingerprint
from onelora_vision.backbones.depth_anything import DepthAnythingBase, depth_adaptation
from onelora_vision.backbones.vit import ViTBase, vit_adaptation
from onelora_vision.cli import main
from onelora_vision.methods.apply import apply_method


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in {"one": (40, 30), "zwö": (33, 50)}.items():
        pixels = np.random.default_rng(len(name)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    vit = ViTBase.load().fit(["ä", "b", "c"], seed=3)
    mark = fingerprint(vit.model, ["head"])
    info = AdapterInfo("classification", "onelora", vit.source, mark, class_names=vit.class_names)
    model = apply_method(vit.model, "onelora", vit_adaptation(vit.model))
    return save_adapter(model, tmp_path_factory.mktemp("classifier") / "adapter", info)


@pytest.fixture(scope="module")
def depth(tiny_depth_anything, tmp_path_factory):
    base = tmp_path_factory.mktemp("depth") / "base"
    tiny_depth_anything().save_pretrained(base)
    model = DepthAnythingBase.load(base).model
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


@pytest.mark.parametrize("task", ["classifier", "depth"])
def test_unreadable_pictures_are_an_error_or_left_out(task, request, pictures, tmp_path, capsys, caplog):
    adapter, folder = request.getfixturevalue(task), tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "broken.png").write_bytes(b"broken")
    output = ("-o", tmp_path / "out") if task == "depth" else ()
    common = ("--adapter", adapter, folder, *output, "--json")
    assert run(*common) == 2
    assert "broken.png" in (error := capsys.readouterr().err) and "--on_bad_image skip" in error
    assert not list(tmp_path.glob("out/*.png"))
    assert run(*common, "--on_bad_image", "skip") == 0
    assert [Path(row["image"]).name for row in json.loads(capsys.readouterr().out)] == ["one.png", "zwö.png"]
    assert "broken.png" in caplog.messages[0] and caplog.messages[1].startswith("1 of 3 images were skipped")
    assert run(*common[:2], folder / "broken.png", *common[3:], "--on_bad_image", "skip") == 2
    assert "none of the 1 images can be read" in capsys.readouterr().err


def test_depth_maps_replace_only_depth_maps(depth, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert run("--adapter", depth, pictures, "-o", out, "--npy") == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert run("--adapter", depth, pictures, "-o", out) == 2
    assert "set --overwrite" in capsys.readouterr().err
    assert run("--adapter", depth, pictures, "-o", out, "--overwrite") == 0
    assert not list(out.glob("*.npy"))  # of the run before
    (out / "zwö_color.png").write_bytes(b"mine")
    before = (out / "one_color.png").stat().st_mtime_ns
    assert run("--adapter", depth, pictures, "-o", out, "--overwrite") == 2
    assert "zwö_color.png" in capsys.readouterr().err
    assert (out / "zwö_color.png").read_bytes() == b"mine" and (out / "one_color.png").stat().st_mtime_ns == before
    assert run("--adapter", depth, pictures, "-o", pictures / "depth") == 2
    assert run("--adapter", depth, pictures, "-o", depth) == 2
    assert not (pictures / "depth").exists() and read_adapter(depth)


def test_depth_maps_are_not_pictures(depth, pictures, tmp_path, capsys):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    assert run("--adapter", depth, *folder.iterdir(), "-o", folder) == 0
    capsys.readouterr()
    assert run("--adapter", depth, folder, "-o", tmp_path / "again", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_the_longer_side_of_a_very_long_picture_is_bounded(classifier, depth, tmp_path, capsys, caplog):
    Image.new("RGB", (4000, 1)).save(tmp_path / "line.png")
    assert run("--adapter", depth, tmp_path / "line.png", "-o", tmp_path / "out") == 0
    assert "4000x1 pixels, more than 8 times as long as wide" in capsys.readouterr().err
    with Image.open(tmp_path / "out" / "line_depth.png") as image:
        assert image.size == (4000, 1)
    assert run("--adapter", classifier, tmp_path / "line.png") == 0
    assert "of 4000x1 pixels only the middle 8 are used" in caplog.messages[0]


def test_bad_input_is_named(classifier, pictures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    generation = tmp_path / "generation"
    model = apply_method(ViTBase.load().model, "onelora", vit_adaptation(ViTBase.load().model))
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


@pytest.mark.parametrize("flag", [["-o", "x"], ["--npy"], ["--near", "1"], ["--overwrite"]])
def test_flags_of_depth_are_refused_for_a_classifier(onelora, classifier, pictures, flag):
    code, _, err = onelora("predict", "--adapter", classifier, pictures, *flag)
    assert code == 2 and "is for depth" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--near", "5", "--far", "2"], "--near 5 and --far 2: must be depths in metres, the near one smaller"),
        (["--near", "nan"], "--near nan and --far inf"),
        (["--far", "0"], "--near 0 and --far 0"),
        (["--top", "3"], "--top is for classifiers"),
    ],
)
def test_flags_that_make_no_sense_for_depth_are_refused(onelora, depth, pictures, flags, message):
    code, _, error = onelora("predict", "--adapter", depth, pictures, *flags)
    assert code == 2 and message in error
