"""Printed glyphs: 0-9 and A-Z in the fonts of matplotlib and Pillow, rendered on the fly from a seed.

Every glyph of every font is stored once as a signed distance field. An image samples that field with a random affine
and elastic warp, moves the outline in or out (for thinner or bolder strokes), and paints ink on light paper.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from onelora_vision.data.stream import SampleRef
from onelora_vision.seeding import generators, mix

CLASS_NAMES = [*"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"]

# The text fonts in matplotlib's font folder (the others hold symbols, or digits that do not look like digits).
_MATPLOTLIB_FONTS = (
    [f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")]
    + [f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")]
    + ["cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"]
)
FONTS = len(_MATPLOTLIB_FONTS) + 1  # and Pillow's own
_FIELD = 64  # side of a distance field
_MARGIN = 1.6  # the field spans 1.6 glyph heights, so bold and warped outlines stay inside
_WARP = 4  # control points of the elastic warp per side
_DRAWS = 24 + 2 * _WARP**2  # uniform random numbers per image: geometry, 8 for colours, the warp


@functools.cache
def glyph_fields() -> tuple[torch.Tensor, torch.Tensor]:
    """Signed distance fields (fonts, 36, 64, 64), and half the width of each glyph's thickest stroke (fonts, 36).

    Distances are positive inside a glyph. Both are in units of the glyph's height. They are computed once per process,
    in about 4 s.
    """
    fields = np.stack([[_signed_distance(_glyph_mask(font, name)) for name in CLASS_NAMES] for font in _fonts()])
    return torch.from_numpy(fields), torch.from_numpy(fields.max(axis=(2, 3)))


def _fonts() -> list:
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [ImageFont.truetype(folder / f"{name}.ttf", 160) for name in _MATPLOTLIB_FONTS] + [
        ImageFont.load_default(160)
    ]


def _glyph_mask(font, name: str) -> np.ndarray:
    """Mask of one character (True for ink), scaled to a height of 120 pixels and centred on a square of 1.6 heights."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(name)
    glyph = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(glyph).text((-left, -top), name, fill=255, font=font)
    glyph = glyph.crop(glyph.getbbox())
    height, side = 120, round(120 * _MARGIN)
    width = min(round(glyph.width * height / glyph.height), side - 24)
    canvas = Image.new("L", (side, side))
    canvas.paste(glyph.resize((width, height)), ((side - width) // 2, (side - height) // 2))
    return np.asarray(canvas) > 127


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance to the outline in glyph heights, positive inside, sampled at 64 x 64 pixel centres."""
    from scipy.ndimage import distance_transform_edt

    distance = (distance_transform_edt(mask) - distance_transform_edt(~mask)) * _MARGIN / mask.shape[0]
    field = torch.from_numpy(distance).float()[None, None]
    return F.interpolate(field, size=(_FIELD, _FIELD), mode="bilinear", align_corners=False)[0, 0].numpy()


def render_glyphs(labels: Sequence[int] | torch.Tensor, seeds: Sequence[int] | torch.Tensor, size: int = 32):
    """Render printed glyphs: (N, 3, size, size) floats in [0, 1]. Image i depends only on labels[i] and seeds[i]."""
    labels = torch.as_tensor(labels)
    draws = torch.stack([torch.rand(_DRAWS, generator=g) for g in generators(seeds, stream=1)])
    fields, thickness = glyph_fields()
    font = (draws[:, 0] * FONTS).long()
    height = _between(draws[:, 1], 0.55, 0.90) * size  # pixels
    grid = _warped_grid(draws, height, size)
    distance = F.grid_sample(fields[font, labels][:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    # Strokes get thinner by at most a third of the thickest one, so no glyph falls apart.
    bolder = _between(draws[:, 2], -0.05, 0.05).clamp(min=-thickness[font, labels] / 3)
    pixels = (distance + bolder[:, None, None]) * height[:, None, None]
    soft = torch.where(draws[:, 3] < 0.3, _between(draws[:, 4], 1.5, 3.0), _between(draws[:, 4], 0.8, 1.4))
    mask = (0.5 + pixels / soft[:, None, None]).clamp(0, 1)
    ink, paper = _colors(draws[:, 16:24])
    return paint(mask, ink, paper)


def random_colors(seeds: Sequence[int] | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ink and paper colours as for glyphs, (N, 3) each in [0, 1], one pair per seed."""
    return _colors(torch.stack([torch.rand(_DRAWS, generator=g) for g in generators(seeds, stream=1)])[:, 16:24])


def font_numbers(seeds: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """The number of the font of each seed's glyph, (N,), from 0 to `FONTS` - 1."""
    return (torch.stack([torch.rand((), generator=g) for g in generators(seeds, stream=1)]) * FONTS).long()


def paint(mask: torch.Tensor, ink: torch.Tensor, paper: torch.Tensor) -> torch.Tensor:
    """Paint ink on paper: mask (N, H, W), colours (N, 3) or (3,) -> images (N, 3, H, W), all in [0, 1]."""
    ink, paper = ink.reshape(-1, 3, 1, 1), paper.reshape(-1, 3, 1, 1)
    return paper + mask[:, None] * (ink - paper)


def affine_grid(angle, scale_x, scale_y, shear, shift, size: int) -> torch.Tensor:
    """Make a sampling grid (N, size, size, 2) for `grid_sample`: the input position of each output pixel.

    Args:
        angle: rotation in degrees, (N,).
        scale_x, scale_y: size of the output relative to the input, (N,).
        shear: horizontal slant per unit of height, (N,).
        shift: (N, 2), in half image widths, x then y.
    """
    radians = angle * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    # from output to input: undo the shift and the rotation, then the slant, then the scale
    rows = torch.stack(
        [(cos + shear * sin) / scale_x, (sin - shear * cos) / scale_x, -sin / scale_y, cos / scale_y], 1
    )
    matrix = rows.reshape(-1, 2, 2)
    center = -(matrix @ shift[:, :, None])
    return F.affine_grid(torch.cat([matrix, center], 2), (len(angle), 1, size, size), align_corners=False)


def _warped_grid(draws: torch.Tensor, height: torch.Tensor, size: int) -> torch.Tensor:
    """Random rotation (±20°), aspect, slant, shift and elastic warp, as a sampling grid into the distance field."""
    scale = height * _MARGIN / size
    aspect = torch.exp(_between(draws[:, 5], -0.25, 0.25))
    grid = affine_grid(
        angle=_between(draws[:, 6], -20, 20),
        scale_x=scale * aspect,
        scale_y=scale,
        shear=_between(draws[:, 7], -0.35, 0.35),
        shift=_between(draws[:, 8:10], -0.14, 0.14),
        size=size,
    )
    control = _between(draws[:, 24:], -1, 1).reshape(-1, 2, _WARP, _WARP)
    warp = F.interpolate(control, size=(size, size), mode="bicubic", align_corners=True)
    # up to 15 % of the glyph's height, but less in most images
    strength = 2 / _MARGIN * 0.15 * draws[:, 10] ** 1.5
    return grid + strength[:, None, None, None] * warp.permute(0, 2, 3, 1)


def _colors(draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Light paper and clearly darker ink, (N, 3) each in [0, 1]. 45 % of the inks are blue, 40 % any hue, 15 % grey."""
    cream = draws[:, 0] < 0.5
    paper_hue = torch.where(cream, _between(draws[:, 1], 0.10, 0.17), draws[:, 1])
    paper = _hsv_to_rgb(paper_hue, 0.22 * draws[:, 2], _between(draws[:, 3], 0.85, 1.0))
    kind = draws[:, 4]
    hue = torch.where(kind < 0.45, _between(draws[:, 5], 0.56, 0.70), draws[:, 5])
    saturation = torch.where(kind < 0.85, _between(draws[:, 6], 0.55, 1.0), 0.25 * draws[:, 6])
    ink = _hsv_to_rgb(hue, saturation, _between(draws[:, 7], 0.15, 0.85))
    luminance = torch.tensor([0.299, 0.587, 0.114])
    darker = ((paper @ luminance - 0.35) / (ink @ luminance).clamp(min=1e-3)).clamp(max=1)
    return ink * darker[:, None], paper


def _hsv_to_rgb(hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Convert HSV, (N,) each in [0, 1], to RGB (N, 3) in [0, 1]."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue[:, None] * 6) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _between(draw: torch.Tensor, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * draw


class PrintedGlyphs(torch.utils.data.Dataset):
    """An endless variety of printed glyphs. Item ``SampleRef(index, seed)`` shows class ``index % classes``.

    Args:
        length: length of the dataset.
        class_names: a selection of 0-9 and A-Z.
        seed: used for a plain ``int`` index, so sets with different seeds (training, validation) share no images.
        size: pixels per side.
    """

    def __init__(self, length: int, class_names: Sequence[str] = CLASS_NAMES, seed: int = 0, size: int = 32):
        self.length, self.seed, self.size = length, seed, size
        self.class_names = list(class_names)
        self._glyphs = [CLASS_NAMES.index(name) for name in self.class_names]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, ref: SampleRef | int) -> dict:
        if not isinstance(ref, SampleRef):
            ref = SampleRef(int(ref), mix(self.seed, int(ref)))
        label = ref.index % len(self.class_names)
        image = render_glyphs([self._glyphs[label]], [ref.seed], self.size)[0]
        return {"image": image, "label": label, "seed": ref.seed}
