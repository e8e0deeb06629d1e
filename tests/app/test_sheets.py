"""Sheets of drawings that can be laid one over the other."""

import numpy as np
import pytest
from PIL import Image

from app.sheets import sheet, write_pair


@pytest.fixture
def files(tmp_path):
    """Six pictures of one colour each."""
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(6)]


def test_a_sheet_has_every_picture_in_its_place_and_no_gap_at_its_end(files):
    pixels = np.asarray(sheet(files))
    assert pixels.shape == (2 * 64 + 2, 3 * 64 + 4, 3)
    assert [pixels[66 * (n // 3) + 20, 66 * (n % 3) + 20, 0] for n in range(6)] == [40 * n for n in range(6)]


def test_a_pair_is_of_as_many_pictures_in_the_same_places(files, tmp_path):
    base, adapted = (np.asarray(Image.open(path)) for path in write_pair(tmp_path, files[:3], files[3:]))
    assert base.shape == adapted.shape and base[20, 20, 0] == 0 and adapted[20, 20, 0] == 120
    assert write_pair(tmp_path, files, []) is None and write_pair(tmp_path, [], files) is None
