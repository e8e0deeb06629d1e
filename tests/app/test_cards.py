"""Cards: plain words for metrics, small pictures, and what a filter leaves."""

import base64
import io

import pytest
from PIL import Image

from app.cards import is_wanted, metric_in_words, thumbnail
from onelora_vision import embedded


@pytest.mark.parametrize(
    ("task", "metrics", "words"),
    [
        ("generation", [("fd_embedded", 7.81, 1.9)], "distance to the real images: 7.81 → 1.9, lower is better"),
        (
            "classification",
            [("nll", 1.1, 0.3), ("top1", 0.679, 0.907)],
            "right answers: 68 % → 91 %, higher is better",
        ),
        ("depth", [("abs_rel", 0.63, 0.21)], "relative error of the depth: 0.63 → 0.21, lower is better"),
        ("generation", [("fd_x", None, 2.0)], "distance to the real images: 2, lower is better"),
        ("depth", [("of_ones_own", 1.0, 2.0)], "of ones own: 1 → 2"),
        ("depth", [], ""),
    ],
)
def test_the_main_metric_is_said_in_words(task, metrics, words):
    assert metric_in_words(task, metrics) == words


def test_thumbnails_are_small_pictures_of_the_adapters_own(tmp_path):
    for folder in sorted(embedded.ADAPTERS.iterdir()):
        if not folder.is_dir():
            continue
        kind, _, data = thumbnail(folder).partition(",")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/webp;base64" and image.width <= 420 and image.height <= 150 and len(data) < 40_000
    assert thumbnail(tmp_path) is None and thumbnail(tmp_path / "x.safetensors") is None
    (tmp_path / "samples.png").write_bytes(b"no picture")
    assert thumbnail(tmp_path) is None
    (tmp_path / "samples.png").unlink()
    (tmp_path / "samples.png").symlink_to(next(embedded.ADAPTERS.glob("*/samples.png")))
    assert thumbnail(tmp_path) is None


def test_a_filter_takes_tasks_and_words():
    row = {"name": "Hand", "task": "depth", "method": "onelora", "base": "embedded", "class_names": ["cat"]}
    assert all(is_wanted(row, task, words) for task, words in (("", ""), ("depth", "hand CAT"), ("", "lora emb")))
    assert not any(is_wanted(row, task, words) for task, words in (("generation", ""), ("depth", "hand dog")))
