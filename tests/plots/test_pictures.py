import numpy as np
import pytest
import torch
from PIL import Image

from onelora_vision.plots.pictures import MAX_CELL, MIN_CELL, save_comparison, tile


def test_tiles_row_by_row():
    images = torch.arange(5).float().reshape(5, 1, 1, 1).expand(5, 3, 4, 6) / 10
    sheet = tile(images, columns=3, gap=2)
    assert sheet.shape == (3, 10, 22)
    assert sheet[0, 0, 0] == 0 and abs(sheet[0, 0, 8] - 0.1) < 1e-6 and abs(sheet[0, 6, 8] - 0.4) < 1e-6
    assert sheet[0, 6, 20] == 1 and sheet[0, 4, 0] == 1  # an empty place and a gap are white


def test_comparison_is_a_picture_with_both_panels(tmp_path):
    dark, light = torch.zeros(2, 3, 3, 32, 32), torch.full((2, 3, 3, 32, 32), 0.5)
    save_comparison(tmp_path / "samples.png", {"base": dark, "adapted": light}, ["zero", "one"], "seed 0")
    picture = Image.open(tmp_path / "samples.png").convert("L")
    colours = {value for count, value in picture.getcolors() if count > 3000}
    assert {0, 255} < colours and any(120 < value < 135 for value in colours)
    assert picture.width > 2 * 3 * 90


def pixels(path):
    return torch.from_numpy(np.array(Image.open(path).convert("RGB")))


def save(path, shape, panels=1, **options):
    rows = [f"class {row}" for row in range(shape[0])]
    images = torch.full(shape, 0.25)
    images[:, :, 2] = 0.5  # a colour that no text has
    save_comparison(path, {str(k): images for k in range(panels)}, rows, **options)
    found = pixels(path)
    return found.shape[:2], int((found == torch.tensor([64, 64, 128])).all(-1).sum())


@pytest.mark.parametrize(("side", "shown"), [(8, 112), (28, 112), (32, 128), (150, 150), (512, 192)])
def test_cells_are_large_enough_to_see_and_whole_multiples_of_small_images(tmp_path, side, shown):
    _, shown_pixels = save(tmp_path / "grid.png", (2, 3, 3, side, side), panels=3, caption="a\nb", column_names="xyz")
    assert MIN_CELL <= shown <= MAX_CELL and shown_pixels == 3 * 2 * 3 * shown**2


def test_a_picture_of_many_classes_has_small_cells_and_can_be_drawn(tmp_path):
    (height, _), shown_pixels = save(tmp_path / "grid.png", (1500, 1, 3, 64, 64))
    assert height < 2**16 and shown_pixels > 1500 * 16**2


def test_missing_images_are_blank_and_panels_of_another_size_fit(tmp_path):
    training = torch.full((2, 2, 3, 20, 20), 0.25)
    training[1, 1] = torch.nan
    save_comparison(tmp_path / "a.png", {"a": torch.zeros(2, 2, 3, 32, 32), "b": training}, ["x", "y"])
    found = pixels(tmp_path / "a.png")
    assert int((found == 64).all(-1).sum()) == 3 * 128**2


def test_names_are_shown_as_they_are(tmp_path):
    """matplotlib reads text with two dollars as a formula, and raises where it is none."""
    save_comparison(tmp_path / "a.png", {"$\\x$": torch.zeros(1, 1, 3, 8, 8)}, ["$\\frac$" * 9], "$\\no$", ["$\\no$"])
    assert (tmp_path / "a.png").exists()
