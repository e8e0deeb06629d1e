import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from onelora_vision.adapters.file import read_adapter
from onelora_vision.backbones.dit import DiTBase
from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.generation import SquareCrop
from onelora_vision.diffusion.sampling import sample
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.metrics.generative import EmbeddedFeatures, Features, FeatureSet, Protocol, collect, compare
from onelora_vision.seeding import mix
from train_scripts import train_dit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def food101(tmp_path_factory):
    """A folder of Food-101's layout: images/<class>/<id>.jpg and meta/{classes,train,test}.txt."""
    root = tmp_path_factory.mktemp("data") / "food-101"
    rng = np.random.default_rng(0)
    names = {"train": [], "test": []}
    for label, name in enumerate(["apple_pie", "sushi", "waffles"]):
        (root / "images" / name).mkdir(parents=True)
        for index in range(6):
            colour = np.array([40 + 80 * label, 200 - 60 * label, 30 * index])
            pixels = np.clip(colour + rng.normal(0, 20, (40, 52, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{index}.jpg")
            names["test" if index >= 4 else "train"].append(f"{name}/{index}")
    (root / "meta").mkdir()
    (root / "meta" / "classes.txt").write_text("apple_pie\nsushi\nwaffles\n")
    for split, lines in names.items():
        (root / "meta" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def arguments(dit_folder, food101, output, **flags):
    flags = {
        "pretrained_model_name_or_path": dit_folder,
        "dataset_name": "food101",
        "data_dir": food101,
        "output_dir": output,
        "max_train_steps": 4,
        "train_batch_size": 4,
        "checkpointing_steps": 2,
        "lr_warmup_steps": 1,
        "num_inference_steps": 2,
        "num_validation_images": 1,
        "report_to": "none",
        **flags,
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def run(*args) -> int:
    with pytest.raises(SystemExit) as ended:
        train_dit.main([*args])
    return ended.value.code


def run_as_a_user(*args) -> subprocess.CompletedProcess:
    command = [sys.executable, "train_scripts/train_dit.py", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_user_fine_tunes_a_pipeline_folder_on_food101_resumes_and_samples(dit_folder, food101, tmp_path):
    """The real path: a folder as facebook/DiT-XL-2-256 is one, data as Food-101's archive unpacks.

    Of the scripts this one is started in a process of its own, as a user does.
    """
    output = tmp_path / "out"
    done = run_as_a_user(*arguments(dit_folder, food101, output))
    assert done.returncode == 0, done.stderr
    results = json.loads((output / "results.json").read_text())
    assert {
        "task", "method", "seed", "trainable_parameters", "adapter_parameters", "metrics", "protocol", "seconds_total",
        "seconds_per_step", "data_seconds_per_step", "peak_memory_bytes", "versions", "config",
    } <= results.keys()  # fmt: skip
    # two blocks of 4·32 + 128 + 32 + 192 and the final layer's 64 + 32; the table of 3 classes and the null class
    assert results["adapter_parameters"] == 2 * 480 + 96
    assert results["trainable_parameters"] == results["adapter_parameters"] + 4 * 32
    assert sorted(p.name for p in (output / "adapter").iterdir()) == [
        ".onelora-files", "README.md", "adapter_config.json", "adapter_model.safetensors", "loss.png", "samples.png",
    ]  # fmt: skip
    assert yaml.safe_load((output / "config.yaml").read_text())["dataset_name"] == "food101"
    with Image.open(output / "samples.png") as shown, Image.open(output / "adapter" / "samples.png") as on_the_card:
        assert on_the_card.width < shown.width  # without the training images
    expected = {"samples.png", "loss.png", "report.html", "checkpoint-2", "checkpoint-4"}
    assert expected <= {p.name for p in output.iterdir()}
    assert f"{output}/report.html" in done.stdout and "<h2>Settings</h2>" in (output / "report.html").read_text()
    assert results["validation_loss"]["last"] < results["validation_loss"]["first"]

    unbroken = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("checkpoint-4", "adapter"):
        (output / name).rename(tmp_path / f"first-{name}")
    assert run(*arguments(dit_folder, food101, output, resume_from_checkpoint="latest")) == 0
    assert read_adapter(output / "adapter").info.class_names == ["apple_pie", "sushi", "waffles"]
    resumed = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    assert resumed == unbroken

    adapter, base = read_adapter(output / "adapter"), DiTBase.load(dit_folder)
    base.model.set_classes(adapter.info.class_names)
    model = adapter.attach(base.model).eval()
    settings = SamplingSettings(steps=2)
    images = sample(model, base.vae, dict(base.scheduler.config), [0, 2], [1, 2], settings)
    assert images.shape == (2, 3, 16, 16) and torch.isfinite(images).all()


def test_a_sit_is_fine_tuned_and_sampled_by_its_own_objective(sit_folder, food101, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(train_dit, "open_features", lambda *_: SmallFeatures())
    flags = {"fid_features": "inception", "fid_num_samples": 4, "objective": "velocity", "guidance_scale": 1.5}
    assert run(*arguments(sit_folder, food101, tmp_path / "out", **flags)) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert Protocol.parse(results["protocol"]).sampler == "heun"
    assert results["identity"]["objective"] == "velocity, image at t=1"
    assert results["validation_loss"]["last"] < results["validation_loss"]["first"]
    info = read_adapter(tmp_path / "out" / "adapter").info
    assert info.extra["objective"] == "velocity, image at t=1" and info.extra["sampling"]["sampler"] == "heun"
    assert "predicts velocity" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    for wrong, message in {
        "objective": ("epsilon", "--objective epsilon: .* was trained to predict velocity, image at t=1"),
        "sampler": ("ddim", "'ddim' is not for this base, which predicts velocity: choose heun, euler, sde"),
    }.items():
        assert run(*arguments(sit_folder, food101, tmp_path / "no", **{wrong: message[0]})) == 2
        assert re.search(message[1], capsys.readouterr().err) and not (tmp_path / "no").exists()


@pytest.fixture(scope="module")
def old_things(tmp_path_factory):
    """Four images each of three of the pipeline's 1000 things, one of them to test."""
    root, rng = tmp_path_factory.mktemp("old") / "things", np.random.default_rng(2)
    for name in ("thing-7", "thing-40", "thing-900"):
        for number in range(4):
            path = root / ("test" if number else "train") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    return root


def test_what_is_left_of_the_base_s_own_classes_is_sampled_with_its_own_label_table(
    dit_folder, food101, old_things, tmp_path
):
    old = {"retention": "true", "retention_dir": old_things, "retention_samples": 6, "fid_num_samples": 0}
    flags = {"fid_features": "embedded", "num_validation_images": 0, "learning_rate": 0.1, "head_learning_rate": 0.5}
    assert run(*arguments(dit_folder, food101, tmp_path / "head", **flags, **old, method="head")) == 0
    results = json.loads((tmp_path / "head" / "results.json").read_text())
    assert results["metrics"]["after"] == results["metrics"]["before"]  # the table that was trained is not used
    before = results["metrics"]["before"]
    assert before.keys() == {"retention_fd_embedded"}  # whose classifier does not know the things
    assert "6 samples of 3 of the base's own classes" in results["retention"]

    base, features = DiTBase.load(dit_folder), EmbeddedFeatures()
    labels, seeds = [40, 7, 900] * 2, [mix(0, index) for index in range(6)]  # as the folders are sorted
    settings = SamplingSettings("dpm++", 2, 4.0)
    samples = sample(base.model, base.vae, dict(base.scheduler.config), labels, seeds, settings)
    source = open_class_images("imagefolder", old_things, "test")
    real = torch.stack([SquareCrop(16)(source.read(index)) for index in range(len(source))])
    found = compare(collect(features, [samples]), collect(features, [real]), "embedded")["fd_embedded"]
    assert before["retention_fd_embedded"] == pytest.approx(found, rel=1e-4)

    assert run(*arguments(dit_folder, food101, tmp_path / "out", **flags, **old)) == 0
    metrics = json.loads((tmp_path / "out" / "results.json").read_text())["metrics"]
    assert metrics["before"] == before and metrics["after"] != before
    assert read_adapter(tmp_path / "out" / "adapter").info.class_names == ["apple_pie", "sushi", "waffles"]


def losses(output) -> list[float]:
    state = torch.load(output / "checkpoint-4" / "training_state.pt", weights_only=True)
    return state["progress"]["history"]["loss"]


def test_cached_latents_give_the_losses_of_images(dit_folder, food101, tmp_path):
    common = {"random_flip": "true", "use_ema": "true", "num_validation_images": 0}
    assert run(*arguments(dit_folder, food101, tmp_path / "plain", **common)) == 0
    assert run(*arguments(dit_folder, food101, tmp_path / "decoded", **common, cache_images="uint8")) == 0
    assert losses(tmp_path / "decoded") == losses(tmp_path / "plain")
    cache = {"cache_latents": "true", "latents_dir": tmp_path / "latents"}
    assert run(*arguments(dit_folder, food101, tmp_path / "cached", **common, **cache)) == 0
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert len(list((tmp_path / "latents").rglob("latents-*.safetensors"))) == 1
    cache |= {"latents_dtype": "fp16", "num_validation_images": 0}
    assert run(*arguments(dit_folder, food101, tmp_path / "half", **common | cache)) == 0
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
    assert losses(tmp_path / "half") != losses(tmp_path / "cached")
    trained, averaged = (read_adapter(tmp_path / "cached" / name) for name in ("adapter_without_ema", "adapter"))
    assert trained.info.class_names == averaged.info.class_names
    assert any(not torch.equal(trained.tensors[name], value) for name, value in averaged.tensors.items())


class SmallFeatures(Features):
    """The mean colour, in the place of InceptionV3."""

    name, dim, weights_hash, class_names, model = "inception", 3, "small", (), torch.nn.Identity()

    def __call__(self, images):
        return FeatureSet(images.mean((2, 3)))


def test_samples_are_measured_and_guidance_is_swept(dit_folder, food101, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0, img_size=224).state_dict(), tmp_path / "vit.safetensors")
    flags = {
        "max_train_steps": 1,
        "fid_features": "dinov2",
        "fid_weights": tmp_path / "vit.safetensors",
        "fid_timm_model": "test_vit",
        "fid_num_samples": 4,
        "guidance_scale": 1.5,
        "guidance_scales": "1,2.5",
        "guidance_channels": 3,
        "guidance_interval": "0,0.9",
    }
    assert run(*arguments(dit_folder, food101, tmp_path / "out", **flags)) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    protocol = Protocol.parse(results["protocol"])
    assert (protocol.generated, protocol.reference, protocol.crop) == (4, 6, "center 16")
    assert (protocol.guidance, protocol.guidance_channels, protocol.guidance_interval) == (1.5, "3", "0,0.9")
    assert set(results["metrics"]["after"]) == {"fd_dinov2", "kid_dinov2", "kid_dinov2_std"}
    rows = json.loads((tmp_path / "out" / "guidance.json").read_text())
    assert [Protocol.parse(row["protocol"]).guidance for row in rows] == [1.0, 2.5]
    assert rows[0]["metrics"]["fd_dinov2"] != rows[1]["metrics"]["fd_dinov2"]
    assert (tmp_path / "out" / "guidance.png").is_file()
    (kept,) = (tmp_path / "cache" / "onelora_vision" / "references").iterdir()
    assert read_adapter(tmp_path / "out" / "adapter").info.extra["sampling"]["guidance_interval"] == [0, 0.9]
    kept.write_bytes(b"damaged")  # the next run reads it, and measures again
    assert run(*arguments(dit_folder, food101, tmp_path / "again", **flags)) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["metrics"] == results["metrics"]


def test_the_base_guides_the_samples_that_are_measured(dit_folder, food101, tmp_path, monkeypatch):
    monkeypatch.setattr(train_dit, "open_features", lambda *_: SmallFeatures())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measured = {"max_train_steps": 2, "fid_features": "inception", "fid_num_samples": 4, "learning_rate": 1}
    flags = {**measured, "guidance_scale": 2.5, "guidance_base": "true", "guidance_scales": "1,2.5"}
    assert run(*arguments(dit_folder, food101, tmp_path / "out", **flags)) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert Protocol.parse(results["protocol"]).guidance_base and results["config"]["guidance_base"] is True
    rows = json.loads((tmp_path / "out" / "guidance.json").read_text())
    assert [Protocol.parse(row["protocol"]).guidance_base for row in rows] == [False, True]
    assert rows[1]["metrics"] == pytest.approx(results["metrics"]["after"])
    adapter = read_adapter(tmp_path / "out" / "adapter")
    assert adapter.info.extra["sampling"]["guidance_base"] is True
    assert "guidance_base=True" in (tmp_path / "out" / "adapter" / "README.md").read_text()
    flags["guidance_base"] = "false"
    assert run(*arguments(dit_folder, food101, tmp_path / "own", **flags)) == 0
    own = json.loads((tmp_path / "own" / "results.json").read_text())
    assert own["metrics"]["before"] == results["metrics"]["before"]  # the base guides itself
    assert own["metrics"]["after"] != results["metrics"]["after"]
    with pytest.raises(InputError, match="guidance_base"):
        Protocol.parse(own["protocol"]).require_comparable(Protocol.parse(results["protocol"]))


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_on_8_bits_resumes_bit_for_bit_and_its_adapter_fits_the_base(dit_folder, food101, tmp_path, capsys):
    flags = {"quantize": "int8", "gradient_checkpointing": "true", "mixed_precision": "bf16", "use_ema": "true"}
    output = tmp_path / "out"
    assert run(*arguments(dit_folder, food101, output, **flags)) == 0
    unbroken = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("checkpoint-4", "adapter", "adapter_without_ema"):
        (output / name).rename(tmp_path / f"first-{name}")
    again = arguments(dit_folder, food101, output, resume_from_checkpoint="latest", **flags)
    assert run(*again[:-4], "--quantize=none", *again[-3:]) == 2 and "quantize" in capsys.readouterr().err
    assert run(*again) == 0
    assert (output / "adapter" / "adapter_model.safetensors").read_bytes() == unbroken
    assert run(*arguments(dit_folder, food101, tmp_path / "full", **flags | {"quantize": "none"})) == 0
    assert losses(output) == pytest.approx(losses(tmp_path / "full"), rel=0.02) and losses(output) != losses(
        tmp_path / "full"
    )
    from onelora_vision.inference.loading import load_adapted

    adapted = load_adapted(output / "adapter")
    assert not any(p.dtype == torch.int8 for p in adapted.model.parameters())


@pytest.mark.parametrize("method", ["onelora", "lora"])
def test_a_run_with_all_changes_of_the_loss_resumes_bit_for_bit(dit_folder, food101, tmp_path, method):
    flags = {
        "method": method,
        "guidance_distillation": 1.5,
        "snr_gamma": 5,
        "timestep_sampling": "logit_normal",
        "logit_mean": 0.5,
        "num_validation_images": 0,
        "gradient_accumulation_steps": 2,
    }
    output = tmp_path / "out"
    assert run(*arguments(dit_folder, food101, output, **flags)) == 0
    results = json.loads((output / "results.json").read_text())
    info = read_adapter(output / "adapter").info
    assert info.guidance_distillation == 1.5 and info.extra["sampling"]["guidance_scale"] == 1
    assert results["config"]["snr_gamma"] == 5 and results["config"]["guidance_distillation"] == 1.5
    card = (output / "adapter" / "README.md").read_text()
    assert "| guidance distillation | 1.5 |" in card and "| timesteps | logit-normal, mean 0.5, deviation 1 |" in card
    unbroken = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("checkpoint-4", "adapter"):
        (output / name).rename(tmp_path / f"first-{name}")
    assert run(*arguments(dit_folder, food101, output, resume_from_checkpoint="latest", **flags)) == 0
    assert (output / "adapter" / "adapter_model.safetensors").read_bytes() == unbroken
    without = {name: value for name, value in flags.items() if name != "guidance_distillation"}
    assert run(*arguments(dit_folder, food101, tmp_path / "plain", **without)) == 0
    assert losses(tmp_path / "plain") != losses(output)


def test_a_base_that_an_initialisation_has_changed_cannot_guide(dit_folder, food101, tmp_path, capsys):
    (tmp_path / "pissa.yaml").write_text("peft_type: LORA\nr: 2\ninit_lora_weights: pissa\n")
    swept = {"guidance_base": "true", "guidance_scale": 1, "guidance_scales": "1,2"}
    for flags in ({"guidance_base": "true"}, swept, {"guidance_distillation": 1.5}):
        flags = {**flags, "peft_config": tmp_path / "pissa.yaml"}
        assert run(*arguments(dit_folder, food101, tmp_path / "out", **flags)) == 2
        assert "init_lora_weights=pissa takes its first values out of the base" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_home_folder_that_cannot_be_written_costs_no_results(dit_folder, food101, tmp_path, monkeypatch, caplog):
    """Neither the latents nor the features of the real images can be kept; both are computed all the same."""
    monkeypatch.setattr(train_dit, "open_features", lambda *_: SmallFeatures())
    common = {"fid_features": "inception", "fid_num_samples": 4, "num_validation_images": 0}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run(*arguments(dit_folder, food101, tmp_path / "kept", **common, cache_latents="true")) == 0
    assert not caplog.messages
    (tmp_path / "nohome").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nohome"))
    assert run(*arguments(dit_folder, food101, tmp_path / "lost", **common, cache_latents="true")) == 0
    assert len([line for line in caplog.messages if "the cache is not used" in line]) == 2
    kept, lost = (json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in ("kept", "lost"))
    assert kept["before"] == lost["before"] and kept["after"] == pytest.approx(lost["after"], rel=1e-3)


def test_a_folder_alone_is_the_data(dit_folder, food101, tmp_path, capsys):
    flags = arguments(dit_folder, food101 / "images", tmp_path / "out", dataset_name="null")
    assert run(*flags, "--dry_run") == 0
    assert "3 classes" in capsys.readouterr().out
    assert train_dit.DiTConfig().dataset_name == "embedded"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset_name": "embedded", "data_dir": "pics"}, "--data_dir has no effect with --dataset_name embedded"),
        ({"data_dir": "pics", "download": True}, "--download has no effect with --dataset_name imagefolder"),
        ({"random_flip": True}, "--random_flip has no effect with --dataset_name embedded"),
        ({"cache_latents": True}, "--cache_latents has no effect with --dataset_name embedded"),
    ],
)
def test_a_flag_without_effect_on_the_dataset_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        train_dit.DiTConfig(**flags)


def test_flags_without_effect_are_flags():
    assert {field.name for field in dataclasses.fields(train_dit.DiTConfig)} >= train_dit.EMBEDDED_IGNORES
    train_dit.DiTConfig(cache_dir="x")  # the model's here, not that of the dataset


@pytest.mark.parametrize("cached", [False, True])
def test_a_single_image_is_a_dataset(dit_folder, food101, tmp_path, cached):
    (tmp_path / "pics" / "pie").mkdir(parents=True)
    shutil.copy(food101 / "images" / "apple_pie" / "0.jpg", tmp_path / "pics" / "pie")
    flags = {"dataset_name": "null", "max_train_steps": 2}
    flags |= {"cache_latents": "true", "latents_dir": tmp_path / "latents"} if cached else {}
    assert run(*arguments(dit_folder, tmp_path / "pics", tmp_path / "out", **flags)) == 0
    assert read_adapter(tmp_path / "out" / "adapter").info.class_names == ["pie"]


def test_a_validation_split_that_cannot_be_read_does_not_give_way_to_training_images(
    dit_folder, food101, tmp_path, capsys
):
    data = tmp_path / "pics"
    shutil.copytree(food101 / "images", data / "train")
    shutil.copytree(food101 / "images" / "sushi", data / "test" / "sushi")
    shutil.copytree(food101 / "images" / "sushi", data / "val" / "susi")
    assert run(*arguments(dit_folder, data, tmp_path / "out", dataset_name="null")) == 2
    assert "no such class in the training split; did you mean 'sushi'?" in capsys.readouterr().err


def test_dry_run_says_what_would_be_trained_and_writes_nothing(dit_folder, food101, tmp_path, capsys):
    assert run(*arguments(dit_folder, food101, tmp_path / "out"), "--dry_run") == 0
    printed = capsys.readouterr().out
    assert "1,184 of" in printed and "adapter file" in printed and "steps                 4" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"method": "onelore"}, "did you mean 'onelora'"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
        ({"pretrained_model_name_or_path": "/nowhere"}, "/nowhere"),
        ({"learnin_rate": 1}, "learning_rate"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"sampler": "plms"}, "sampler"),
        ({"sampler": "heun"}, "'heun' is not for this base, which predicts epsilon"),
        ({"objective": "velocity"}, "was trained to predict epsilon"),
        ({"validation_classes": "pizza"}, "pizza"),
        ({"fid_features": "embedded"}, "does not know the classes"),
        ({"fid_features": "dinov2"}, "--fid_weights"),
        ({"guidance_interval": "0.5"}, "guidance_interval"),
        ({"guidance_scales": "1,two"}, "guidance_scales"),
        ({"guidance_channels": 5, "dry_run": "true"}, "guidance_channels=5: the latents have 4 channels"),
        ({"metric_for_best_model": "fdi", "validation_steps": 1}, "--metric_for_best_model fdi: no such metric"),
        (
            {"fid_reference": "/nowhere.npz", "fid_features": "inception"},
            "--fid_reference /nowhere.npz: no such file",
        ),
        ({"sampler": ""}, "--sampler is None, but must be auto or"),
        ({"cache_latents": "true", "center_crop": "false"}, "--center_crop"),
        ({"latents_dtype": "fp16"}, "--latents_dtype has no effect without --cache_latents"),
        ({"cache_latents": "true", "cache_images": "uint8"}, "--cache_images has no effect with --cache_latents"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(dit_folder, food101, tmp_path, capsys, flags, message):
    output = tmp_path / "out"
    assert run(*arguments(dit_folder, food101, output, **flags)) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in error
    assert not list(tmp_path.rglob("adapter*")) and not list(tmp_path.rglob("results.json"))


def test_nan_stops_with_a_hint_and_leaves_no_result(dit_folder, food101, tmp_path, capsys):
    flags = {"method": "sum+scale", "learning_rate": 1e30, "max_grad_norm": 0, "adam_epsilon": 1e-30}
    assert run(*arguments(dit_folder, food101, tmp_path / "out", **flags)) == 1
    error = capsys.readouterr().err
    assert "error: step" in error and "gamma" in error and "checkpoint" in error
    assert not (tmp_path / "out" / "adapter").exists()


def test_a_part_of_the_training_images_can_be_held_out(dit_folder, food101, tmp_path):
    flags = {"validation_fraction": 0.3, "num_validation_images": 0, "dataset_name": "null"}
    assert run(*arguments(dit_folder, food101 / "images", tmp_path / "out", **flags)) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        results["validation_loss"]["held_out"]
        and "fixed held-out samples" in (tmp_path / "out" / "report.html").read_text()
    )
    assert (
        run(*arguments(dit_folder, food101 / "images", tmp_path / "all", **{**flags, "validation_fraction": 0})) == 0
    )
    assert not json.loads((tmp_path / "all" / "results.json").read_text())["validation_loss"]["held_out"]
    assert "fixed training samples, as there is no validation split" in (tmp_path / "all" / "report.html").read_text()


def test_a_run_that_comes_to_nothing_leaves_no_folder(dit_folder, food101, tmp_path):
    assert run(*arguments("/nowhere", food101, tmp_path / "out")) == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_that_the_user_made_stays(dit_folder, food101, tmp_path):
    (tmp_path / "mine").mkdir()
    assert run(*arguments("/nowhere", food101, tmp_path / "mine")) == 2
    assert (tmp_path / "mine").is_dir()
    assert run(*arguments("/nowhere", food101, tmp_path / "out")) == 2
    assert run(*arguments(dit_folder, food101, tmp_path / "out", num_validation_images=0)) == 0  # in the same process
