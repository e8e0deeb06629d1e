"""Real handwriting: scikit-learn's digits (UCI, 43 writers), painted as blue ink on cream paper at 32 x 32 pixels."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from onelora_vision.data.stream import SampleRef
from onelora_vision.data.synthetic.glyphs import affine_grid, paint
from onelora_vision.errors import InputError, nearest
from onelora_vision.seeding import mix

CLASS_NAMES = [*"0123456789"]
INK = torch.tensor([0.09, 0.20, 0.68])
PAPER = torch.tensor([0.98, 0.96, 0.89])
# A quarter (449 images) is enough to tell 1 % of accuracy and to estimate a 64 x 64 covariance; 15 % chooses learning
# rates; the rest trains. Stratified, always the same, whatever seed a run has: figures of two runs compare.
SPLITS = {"train": 0.60, "validation": 0.15, "test": 0.25}
_SPLIT_SEED = 2503


@functools.cache
def ink_masks() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1,797 digits as ink coverage (1797, 32, 32) in [0, 1], and their labels (1797,).

    The set holds 8 x 8 counts (0 to 16) of inked pixels in a 32 x 32 bitmap: bicubic interpolation and a steeper edge
    give back strokes instead of blocks.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    coarse = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    smooth = F.interpolate(coarse, size=(28, 28), mode="bicubic", align_corners=False)
    mask = ((smooth - 0.42) * 2.2 + 0.5).clamp(0, 1)
    return F.pad(mask, (2, 2, 2, 2))[:, 0], torch.tensor(digits.target)


@functools.cache
def split_indices(split: str) -> torch.Tensor:
    """Indices of one split of `SPLITS` into `ink_masks`, class by class at the same shares, ascending.

    Raises:
        InputError: for an unknown split.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} of the handwriting does not exist{nearest(split, SPLITS, 'split')}")
    labels = ink_masks()[1]
    shares = list(SPLITS.values())
    begin = sum(shares[: list(SPLITS).index(split)])
    chosen = []
    for label in range(10):
        members = _shuffled(labels, label, _SPLIT_SEED)
        chosen.append(members[round(begin * len(members)) : round((begin + SPLITS[split]) * len(members))])
    return torch.cat(chosen).sort().values


def _shuffled(labels: torch.Tensor, label: int, seed: int) -> torch.Tensor:
    members = (labels == label).nonzero().flatten()
    return members[torch.randperm(len(members), generator=torch.Generator().manual_seed(mix(seed, label)))]


class HandwrittenDigits(torch.utils.data.Dataset):
    """One split of the handwriting. Items: image (3, 32, 32) in [0, 1], label, seed.

    Args:
        split: "train", "validation" or "test".
        augment: turn (±8°), scale (±6 %), shift (±1.5 pixels) each image at random, drawn from its ref's seed.
        few_shot: keep only so many images per class, chosen by ``seed``; None keeps all.

    Raises:
        InputError: for an unknown split, or ``few_shot`` below 1 or above what the smallest class has.
    """

    def __init__(self, split: str = "train", augment: bool = False, few_shot: int | None = None, seed: int = 0):
        self.class_names = list(CLASS_NAMES)
        self.augment = augment
        masks, labels = ink_masks()
        indices = split_indices(split)
        if few_shot is not None:
            indices = indices[_few_per_class(labels[indices], few_shot, seed)]
        self.masks, self.labels = masks[indices], labels[indices]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, ref: SampleRef | int) -> dict:
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef | int]) -> list[dict]:
        """The samples of a batch, which torch's loader asks for at once: drawn together, which is several times faster."""
        refs = [SampleRef.of(ref) for ref in refs]
        indices, seeds = [ref.index for ref in refs], [ref.seed for ref in refs]
        masks = jitter(self.masks[indices], seeds) if self.augment else self.masks[indices]
        rows = zip(paint(masks, INK, PAPER), self.labels[indices].tolist(), seeds)
        return [{"image": image, "label": label, "seed": seed} for image, label, seed in rows]

    def images(self) -> torch.Tensor:
        """All images of the split as they are, (N, 3, 32, 32) in [0, 1]."""
        return paint(self.masks, INK, PAPER)


def jitter(masks: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Turn, scale and shift masks (N, H, W) a little, each from its own seed."""
    generator = torch.Generator()
    draws = torch.stack([torch.rand(4, generator=generator.manual_seed(seed)) for seed in seeds]) * 2 - 1
    size = masks.shape[-1]
    scale = 1 + 0.06 * draws[:, 1]
    shift = draws[:, 2:] * 1.5 * 2 / size
    grid = affine_grid(8 * draws[:, 0], scale, scale, torch.zeros(len(masks)), shift, size)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def _few_per_class(labels: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    available = int(labels.bincount(minlength=10).min())
    if not 1 <= count <= available:
        raise InputError(f"few_shot={count} images per class: the split has 1 to {available} of each class")
    return torch.cat([_shuffled(labels, label, seed)[:count] for label in range(10)]).sort().values
