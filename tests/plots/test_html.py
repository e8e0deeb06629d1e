import base64
import io

import pytest
from jinja2 import UndefinedError
from PIL import Image

from onelora_vision.plots.html import embedded_picture, render
from onelora_vision.storage.outputs import is_marked

RUNS = {"folder": "<b>", "columns": [("run", "text")], "note": "", "date": "today"}


def decoded(address):
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_names_are_text_in_a_page_and_its_mark_says_whose_it_is(tmp_path):
    cell = {"text": "<script>x</script>", "kind": "text", "value": '" onclick="x', "verdict": ""}
    row = {"cells": [cell], "link": '"><i>', "thumbnail": None, "unfinished": False}
    page = render("runs.html", rows=[row], **RUNS)
    assert "<script>x" not in page and "<b>" not in page and '"><i>' not in page and '" onclick' not in page
    (tmp_path / "page.html").write_text(page)
    (tmp_path / "mine.html").write_text("<html><title>onelora_vision</title></html>")
    assert is_marked(tmp_path / "page.html") and not is_marked(tmp_path / "mine.html")


def test_a_value_that_a_page_needs_cannot_be_forgotten():
    with pytest.raises(UndefinedError):
        render("runs.html", **RUNS)


def test_pictures_are_embedded_as_they_are_or_smaller(tmp_path):
    Image.new("RGB", (640, 320), "red").save(tmp_path / "a.png")
    whole, small = embedded_picture(tmp_path / "a.png"), embedded_picture(tmp_path / "a.png", 64)
    assert base64.b64decode(whole.partition(",")[2]) == (tmp_path / "a.png").read_bytes()
    assert decoded(small).size == (64, 32)


def test_a_large_picture_is_compressed_and_what_is_no_picture_is_left_out(tmp_path):
    Image.effect_noise((1500, 1500), 90).convert("RGBA").save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1_500_000
    assert embedded_picture(tmp_path / "a.png").startswith("data:image/jpeg") and decoded(
        embedded_picture(tmp_path / "a.png")
    ).size == (1500, 1500)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:1000])
    assert embedded_picture(tmp_path / "b.png", 64) is None and embedded_picture(tmp_path / "no.png") is None
