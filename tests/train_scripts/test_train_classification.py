import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load, save_file
from transformers import AutoImageProcessor, Dinov2Config, Dinov2ForImageClassification

from onelora_vision.adapters.file import read_adapter
from onelora_vision.backbones.vit import ViTBase
from onelora_vision.data.classes.formats import FORMATS, open_class_images
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.training.command_line import parse_config
from train_scripts import train_classification
from train_scripts.train_classification import ClassificationConfig

ROOT = Path(__file__).parents[2]
CLASSES = ["airplane", "automobile", "bird"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as timm's hub repositories are, of a tiny VisionTransformer with random weights."""
    folder = tmp_path_factory.mktemp("base") / "tiny-vit"
    folder.mkdir()
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, weight_init="jax", **sizes)
    save_file(model.state_dict(), folder / "model.safetensors")
    pretrained = {
        "input_size": [3, 16, 16],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "classifier": "head",
    }
    pretrained |= {"num_classes": 5, "fixed_input_size": True, "first_conv": "patch_embed.proj", "custom_load": False}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 5,
        "model_args": sizes,
        "pretrained_cfg": pretrained,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def write_cifar(root, train=8, test=5):
    """CIFAR-10's shape as class folders: 32 x 32 pixels, train/ and test/; the classes differ in color."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(110, 50, (32, 32, 3))
                pixels[..., label] += 45
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{number:04d}.png")
    return root


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp("data") / "cifar")


def arguments(base, cifar, output, **flags):
    flags = {
        "pretrained_model_name_or_path": base,
        "dataset_name": "imagefolder",
        "data_dir": cifar,
        "output_dir": output,
        "max_train_steps": 4,
        "train_batch_size": 6,
        "eval_batch_size": 4,
        "checkpointing_steps": 2,
        "learning_rate": 3e-2,
        "report_to": "none",
        **flags,
    }
    return [f"--{name}={value}" for name, value in flags.items()]


def run(*args) -> int:
    with pytest.raises(SystemExit) as ended:
        train_classification.main([*args])
    return ended.value.code


def results_of(output) -> dict:
    return json.loads((output / "results.json").read_text())


@pytest.mark.draws
def test_a_user_trains_on_a_folder_and_predicts_with_the_adapter(base, cifar, tmp_path):
    output = tmp_path / "out"
    assert run(*arguments(base, cifar, output, max_train_steps=12)) == 0
    results = results_of(output)
    assert {"top1", "nll", "ece"} == results["metrics"]["before"].keys() == results["metrics"]["after"].keys()
    assert results["metrics"]["after"]["nll"] < results["metrics"]["before"]["nll"]
    # per block 48 + 16 + 64 + 16 values, and a head for three classes
    assert results["adapter_parameters"] == 2 * 144 and results["trainable_parameters"] == 2 * 144 + 3 * 17
    pictures = {f"{name}.png" for name in ("confusion", "reliability", "predictions", "loss")}
    expected = {"adapter", "report.html", "per_class_accuracy.json", "config.yaml", *pictures}
    assert expected <= {path.name for path in output.iterdir()}
    assert results["validation_loss"]["last"] < results["validation_loss"]["first"]
    page = (output / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(pictures) and str(output / "adapter") in page

    adapter = read_adapter(output / "adapter")
    assert adapter.info.class_names == CLASSES and adapter.info.metrics["after"] == results["metrics"]["after"]
    classifier = load_adapted(output / "adapter")
    test = open_class_images("imagefolder", cifar, "test")
    found = classifier.classify([test.read(i) for i in range(len(test))])
    right = sum(row[0][0] == CLASSES[label] for row, label in zip(found, test.labels))
    assert right / len(test) == pytest.approx(results["metrics"]["after"]["top1"])


@pytest.fixture(scope="module")
def old_images(tmp_path_factory):
    """Ten noisy images of each of the base's five classes, which it does not name."""
    root, rng = tmp_path_factory.mktemp("old") / "old", np.random.default_rng(1)
    for name in "abcde":
        (root / name).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def trained_tensors(output):
    return read_adapter(output / "adapter").tensors


@pytest.mark.parametrize("method", ["onelora", "head"])
def test_what_is_left_of_the_base_s_own_classes_is_measured_and_changes_nothing(
    base, cifar, old_images, tmp_path, method
):
    flags = {"method": method, "crop_scale": 0.5, "head_learning_rate": 0.1, "learning_rate": 0.3}
    assert run(*arguments(base, cifar, tmp_path / "plain", **flags)) == 0
    old = {"retention": "true", "retention_dir": old_images}
    assert run(*arguments(base, cifar, tmp_path / "out", **flags, **old)) == 0
    results, plain = results_of(tmp_path / "out"), results_of(tmp_path / "plain")
    kept = {when: metrics.pop("retention_top1") for when, metrics in results["metrics"].items()}
    assert results["metrics"] == plain["metrics"]
    tensors = trained_tensors(tmp_path / "plain")
    assert all(torch.equal(value, tensors[key]) for key, value in trained_tensors(tmp_path / "out").items())
    assert results["retention"] == "10 images of old test, among the base's own 5 classes"

    alone = ViTBase.load(base)
    test = open_class_images("imagefolder", old_images, "test")
    images = torch.stack([alone.transform(test.read(index)) for index in range(len(test))])
    right = alone.model(images).argmax(1) == torch.tensor(test.labels)
    assert kept["before"] == pytest.approx(right.double().mean().item())
    if method == "head":
        assert kept["after"] == kept["before"]  # nothing was trained but the head, which is the base's own again
        return
    adapted = load_adapted(tmp_path / "out" / "adapter").base.model
    adapted.get_base_model().head = alone.model.head
    right = adapted(images).argmax(1) == torch.tensor(test.labels)
    assert kept["after"] == pytest.approx(right.double().mean().item())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"retention": "true"}, "the training data of .* is unknown"),
        ({"retention": "true", "retention_dir": "absent"}, "absent: no such folder"),
        ({"retention": "true", "retention_dataset": "embedded"}, "the base's 5 classes do not include 0, 1, 2"),
        ({"retention_samples": 3}, "no effect without --retention"),
    ],
)
def test_retention_that_cannot_be_measured_is_refused_before_anything_is_trained(
    base, cifar, tmp_path, capsys, flags, message
):
    assert run(*arguments(base, cifar, tmp_path / "out", **flags)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{message}.*\n", error) and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(base, cifar, old_images, tmp_path):
    """15 test images and 9 old ones in batches of 4 do not divide by two processes: padding must not count."""
    old = {"retention": "true", "retention_dir": old_images, "retention_samples": 9}
    assert run(*arguments(base, cifar, tmp_path / "one", **old)) == 0
    # accelerate's own launcher starts a single process on a CPU; torchrun starts what accelerate takes as two.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    two = arguments(base, cifar, tmp_path / "two", train_batch_size=3, **old)
    command += ["train_scripts/train_classification.py", *two]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (results_of(tmp_path / name)["metrics"] for name in ("one", "two"))
    state = json.loads((tmp_path / "two" / "checkpoint-4" / "state.json").read_text())
    assert state["settings"]["samples per step"] == 6  # of both processes
    assert one["before"] == pytest.approx(two["before"], rel=1e-6)
    assert one["after"] == pytest.approx(two["after"], rel=1e-3)


def test_an_interrupted_run_ends_in_the_same_bytes(base, cifar, tmp_path):
    flags = {"crop_scale": 0.5, "random_flip": "true", "drop_path": 0.3, "mixup": 0.5}
    output = tmp_path / "out"
    assert run(*arguments(base, cifar, output, **flags)) == 0
    unbroken = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    for name in ("checkpoint-4", "adapter"):
        (output / name).rename(tmp_path / name)
    again = {"resume_from_checkpoint": "latest", "cache_images": "uint8"}
    assert run(*arguments(base, cifar, output, **flags, **again)) == 0
    assert (output / "adapter" / "adapter_model.safetensors").read_bytes() == unbroken


def test_images_in_tar_files_train_as_those_in_folders_do(base, cifar, tmp_path):
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as archive:
            for path in sorted((cifar / split).rglob("*.png")):
                (tmp_path / "label").write_text(path.parent.name)
                archive.add(path, f"{path.parent.name}-{path.stem}.png")
                archive.add(tmp_path / "label", f"{path.parent.name}-{path.stem}.cls")
    assert run(*arguments(base, cifar, tmp_path / "folders")) == 0
    place = {"dataset_name": "webdataset", "data_dir": tmp_path, "dataloader_num_workers": 1}
    assert run(*arguments(base, cifar, tmp_path / "tars", **place)) == 0
    one, two = (
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("folders", "tars")
    )
    assert load(one).keys() == load(two).keys()
    assert all(torch.equal(value, load(two)[name]) for name, value in load(one).items())


def test_a_transformers_base_trains_on_its_processors_pixels(cifar, tmp_path):
    """DINOv2's config names 518 pixels, its processor a crop of 224: here 32 and 16."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2ForImageClassification(Dinov2Config(**sizes)).save_pretrained(tmp_path / "base")
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 20}, "do_center_crop": True}
    processor |= {"crop_size": {"height": 16, "width": 16}, "resample": 3}
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert run(*arguments(tmp_path / "base", cifar, tmp_path / "out")) == 0
    info = read_adapter(tmp_path / "out" / "adapter").info
    assert "at 16 pixels" in info.protocol and info.extra["preprocessing"]["size"] == {"shortest_edge": 20}
    classifier = load_adapted(tmp_path / "out" / "adapter")
    picture = Image.open(cifar / "test" / "bird" / "0000.png")
    reference = AutoImageProcessor.from_pretrained(tmp_path / "base")(images=picture, return_tensors="pt")
    assert torch.equal(classifier.base.transform(picture), reference["pixel_values"][0])


def test_every_training_option_at_once(base, cifar, tmp_path):
    flags = {"cutmix": 1.0, "smoothing": 0.1, "reprob": 0.5, "aa": "rand-m5-n1", "drop_path": 0.1, "method": "full"}
    flags |= {"mixed_precision": "bf16", "gradient_accumulation_steps": 2, "lr_scheduler": "constant"}
    switches = ["--gradient_checkpointing", "--freeze_norms", "--use_ema"]
    assert run(*arguments(base, cifar, tmp_path / "out", **flags), *switches) == 0
    vit = ViTBase.load(str(base)).fit(CLASSES)
    norms = {name: p.clone() for name, p in vit.model.named_parameters() if "norm" in name}
    trained = read_adapter(tmp_path / "out" / "adapter").tensors
    frozen = {name.removeprefix("base_model.model."): value for name, value in trained.items() if "norm" in name}
    assert len(frozen) == len(norms) == 10
    assert all(torch.equal(value, norms[name]) for name, value in frozen.items())
    assert not torch.equal(trained["base_model.model.blocks.0.attn.qkv.weight"], vit.model.blocks[0].attn.qkv.weight)


def test_best_and_last_adapter_are_kept_with_their_own_figures(base, cifar, tmp_path, capsys):
    flags = {
        "validation_steps": 1,
        "metric_for_best_model": "nll",
        "greater_is_better": "false",
        "head_learning_rate": 30.0,  # the first step is the best
    }
    flags |= {"validation_fraction": 0.3, "lr_scheduler": "constant"}
    assert run(*arguments(base, cifar, tmp_path / "out", **flags)) == 0
    best, last = (read_adapter(tmp_path / "out" / name) for name in ("best", "adapter"))
    assert best.info.metrics["after"]["nll"] < last.info.metrics["after"]["nll"]
    assert best.info.metrics["before"] == last.info.metrics["before"]
    assert "best (" in capsys.readouterr().out


def test_early_stopping(base, cifar, tmp_path):
    """The first step is the best one; two evaluations later the run ends, and a resumed one stays ended."""
    flags = {"validation_steps": 1, "metric_for_best_model": "nll", "greater_is_better": "false", "max_train_steps": 9}
    flags |= {
        "early_stopping_patience": 2,
        "head_learning_rate": 30.0,
        "validation_fraction": 0.3,
        "checkpointing_steps": 1,
    }
    assert run(*arguments(base, cifar, tmp_path / "out", **flags, lr_scheduler="constant")) == 0
    results = results_of(tmp_path / "out")
    assert results["steps"] == results["best_step"] + 2 < 9
    resumed = arguments(
        base, cifar, tmp_path / "out", **flags, lr_scheduler="constant", resume_from_checkpoint="latest"
    )
    assert run(*resumed) == 0
    assert results_of(tmp_path / "out")["steps"] == results["steps"]


def test_seeds_are_run_and_averaged(base, cifar, tmp_path):
    output = tmp_path / "out"
    assert run(*arguments(base, cifar, output, max_train_steps=1, few_shot=4), "--seeds=3,5") == 0
    single = [results_of(output / f"seed-{seed}")["metrics"]["after"]["nll"] for seed in (3, 5)]
    whole = results_of(output)
    assert whole["seeds"] == [3, 5] and single[0] != single[1]
    assert whole["metrics"]["nll"]["mean"] == pytest.approx(np.mean(single))
    assert whole["metrics"]["nll"]["std"] == pytest.approx(np.std(single, ddof=1))


@pytest.mark.parametrize(("split", "workers"), [("train", 0), ("test", 0), ("train", 1)])
def test_a_corrupt_image_is_named_and_training_stops_or_goes_on(base, tmp_path, capsys, caplog, split, workers):
    cifar = write_cifar(tmp_path / "cifar", train=3, test=2)
    bad = cifar / split / "bird" / "0001.png"
    bad.write_bytes(bad.read_bytes()[:200])
    flags = {"dataloader_num_workers": workers, "validation_fraction": 0}
    assert run(*arguments(base, cifar, tmp_path / "error", **flags)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and str(bad) in error[0] and "--on_bad_image skip" in error[0]
    with caplog.at_level(logging.WARNING):
        assert run(*arguments(base, cifar, tmp_path / "skip", **flags, on_bad_image="skip")) == 0
    if workers == 0:
        assert sum(str(bad) in message for message in caplog.messages) == 1
    counts = json.loads((tmp_path / "skip" / "per_class_accuracy.json").read_text())["after"]
    assert counts.keys() == set(CLASSES)


def test_dry_run_says_what_would_be_trained_and_writes_nothing(base, cifar, tmp_path, capsys):
    assert run(*arguments(base, cifar, tmp_path / "out"), "--dry_run") == 0
    printed = capsys.readouterr().out
    assert "339 of" in printed and "steps                 4" in printed and not (tmp_path / "out").exists()


def test_settings_are_chosen_on_the_validation_split(base, cifar, tmp_path):
    flags = {"eval_split": "validation", "validation_fraction": 0.25, "max_train_steps": 1}
    assert run(*arguments(base, cifar, tmp_path / "out", **flags)) == 0
    assert results_of(tmp_path / "out")["protocol"].startswith("6 images of cifar validation")


def test_a_folder_alone_is_the_data(base, cifar, tmp_path):
    flags = [flag for flag in arguments(base, cifar, tmp_path / "out") if "dataset_name" not in flag]
    assert run(*flags) == 0
    results = results_of(tmp_path / "out")
    assert results["protocol"].startswith("15 images of cifar test")
    assert results["config"]["dataset_name"] == "imagefolder"
    assert ClassificationConfig().dataset_name == "embedded"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset_name": "embedded", "data_dir": "pics"}, "--data_dir has no effect with --dataset_name embedded"),
        ({"data_dir": "pics", "download": True}, "--download has no effect with --dataset_name imagefolder"),
        ({"on_bad_image": "skip"}, "--on_bad_image has no effect with --dataset_name embedded"),
        (
            {"dataset_name": "cifar10", "cache_images": "uint8"},
            "--cache_images has no effect with --dataset_name cifar10",
        ),
        ({"dataset_name": "cifar10", "data_dir": "x", "label_column": "fine"}, "--label_column has no effect"),
    ],
)
def test_a_flag_without_effect_on_the_data_set_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        ClassificationConfig(**flags)


def test_flags_without_effect_are_flags():
    names = {field.name for field in dataclasses.fields(ClassificationConfig)}
    assert all(row.ignores <= names for row in FORMATS.values())
    ClassificationConfig(dataset_name="someone/pictures", label_column="fine", download=True, cache_dir="x")


def test_a_single_image_is_a_data_set_where_there_is_one_to_test_on(base, cifar, tmp_path, capsys):
    data = tmp_path / "data"
    for split in ("train", "test"):
        (data / split / "a").mkdir(parents=True)
        shutil.copy(next((cifar / split).rglob("*.png")), data / split / "a" / "0.png")
    assert run(*arguments(base, data, tmp_path / "out", max_train_steps=2)) == 0
    assert results_of(tmp_path / "out")["metrics"]["after"]["top1"] == 1
    assert run(*arguments(base, data / "train", tmp_path / "refused")) == 2
    assert "no class has two images, so none is left for testing" in capsys.readouterr().err


def test_a_test_split_may_lack_a_class(base, cifar, tmp_path):
    shutil.copytree(cifar, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test" / CLASSES[0])
    assert run(*arguments(base, tmp_path / "data", tmp_path / "out", max_train_steps=1)) == 0
    assert results_of(tmp_path / "out")["protocol"].startswith("10 images of data test")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"method": "onelore"}, "did you mean 'onelora'"),
        ({"data_dir": "/nowhere"}, "/nowhere"),
        ({"pretrained_model_name_or_path": "/nowhere"}, "/nowhere"),
        ({"mixupp": 1}, "mixup"),
        ({"smoothing": 1.5}, "--smoothing is 1.5"),
        ({"mixup": 1, "train_batch_size": 3}, "odd"),
        ({"seeds": "0,x"}, "--seeds 0,x"),
        ({"few_shot": 50}, "images, not 50"),
        ({"method": "onelora_norms", "freeze_norms": "true"}, "contradicts"),
        ({"validation_steps": 2, "validation_fraction": 0}, "--validation_fraction"),
        ({"eval_split": "validation", "validation_fraction": 0}, "--validation_fraction"),
        ({"early_stopping_patience": 2}, "--metric_for_best_model"),
        ({"metric_for_best_model": "top2", "validation_steps": 2}, "did you mean 'top"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(base, cifar, tmp_path, capsys, flags, message):
    assert run(*arguments(base, cifar, tmp_path / "out", **flags)) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in error
    assert not list(tmp_path.rglob("checkpoint-*")) and not list(tmp_path.rglob("adapter"))


@pytest.mark.parametrize(
    "file", sorted((ROOT / "train_scripts/configs/classification").glob("*.yaml")), ids=lambda f: f.stem
)
def test_shipped_configs_are_read(file):
    config = parse_config(ClassificationConfig, ["--config", str(file), "--seeds", "0,1,2,3"])
    assert config.pretrained_model_name_or_path == yaml.safe_load(file.read_text())["pretrained_model_name_or_path"]
    if "cifar" in file.stem:  # the paper's settings
        assert (config.learning_rate, config.adam_weight_decay, config.train_batch_size) == (2e-5, 0.01, 10)


@pytest.mark.slow
def test_the_embedded_job_beats_a_tuned_head_by_three_points(tmp_path):
    for method, rate in (("onelora", 1e-2), ("head", 3e-2)):  # each the best of four on the validation split
        flags = {"method": method, "head_learning_rate": rate, "seeds": "0,1,2", "output_dir": tmp_path / method}
        assert run(*(f"--{name}={value}" for name, value in flags.items()), "--report_to=none") == 0
    top1 = {method: results_of(tmp_path / method)["metrics"]["top1"]["mean"] for method in ("onelora", "head")}
    assert top1["onelora"] >= top1["head"] + 0.03
