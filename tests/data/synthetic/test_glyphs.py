import pytest
import torch

from onelora_vision.data.stream import SampleRef
from onelora_vision.data.synthetic.glyphs import (
    CLASS_NAMES,
    FONTS,
    PrintedGlyphs,
    font_numbers,
    glyph_fields,
    random_colors,
    render_glyphs,
)


def test_every_font_draws_every_class_differently():
    fields, thickness = glyph_fields()
    assert fields.shape[1:] == (36, 64, 64) and len(fields) > 20
    assert thickness.min() > 0.02  # no glyph is empty
    inside = (fields > 0).flatten(2).float()
    for font in inside:
        overlap = font @ font.T
        union = font.sum(1)[:, None] + font.sum(1)[None] - overlap
        assert (overlap / union).fill_diagonal_(0).max() < 0.98  # no box stands in for missing characters


def test_an_image_depends_on_its_own_label_and_seed_alone():
    together = render_glyphs([3, 7, 35], [11, 12, 13])
    alone = render_glyphs([7], [12])
    assert together.shape == (3, 3, 32, 32)
    assert torch.allclose(together[1], alone[0], atol=1e-6)
    assert not torch.allclose(render_glyphs([7], [14]), alone, atol=0.05)
    assert not torch.allclose(render_glyphs([8], [12]), alone, atol=0.05)


def test_images_are_dark_ink_on_light_paper_in_range():
    images = render_glyphs(torch.arange(360) % 36, range(360))
    assert images.min() >= 0 and images.max() <= 1
    gray = images.mean(1).flatten(1)
    assert (gray.max(1).values > 0.7).all()
    assert (gray.max(1).values - gray.min(1).values > 0.15).all()


def test_colors_reach_saturated_blue():
    ink, paper = random_colors(range(500))
    weight = torch.tensor([0.299, 0.587, 0.114])
    assert (paper @ weight - ink @ weight).min() > 0.3
    assert ((ink[:, 2] - ink[:, 0] > 0.4) & (ink[:, 2] > ink[:, 1])).sum() > 50


def test_items_follow_the_sample_reference():
    data = PrintedGlyphs(100, class_names=["A", "7"], seed=1)
    item = data[SampleRef(5, 99)]
    assert item["label"] == 1 and item["seed"] == 99 and len(data) == 100
    assert torch.equal(item["image"], render_glyphs([CLASS_NAMES.index("7")], [99])[0])
    assert not torch.equal(data[3]["image"], PrintedGlyphs(100, ["A", "7"], seed=2)[3]["image"])


@pytest.mark.parametrize("size", [32, 48])
def test_size_scales_the_picture(size):
    image = render_glyphs([4], [5], size)
    small = torch.nn.functional.interpolate(image, size=(16, 16), mode="area")
    reference = torch.nn.functional.interpolate(render_glyphs([4], [5], 64), size=(16, 16), mode="area")
    assert (small - reference).abs().mean() < 0.05


def test_font_numbers_name_the_font_that_is_drawn():
    seeds = range(300)
    fonts = font_numbers(seeds)
    assert fonts.min() >= 0 and fonts.max() < FONTS == len(glyph_fields()[0])
    # bold fonts are the ones whose strokes are thick, whatever else a seed changes
    thickness = glyph_fields()[1].mean(1)
    area = 1 - render_glyphs([8] * 300, seeds).mean((1, 2, 3))
    spread = (area - area.mean()) / area.std()
    assert torch.corrcoef(torch.stack([thickness[fonts], spread]))[0, 1] > 0.2
