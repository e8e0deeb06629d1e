"""The benchmark of guidance: it trains, measures each point once, and writes table and picture."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import guidance
from benchmarks.guidance import BASE, DISTILLED, OWN, Point
from onelora_vision.errors import InputError
from onelora_vision.metrics.generative import Protocol
from train_scripts import train_dit


def run(*flags):
    with pytest.raises(SystemExit) as ended:
        guidance.main([*map(str, flags)])
    return ended.value.code


def rows_of(page):
    """The rows of the table: guide, scale, evaluations per step, and the metrics."""
    lines = page.read_text().splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith(("| the ", "| its "))]


@pytest.fixture(scope="module")
def runs(dit_folder, tmp_path_factory):
    """A run of the tiny pipeline on a folder of pictures, and one that is trained towards guidance."""
    root, draw = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for name in ("red", "green"):
        for split in ("train", "test"):
            (root / "data" / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "data" / split / name / f"{index}.png")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0, img_size=224).state_dict(), root / "vit.safetensors")
    flags = {
        "pretrained_model_name_or_path": dit_folder,
        "data_dir": root / "data",
        "dataset_name": "imagefolder",
        "max_train_steps": 2,
        "learning_rate": 1,
        "train_batch_size": 4,
        "num_inference_steps": 2,
        "num_validation_images": 0,
        "fid_features": "dinov2",
        "fid_weights": root / "vit.safetensors",
        "fid_timm_model": "test_vit",
        "fid_num_samples": 0,
        "report_to": "none",
    }
    for name, changed in {"plain": {}, "distilled": {"guidance_distillation": 1.5}}.items():
        with pytest.raises(SystemExit) as ended:
            given = {**flags, **changed, "output_dir": root / name}
            train_dit.main([f"--{flag}={value}" for flag, value in given.items()])
        assert ended.value.code == 0
    return root / "plain", root / "distilled"


def test_runs_are_measured_once_at_every_point(runs, tmp_path, capsys, monkeypatch, blank_figures):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = ("--runs", *runs, "--folder", tmp_path, "--docs", tmp_path / "docs", "--scales", "1,3", "--num_samples", 8)
    assert run(*flags) == 0
    page = tmp_path / "docs" / "guidance-tables.md"
    rows = rows_of(page)
    kinds = [(OWN, "1", "1"), (OWN, "3", "2"), (BASE, "1", "1"), (BASE, "3", "2"), (DISTILLED, "1.5 in training", "1")]
    assert [tuple(row[:3]) for row in rows] == kinds
    assert all(float(cell) >= 0 for row in rows for cell in row[3:7]) and rows[0][7] == "–"  # nothing classifies here
    assert rows[0][3:] == rows[2][3:] and rows[1][3:] != rows[3][3:]  # without guidance the base makes no difference
    assert (tmp_path / "docs" / "images" / "guidance.png").is_file()
    assert "8 samples against 8 images of imagefolder/test" in capsys.readouterr().out
    measured = json.loads((tmp_path / "measured.json").read_text())
    protocols = [Protocol.parse(row["protocol"]) for row in measured]
    assert [protocol.guidance_base for protocol in protocols] == [False, False, True, False]
    assert [protocol.guidance_distillation for protocol in protocols] == [1, 1, 1, 1.5]
    monkeypatch.setattr(guidance.SampleEvaluator, "__call__", lambda *_: pytest.fail("measured again"))
    text = page.read_text()
    assert "`python -m benchmarks.guidance --runs plain distilled --scales 1,3 --num_samples 8`" in text
    page.unlink()
    assert run(*flags) == 0 and page.read_text() == text


@pytest.mark.slow
def test_the_embedded_job_is_trained_once_and_measured(tmp_path, blank_figures, monkeypatch):
    assert run("--quick", "--folder", tmp_path) == 0
    rows = rows_of(tmp_path / "quick" / "guidance-tables.md")
    assert len(rows) == 5 and all(float(cell) >= 0 for row in rows for cell in row[3:])
    monkeypatch.setattr(guidance.train_dit, "main", lambda argv: pytest.fail("trained again"))
    assert run("--quick", "--folder", tmp_path) == 0


PROTOCOL = Protocol(
    10, 20, "test", "none", "none", "ddim", 2, 2.0, "all", "0,1", "fp32", "v", 0, False, "embedded", "w"
)


def point(guide, scale, seed, value, **changed):
    fields = {"guidance": scale, "guidance_base": guide == BASE, "seed": seed, **changed}
    metrics = {name.format("embedded"): value for name in guidance.METRICS}
    protocol = Protocol(**{**vars(PROTOCOL), **fields}).line()
    return Point(guide, scale, protocol, metrics)


def test_seeds_are_averaged_and_unlike_measurements_refused():
    points = [point(OWN, 2.0, seed, 0.25 + seed / 2) for seed in (0, 1)]
    rows = guidance.table(guidance.grouped(points))
    assert rows[-1] == (
        "| its own null class | 2 | 2 | 0.50 ± 0.35 | 0.500 ± 0.354 | 0.500 ± 0.354 | 0.500 ± 0.354 | 50.0 ± 35.4 |"
    )
    with pytest.raises(InputError, match="steps 2 and 3"):
        guidance.grouped([*points, point(OWN, 2.0, 2, 0.5, steps=3)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_samples", 6], "--num_samples is 6, but must be at least 7"),
        (["--scales", "1;2"], "--scales is '1;2'"),
        (["--distillation", 3], "must be greater than 1 and less than 2"),
        (["--runs", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(flags, message, tmp_path, capsys):
    assert run("--folder", tmp_path, *flags) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
