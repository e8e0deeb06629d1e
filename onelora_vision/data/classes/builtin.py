"""Built-in images: handwritten digits, and the printed characters that the embedded bases were trained on."""

import functools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from onelora_vision.data.classes.images import ClassImages, Pixels
from onelora_vision.data.synthetic.glyphs import CLASS_NAMES, render_glyphs
from onelora_vision.seeding import mix

#: Printed characters per class in each split.
GLYPHS = {"train": 100, "validation": 14, "test": 28}
_GLYPH_SEED = 2504


def digits(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """The handwriting of `onelora_vision.data.synthetic.digits`, 32 x 32 pixels, in its fixed splits."""
    from onelora_vision.data.synthetic.digits import HandwrittenDigits

    source = HandwrittenDigits(split)
    pixels = (source.images().permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return ClassImages(Pixels(pixels), source.labels.tolist(), source.class_names, "digits", split)


def glyphs(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """Printed 0-9 and A-Z, 32 x 32 pixels, equally many of each, the same in every run. Splits are disjoint."""
    labels = [number % len(CLASS_NAMES) for number in range(GLYPHS[split] * len(CLASS_NAMES))]
    seeds = [mix(_GLYPH_SEED, [*GLYPHS].index(split), number) for number in range(len(labels))]
    return ClassImages(_Glyphs(labels, seeds), labels, list(CLASS_NAMES), "glyphs", split)


class _Glyphs(Sequence):
    """Pictures of printed characters, all rendered on first access."""

    def __init__(self, labels: Sequence[int], seeds: Sequence[int]):
        self.labels, self.seeds = labels, seeds

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Image.Image:
        return self._pictures[index]

    @functools.cached_property
    def _pictures(self) -> Pixels:
        images = render_glyphs(self.labels, self.seeds).permute(0, 2, 3, 1)
        return Pixels((images * 255).round().byte().numpy())
