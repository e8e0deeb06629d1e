import torch
from PIL import Image

from onelora_vision.plots.pictures import save_comparison, tile


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
