import numpy as np
import pytest
from PIL import Image

from onelora_vision.plots.predictions import CELL, Answer, Judged, save_predictions


def judged(size=(8, 8), right=True):
    answer = Answer("$\\name$", right, 0.5)
    return Judged(Image.new("RGB", size, (10, 20, 30)), "truth" * 20, answer, answer)


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (300, 200), (128, 128)])
def test_an_image_is_shown_whole_and_large(tmp_path, size):
    save_predictions(tmp_path / "a.png", [judged(size)] * 8, "top1 $ 0.5 $\nof 8 images")
    found = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
    shown = (found == (10, 20, 30)).all(-1).sum() / 8
    assert 0.9 * CELL**2 * min(size) / max(size) < shown <= CELL**2


def test_errors_are_red(tmp_path):
    red = []
    for right in (True, False):
        save_predictions(tmp_path / "a.png", [judged(right=right)])
        found = np.array(Image.open(tmp_path / "a.png").convert("RGB"))
        red.append(int((found == (0xC6, 0x28, 0x28)).all(-1).sum()))
    assert red[0] == 0 < red[1]
