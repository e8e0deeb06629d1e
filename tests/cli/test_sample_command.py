import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from onelora_vision.adapters.file import read_adapter, save_adapter, write_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.dit import DiTBase, dit_adaptation
from onelora_vision.cli import sample
from onelora_vision.data.images import list_images
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.inference.generation import Generator
from onelora_vision.inference.loading import load_adapted
from onelora_vision.methods.apply import apply_method
from onelora_vision.plots.depth import save_depth_png
from onelora_vision.plots.figures import saved_figure


@pytest.fixture(scope="module")
def adapter(dit_folder, tmp_path_factory):
    base = DiTBase.load(dit_folder)
    names = ["pie", "sushi", "crème brûlée"]
    base.model.set_classes(names, generator=torch.Generator().manual_seed(0))
    model = apply_method(base.model, "onelora", dit_adaptation(base.model))
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
        "--formats", "png,grid,npz", "--guidance_interval", "0,0.9", "--json",
    )  # fmt: skip
    assert code == 0 and result["images"] == 6 and result["classes"] == ["crème brûlée", "pie"]
    names = [f"{label:04d}-{seed:05d}.png" for label in (0, 2) for seed in (5, 6, 7)]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [".onelora-files", *names, "samples.json", "samples.npz", "sheets"]
    )
    image = Image.open(tmp_path / "0002-00006.png")
    assert image.text["onelora.class"] == "crème brûlée" and image.text["onelora.label"] == "2"
    settings = json.loads(image.text["onelora.settings"])
    assert settings.pop("adapter") == str(adapter) and settings.pop("adapted") is True
    settings["guidance_interval"] = tuple(settings["guidance_interval"])
    assert (settings["sampler"], settings["steps"], settings["guidance_interval"]) == ("ddim", 3, (0, 0.9))
    again = load_adapted(adapter, device="cpu").sample(
        [image.text["onelora.class"]], [int(image.text["onelora.seed"])], SamplingSettings(**settings)
    )
    difference = np.array(image).astype(int) - (again[0].permute(1, 2, 0) * 255).round().int().numpy()
    assert np.abs(difference).max() <= 1
    archive = np.load(tmp_path / "samples.npz")
    assert archive["arr_0"].dtype == np.uint8 and archive["arr_0"].shape == (6, 16, 16, 3)
    assert archive["arr_1"].tolist() == [2, 2, 2, 0, 0, 0]
    assert np.array_equal(archive["arr_0"][1], np.array(image))
    width, height = Image.open(tmp_path / "sheets" / "grid.png").size
    assert width > 3 * 112 and height > 2 * 112  # a cell is seven times an image's 16 pixels


def test_the_base_alone_and_bad_input(onelora, adapter, tmp_path):
    common = ("sample", adapter, "-o", tmp_path, "--num_images", 1, "--formats", "npz", "--device", "cpu")
    onelora(*common)
    adapted = np.load(tmp_path / "samples.npz")["arr_0"]
    onelora(*common, "--without_adapter", "--overwrite")
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


def test_the_base_guides_and_the_pictures_say_so(onelora, adapter, tmp_path):
    common = ("sample", adapter, "--num_images", 1, "--device", "cpu", "--steps", 2)
    guided = (*common, "--guidance_scale", 2.5, "--guidance_base")
    code, result, _ = onelora(*guided, "-o", tmp_path / "a", "--json")
    assert code == 0 and result["settings"]["guidance_base"] is True
    image = Image.open(tmp_path / "a" / "0000-00000.png")
    assert json.loads(image.text["onelora.settings"])["guidance_base"] is True
    assert onelora(*common, "--guidance_scale", 2.5, "--no_guidance_base", "-o", tmp_path / "b")[0] == 0
    for wrong in ("--no_guidance_base", "--without_adapter"):
        assert onelora(*guided, wrong, "-o", tmp_path / "c")[0] == 2 and not (tmp_path / "c").exists()
    for flag, value in (("--steps", 1001), ("--guidance_channels", 9)):
        assert onelora(*common, flag, value, "-o", tmp_path / "c")[0] == 2 and not (tmp_path / "c").exists()
    assert not np.array_equal(np.array(image), np.array(Image.open(tmp_path / "b" / "0000-00000.png")))
    code, _, error = onelora(*guided, "-o", tmp_path / "b")
    assert code == 2 and "holds samples of another request (guidance_base differ)" in error
    code, _, error = onelora(*common, "--guidance_base", "--guidance_scale", 1, "-o", tmp_path / "c")
    assert code == 2 and "no effect with --guidance_scale 1" in error and not (tmp_path / "c").exists()


def test_what_an_adapter_was_evaluated_with_is_the_default_and_its_guidance_is_not_doubled(onelora, adapter, tmp_path):
    trained = read_adapter(adapter)
    trained.info.extra = {"sampling": {"steps": 2, "guidance_scale": 2.5, "guidance_base": True}}
    write_adapter(trained.config, trained.tensors, trained.info, tmp_path / "guided")
    common = ("--num_images", 1, "--device", "cpu", "--json")
    code, result, _ = onelora("sample", tmp_path / "guided", "-o", tmp_path / "a", *common)
    assert code == 0 and result["settings"]["guidance_base"] is True
    trained.info.extra["training"] = {"guidance_distillation": 1.5}
    write_adapter(trained.config, trained.tensors, trained.info, tmp_path / "distilled")
    distilled = ("sample", tmp_path / "distilled", *common)
    code, result, _ = onelora(*distilled, "-o", tmp_path / "b")
    assert code == 0 and result["settings"]["guidance_scale"] == 1 and result["settings"]["guidance_base"] is False
    for flags in (("--guidance_scale", 2), ("--guidance_base",)):
        code, _, error = onelora(*distilled, "-o", tmp_path / "c", *flags)
        assert code == 2 and "is guided already: it needs --guidance_scale 1" in error
        assert not (tmp_path / "c").exists()


def test_the_grid_is_not_a_sample(onelora, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    common = ("sample", adapter, "--num_images", 4, "--device", "cpu")
    assert onelora(*common, "-o", tmp_path / "with", "--formats", "png,grid,npz")[0] == 0
    assert onelora(*common, "-o", tmp_path / "without", "--formats", "png")[0] == 0
    # a copy of the grid among the samples is not one either, nor are the plots of a run and depth maps
    shutil.copy(tmp_path / "with" / "sheets" / "grid.png", tmp_path / "with" / "copy.png")
    with saved_figure(tmp_path / "with" / "loss.png", (2, 2)):
        pass
    save_depth_png(tmp_path / "with" / "depth.png", np.ones((9, 9)))
    found = [
        onelora("fid", tmp_path / "without", tmp_path / name, "--features", "embedded", "--device", "cpu", "--json")[1]
        for name in ("with", "without")
    ]
    assert [result["generated_images"] for result in found] == [12, 12]
    assert found[0]["metrics"] == found[1]["metrics"]
    assert len(list_images(tmp_path / "with")) == 12


def test_an_interrupted_command_is_finished_by_the_same_command(onelora, adapter, tmp_path, monkeypatch):
    common = ("sample", adapter, "--num_images", 2, "--device", "cpu", "--batch_size", 1)
    assert onelora(*common, "-o", tmp_path / "whole")[0] == 0
    original, drawn = Generator.iter_samples, []

    def stops_at_the_fourth(self, *args, **options):
        for images in original(self, *args, **options):
            if len(drawn) == 3:
                raise KeyboardInterrupt
            drawn.append(images)
            yield images

    monkeypatch.setattr(Generator, "iter_samples", stops_at_the_fourth)
    assert onelora(*common, "-o", tmp_path / "out")[0] == 130
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}
    assert len(before) == 3
    drawn.clear()
    assert onelora(*common, "-o", tmp_path / "out")[0] == 0
    assert (
        len(drawn) == 3
        and before.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*")}.items()
    )
    whole, out = (sorted(p for p in (tmp_path / name).rglob("*.png")) for name in ("whole", "out"))
    assert [p.read_bytes() for p in whole] == [p.read_bytes() for p in out]


def test_other_samples_and_foreign_files_are_not_replaced(onelora, adapter, tmp_path):
    out = tmp_path / "out"
    common = ("sample", adapter, "-o", out, "--num_images", 1, "--device", "cpu")
    assert onelora(*common)[0] == 0
    code, _, error = onelora(*common, "--steps", 2)
    assert code == 2 and "holds samples of another request (steps differ)" in error
    assert onelora(*common, "--steps", 2, "--classes", "PIE", "--overwrite")[0] == 0
    assert [path.name for path in out.glob("*.png")] == ["0000-00000.png"]
    (out / "mine.png").write_bytes(b"mine")
    code, _, error = onelora(*common, "--overwrite")
    assert code == 2 and "mine.png" in error and (out / "mine.png").read_bytes() == b"mine"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"mine")
    code, _, error = onelora("sample", adapter, "-o", tmp_path / "photos", "--overwrite")
    assert code == 2 and [p.name for p in (tmp_path / "photos").iterdir()] == ["a.png"]
    code, _, error = onelora("sample", adapter, "-o", adapter / "images")
    assert code == 2 and "choose another output" in error


def test_the_help_has_groups_defaults_and_examples_that_parse(onelora):
    code, printed, _ = onelora("sample", "--help")
    assert code == 0 and "\nsampling:\n" in printed and "\nhardware:\n" in printed and "(default: 64)" in printed
    parser = argparse.ArgumentParser(exit_on_error=False)
    sample.add_arguments(parser)
    examples = [line.split()[2:] for line in printed.partition("\nexamples:\n")[2].splitlines() if line.strip()]
    assert len(examples) == 3 and all(parser.parse_args(words).adapter for words in examples)


def test_an_interval_of_one_number_is_one_line(onelora, tmp_path):
    code, _, error = onelora("sample", tmp_path, "-o", tmp_path / "out", "--guidance_interval", "0.5")
    assert code == 2 and error.startswith("error: --guidance_interval is '0.5', but must be 2 numbers with a comma")
    assert error.count("\n") == 1


def test_another_base_is_another_request_but_another_path_is_not(onelora, adapter, dit_folder, tmp_path):
    out = tmp_path / "out"
    common = ("sample", adapter, "-o", out, "--num_images", 1, "--device", "cpu", "--steps", 1)
    assert onelora(*common)[0] == 0
    (tmp_path / "again").symlink_to(adapter)
    assert onelora("sample", tmp_path / "again", *common[2:])[0] == 0
    base = tmp_path / "base"
    shutil.copytree(dit_folder, base)
    weights = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
    name = next(name for name in weights if name.startswith("decoder"))
    save_file({**weights, name: weights[name] * 2}, base / "vae" / "diffusion_pytorch_model.safetensors")
    code, _, error = onelora(*common, "--base", base)
    assert code == 2 and "holds samples of another request (base_hash differ)" in error


@pytest.mark.parametrize(("classes", "count"), [("PIE,PIE,0", 1), ("0,1", 2)])
def test_a_class_that_is_named_twice_is_drawn_once(onelora, adapter, tmp_path, classes, count):
    common = ("sample", adapter, "-o", tmp_path / "out", "--num_images", 1, "--device", "cpu", "--steps", 1)
    code, result, _ = onelora(*common, "--classes", classes, "--json")
    assert code == 0 and result["images"] == count == len(result["classes"])


def test_no_class_is_refused(onelora, adapter, tmp_path):
    code, _, error = onelora("sample", adapter, "-o", tmp_path / "out", "--classes", "", "--device", "cpu")
    assert code == 2 and "no class ''" in error
