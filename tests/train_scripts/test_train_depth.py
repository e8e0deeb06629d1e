"""The script as users run it, on tiny datasets in real formats and on the model's real class at a tiny size."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from onelora_vision.adapters.file import read_adapter
from onelora_vision.backbones.depth_anything import DepthAnythingBase
from onelora_vision.data.depth.formats import FORMATS
from onelora_vision.data.synthetic.scenes import render_scene
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.training.command_line import parse_config
from onelora_vision.training.setup import start_run
from train_scripts import train_depth
from train_scripts.train_depth import DepthConfig, main

CONFIGS = sorted((Path(train_depth.__file__).parent / "configs" / "depth").glob("*.yaml"))


@pytest.fixture(scope="module")
def base(tiny_depth_anything, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_depth_anything().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Six rendered streets as a metadata.jsonl with millimetres in npy files: four to train on, two to test."""
    folder = tmp_path_factory.mktemp("streets")
    lines = []
    for index in range(6):
        scene = render_scene("streets", index, 16, 16)
        Image.fromarray(scene.image).save(folder / f"{index}.png")
        np.save(folder / f"{index}.npy", scene.depth * 1000)
        split = "train" if index < 4 else "test"
        lines.append({"image": f"{index}.png", "depth": f"{index}.npy", "scale": 0.001, "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def run(config: DepthConfig) -> dict:
    with start_run(config) as started:
        return train_depth.train(config, started)


def arguments(base: Path, data: Path, output: Path, **changes) -> list[str]:
    settings = {
        "pretrained_model_name_or_path": base,
        "dataset_name": "jsonl",
        "train_data_dir": data,
        "output_dir": output,
        "max_train_steps": 6,
        "lr_warmup_steps": 0,
        "train_batch_size": 4,
        "eval_batch_size": 2,
        "report_to": "none",
        "num_validation_images": 2,
        **changes,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def config_of(*args, **changes) -> DepthConfig:
    return parse_config(DepthConfig, arguments(*args, **changes))


@pytest.mark.draws
def test_a_run_leaves_adapter_results_and_pictures(base, streets, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(arguments(base, streets, tmp_path, max_depth=80, learning_rate=0.02, validation_steps=3))
    assert ended.value.code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["task"] == "depth"
    assert results["trainable_parameters"] == 4 * (4 * 16 + 64 + 16)
    assert results["metrics"]["after"]["rmse"] != results["metrics"]["before"]["rmse"]
    assert "jsonl test, 2 images, 0.001-80 m" in results["protocol"]
    assert len(list((tmp_path / "validation").glob("step-*.png"))) >= 2
    assert results["validation_loss"].keys() == {"first", "last", "held_out"}
    for name in ("pictures.png", "loss.png", "report.html", "config.yaml", "adapter/README.md"):
        assert (tmp_path / name).stat().st_size > 100
    info = read_adapter(tmp_path / "adapter").info
    assert (info.task, info.method, info.extra["max_depth"]) == ("depth", "onelora", 80)
    assert info.metrics["after"] == results["metrics"]["after"]


@pytest.mark.parametrize("fused", [False, True])
def test_the_saved_adapter_gives_the_reported_figures(base, streets, tmp_path, fused):
    flags = {"max_depth": 80, "learning_rate": 0.02, "train_head": True, "fuse_qkv": fused}
    results = run(config_of(base, streets, tmp_path, **flags))
    estimator = load_adapted(tmp_path / "adapter")
    errors = []
    for index in (4, 5):
        scene = render_scene("streets", index, 16, 16)
        predicted = np.clip(estimator(Image.fromarray(scene.image)), 1e-3, 80)
        errors.append(np.sqrt(np.mean((predicted - scene.depth)[scene.valid] ** 2)))
    assert np.mean(errors) == pytest.approx(results["metrics"]["after"]["rmse"], rel=1e-3)


@pytest.fixture(scope="module")
def old_rooms(tmp_path_factory):
    """Three rendered rooms as a metadata.jsonl, all to test."""
    folder = tmp_path_factory.mktemp("rooms")
    lines = []
    for index in range(3):
        scene = render_scene("rooms", index, 16, 16)
        Image.fromarray(scene.image).save(folder / f"{index}.png")
        np.save(folder / f"{index}.npy", scene.depth)
        lines.append({"image": f"{index}.png", "depth": f"{index}.npy", "split": "test"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def error_of(model, max_depth: float) -> float:
    """AbsRel of a model on the old rooms, whose depths count up to ``max_depth``."""
    errors = []
    for index in range(3):
        scene = render_scene("rooms", index, 16, 16)
        images = torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255
        predicted = DepthAnythingBase(model=model).depth(images)[0].clamp(1e-3, max_depth).detach().numpy()
        errors.append((np.abs(predicted - scene.depth) / scene.depth.clip(1e-3))[scene.valid].mean())
    return float(np.mean(errors))


@pytest.mark.parametrize("train_head", [False, True])
def test_what_is_left_of_the_old_depths_is_measured_in_the_base_s_own_range(
    base, streets, old_rooms, tmp_path, train_head
):
    flags = {"max_depth": 80, "learning_rate": 0.05, "train_head": train_head, "num_validation_images": 0}
    plain = run(config_of(base, streets, tmp_path / "plain", **flags))
    old = {"retention": "true", "retention_dir": old_rooms}
    results = run(config_of(base, streets, tmp_path / "out", **flags, **old))
    kept = {when: metrics.pop("retention_abs_rel") for when, metrics in results["metrics"].items()}
    assert results["metrics"] == plain["metrics"] and "jsonl test, 3 images, 0.001-10 m" in results["retention"]
    model = DepthAnythingBase.load(base).model
    assert kept["before"] == pytest.approx(error_of(model, 10), rel=1e-3)
    adapted = load_adapted(tmp_path / "out" / "adapter").base.model.get_base_model()
    adapted.head = model.head
    assert kept["after"] == pytest.approx(error_of(adapted, 10), rel=1e-3) != kept["before"]


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "mora1", "bitfit", "onelora_norms", "full", "sum+scale"])
def test_every_kind_of_method_trains(base, streets, tmp_path, method):
    results = run(config_of(base, streets, tmp_path, method=method, max_train_steps=2, num_validation_images=0))
    assert results["trainable_parameters"] > 0
    assert read_adapter(tmp_path / "adapter").info.method == method


def test_workers_gradient_checkpointing_and_decoded_images_change_nothing(base, streets, tmp_path):
    plain = run(config_of(base, streets, tmp_path / "plain", max_train_steps=3, num_validation_images=0))
    changes = {"dataloader_num_workers": 2, "gradient_checkpointing": "true", "cache_images": "uint8"}
    other = run(config_of(base, streets, tmp_path / "other", max_train_steps=3, num_validation_images=0, **changes))
    assert other["metrics"]["after"]["rmse"] != plain["metrics"]["before"]["rmse"]
    assert other["metrics"]["after"] == pytest.approx(plain["metrics"]["after"], rel=1e-6)


def test_training_lowers_the_loss(base, streets, tmp_path):
    changes = {
        "max_depth": 80,
        "max_train_steps": 40,
        "learning_rate": 0.02,
        "train_head": True,
        "resolution": "16x16",
    }
    results = run(config_of(base, streets, tmp_path, **changes, num_validation_images=0))
    assert results["metrics"]["after"]["silog_05"] < 0.8 * results["metrics"]["before"]["silog_05"]


def test_the_head_opens_to_the_caps(base, tmp_path, capsys):
    changes = {"dataset_name": "streets", "max_train_steps": 1, "max_train_samples": 4, "max_eval_samples": 2}
    results = run(config_of(base, "", tmp_path, **changes))
    assert "extended from 10 m to the caps' 80 m" in capsys.readouterr().out
    assert read_adapter(tmp_path / "adapter").info.extra["max_depth"] == 80
    assert "streets test, 2 images, 2-80 m" in results["protocol"]


def test_a_relative_checkpoint_is_refused_converted_or_trained_relative(
    tiny_depth_anything, streets, tmp_path, capsys
):
    base = tmp_path / "relative"
    tiny_depth_anything("relative").save_pretrained(base)
    with pytest.raises(InputError, match=r"relative checkpoint .* give --max_depth .*--loss ssi"):
        run(config_of(base, streets, tmp_path / "refused"))
    run(config_of(base, streets, tmp_path / "converted", max_depth=80))
    assert "head's last layer is reinitialised" in capsys.readouterr().out
    assert any("head" in name for name in read_adapter(tmp_path / "converted" / "adapter").tensors)
    results = run(config_of(base, streets, tmp_path / "relative-run", loss="ssi"))
    assert "scale and shift aligned" in results["protocol"]
    assert read_adapter(tmp_path / "relative-run" / "adapter").info.extra["max_depth"] is None


def test_invariant_loss_refuses_a_metric_checkpoint(base, streets, tmp_path):
    with pytest.raises(InputError, match="metric checkpoint, and --loss ssi"):
        run(config_of(base, streets, tmp_path, loss="ssi"))


def test_depth_of_a_wrong_scale_ends_in_one_line(base, streets, tmp_path, capsys):
    lines = (streets / "metadata.jsonl").read_text().replace("0.001", "1")
    (streets / "wrong.jsonl").write_text(lines)
    with pytest.raises(SystemExit) as ended:
        main(arguments(base, streets / "wrong.jsonl", tmp_path, max_depth=80))
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "4.npy: all depths" in error
    assert "is the scale wrong" in error


def test_a_folder_alone_is_the_data(base, streets, tmp_path):
    results = run(config_of(base, streets, tmp_path, dataset_name="null", max_depth=80, max_train_steps=1))
    assert results["protocol"].startswith("jsonl test, 2 images")
    assert DepthConfig().dataset_name == "streets"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"dataset_name": "rooms", "train_data_dir": "pics"},
            "--train_data_dir has no effect with --dataset_name rooms",
        ),
        ({"eval_data_dir": "pics"}, "--eval_data_dir has no effect with --eval_dataset_name streets"),
        ({"dataset_name": "vkitti2", "train_split_file": "x"}, "--train_split_file has no effect"),
    ],
)
def test_a_flag_without_effect_on_the_data_set_is_refused(flags, message):
    with pytest.raises(InputError, match=message):
        DepthConfig(**flags)


def test_rendered_data_cannot_be_unreadable_but_another_data_set_of_the_run_can():
    with pytest.raises(InputError, match="--on_bad_image has no effect with --dataset_name rooms"):
        DepthConfig(dataset_name="rooms", eval_dataset_name="streets", on_bad_image="skip")
    DepthConfig(dataset_name="rooms", eval_dataset_name="nyu", eval_data_dir="x", on_bad_image="skip")


def test_flags_without_effect_are_flags():
    names = {field.name for field in dataclasses.fields(DepthConfig)}
    shared, places = {"on_bad_image", "cache_images"}, {"data_dir", "split_file"}
    assert set().union(*(row.ignores for row in FORMATS.values())) == shared | places
    assert names >= shared | {f"{part}_{place}" for part in ("train", "eval") for place in places}


def test_a_single_frame_is_a_data_set(base, streets, tmp_path):
    line = json.loads((streets / "metadata.jsonl").read_text().splitlines()[0])
    (streets / "one.jsonl").write_text(json.dumps({**line, "split": "train"}))
    changes = {"eval_split": "train", "max_depth": 80, "max_train_steps": 2}
    results = run(config_of(base, streets / "one.jsonl", tmp_path, **changes))
    assert results["protocol"].startswith("jsonl train, 1 images")


def test_an_unreadable_frame_is_an_error_or_left_out(base, streets, tmp_path):
    lines = (streets / "metadata.jsonl").read_text().splitlines()
    changes = {"max_depth": 80, "max_train_steps": 2}
    (streets / "broken.png").write_bytes(b"broken")
    broken = lines[5].replace('"5.png"', '"broken.png"').replace('"5.npy"', '"4.npy"')
    (streets / "broken.jsonl").write_text("\n".join([*lines, broken]))
    with pytest.raises(InputError, match=r"broken\.png.*--on_bad_image skip"):
        run(config_of(base, streets / "broken.jsonl", tmp_path / "refused", **changes))
    skipped = run(config_of(base, streets / "broken.jsonl", tmp_path / "a", **changes, on_bad_image="skip"))
    whole = run(config_of(base, streets, tmp_path / "b", **changes))
    assert skipped["metrics"] == whole["metrics"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_name": "nyuv2"}, "no depth dataset 'nyuv2'; did you mean 'nyu'"),
        ({"dataset_name": "kitti", "train_data_dir": ""}, "needs its folder"),
        ({"caps": "kiti"}, "no caps named 'kiti'; did you mean 'kitti'"),
        ({"resolution": 15}, "not a multiple of the patch size 4"),
        ({"silog_lambda": 2}, "--silog_lambda is 2"),
        ({"method": "onelroa"}, "did you mean 'onelora'"),
        ({"max_depth": 0}, "--max_depth is 0, but must be at least 1"),
    ],
)
def test_bad_settings_are_named(base, streets, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(config_of(base, streets, tmp_path, **changes))


def test_a_dry_run_writes_nothing(base, streets, tmp_path, capsys):
    assert run(config_of(base, streets, tmp_path / "dry", dry_run="true")) == {}
    assert "trainable parameters" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_papers_transfers_are_valid_configs(path):
    config = parse_config(DepthConfig, ["--config", str(path), "--train_data_dir=/data"])
    assert config.method == "onelora"
    assert set(yaml.safe_load(path.read_text())) >= {"pretrained_model_name_or_path", "dataset_name", "resolution"}


def test_there_are_four_transfers():
    names = {path.stem for path in CONFIGS}
    assert names == {"kitti_to_nyu", "nyu_to_kitti", "kitti_to_diode_outdoor", "nyu_to_diode_outdoor"}
