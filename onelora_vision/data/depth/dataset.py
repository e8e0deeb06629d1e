"""Frames prepared for a network: pictures resized to whole patches, and depth in metres."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from onelora_vision.data.decoded import PICTURE_AND_DEPTH, DecodedArrays, decode_all
from onelora_vision.data.depth.caps import Caps, counted
from onelora_vision.data.depth.frames import DepthFrame
from onelora_vision.data.images import MAX_ASPECT
from onelora_vision.data.paths import Paths
from onelora_vision.data.stream import BadItems, SampleRef
from onelora_vision.errors import InputError
from onelora_vision.seeding import mix


class InputSize(NamedTuple):
    """The size of network inputs: exactly height x width or, if width is None, a shorter side of ``height``."""

    height: int
    width: int | None
    multiple: int

    @classmethod
    def parse(cls, resolution: int | str, multiple: int) -> "InputSize":
        """Parse ``518`` or ``"518"`` (the shorter side), or ``"392x518"`` (exact height and width).

        Raises:
            InputError: ``resolution`` has another form, or a number is not a multiple of ``multiple``.
        """
        parts = str(resolution).lower().split("x")
        if len(parts) > 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
            raise InputError(
                f"--resolution is {resolution!r}, but must be a number such as 518 or a size such as 392x518"
            )
        numbers = [int(part) for part in parts]
        for number in numbers:
            if number % multiple:
                near = max(round(number / multiple), 1) * multiple
                raise InputError(
                    f"--resolution {resolution}: {number} is not a multiple of the patch size {multiple}; try {near}"
                )
        return cls(numbers[0], numbers[1] if len(numbers) == 2 else None, multiple)

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) to resize a whole picture to. The aspect ratio is kept if only one of them is set.

        The longer side is at most `MAX_ASPECT` times ``self.height``, so the shorter side of a very long picture is
        smaller.
        """
        if self.width is not None:
            return self.height, self.width
        scale = min(self.height / min(height, width), MAX_ASPECT * self.height / max(height, width))
        return self._whole(height * scale), self._whole(width * scale)

    def _whole(self, pixels: float) -> int:
        return max(round(pixels / self.multiple), 1) * self.multiple


class DepthDataset(Dataset):
    """Samples ``{"image", "depth", "valid", "seed", "index", "path"}`` from a sequence of frames.

    ``image`` is (3, h, w) in [0, 1]. ``depth`` (in metres) and ``valid`` (bool) are (H, W), 0 and False outside the
    caps.

    For evaluation, the whole picture is resized, and the depth keeps its own size. For training, the picture can be
    mirrored and its colours jittered. With an exact size, it is then treated as in evaluation (as in ZoeDepth, which
    resizes the prediction to the ground truth). Otherwise, a random square is cut, and picture and depth are resized
    to the input's side (as in Depth Anything v2; depth takes the nearest pixel). The caps' crop is only used in
    evaluation.

    Args:
        frames: a dataset, see `data.depth.formats.open_frames`.
        caps: which depths count.
        size: size of the network's input.
        train: whether to augment and crop.
        random_flip, color_jitter: the augmentations, drawn with each sample's own seed.
        limit: number of frames to use: the first ones, or those drawn with ``drawn_by``.
        on_bad_image: how to treat a frame that cannot be read or has no depth that counts, see `BadItems`; an
            evaluation counts each ``index`` once.
        drawn_by: seed for drawing ``limit`` frames; None uses the first ones.
    """

    def __init__(
        self,
        frames: Sequence[DepthFrame],
        caps: Caps,
        size: InputSize,
        train: bool = False,
        random_flip: bool = True,
        color_jitter: bool = True,
        limit: int | None = None,
        on_bad_image: str = "error",
        drawn_by: int | None = None,
    ):
        self.chosen: Sequence[int] = range(len(frames))[:limit]
        if drawn_by is not None:
            self.chosen = sorted(np.random.default_rng(mix(drawn_by)).permutation(len(frames))[:limit].tolist())
        self.frames, self.size, self.train = frames, size, train
        self.caps = caps._replace(crop="none") if train else caps
        self.random_flip, self.color_jitter = train and random_flip, train and color_jitter
        self._bad = BadItems(len(self), on_bad_image, "this depth dataset")
        self._decoded: DecodedArrays | None = None
        self._names = Paths()  # of the decoded frames

    def __len__(self) -> int:
        return len(self.chosen)

    def identity(self) -> str:
        """A hash of the number of frames and, for files, of their names, wherever the dataset is stored."""
        names = [f"{pair.image.name} {pair.depth.name}" for pair in getattr(self.frames, "pairs", [])]
        return hashlib.sha256(repr((len(self), names)).encode(errors="surrogateescape")).hexdigest()[:16]

    def __getitem__(self, ref: SampleRef | int) -> dict:
        index, seed = SampleRef.of(ref)
        index, (frame, valid) = self._bad.first_readable(index, self._read)
        image, depth = frame.image, frame.depth
        rng = np.random.default_rng(mix(seed))
        if self.random_flip and rng.random() < 0.5:
            image, depth, valid = image[:, ::-1], depth[:, ::-1], valid[:, ::-1]
        if self.train and self.size.width is None:
            image, depth, valid = self._square(image, depth, valid, rng)
        pixels = resized_image(image, *self.size.of(*image.shape[:2]))
        if self.color_jitter:
            pixels = _jitter(pixels, rng)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            "depth": torch.from_numpy(np.where(valid, depth, 0).astype(np.float32)),
            "valid": torch.from_numpy(np.ascontiguousarray(valid)),
            "seed": seed,
            "index": index,
            "path": frame.name,
        }

    def keep_decoded(self, hidden: bool = False) -> None:
        """As `ClassImageDataset.keep_decoded`, for pictures as bytes and depth in fp32: 7 bytes per pixel."""
        names = [""] * len(self)

        def read(index: int) -> tuple[np.ndarray, np.ndarray]:
            frame = self.frames[self.chosen[index]]
            names[index] = frame.name
            return np.where(frame.valid, frame.depth, np.float32(0)), frame.image

        self._decoded = decode_all(read, len(self), PICTURE_AND_DEPTH, "this depth dataset", hidden)
        self._names = Paths(names)

    def _read(self, index: int) -> tuple[DepthFrame, np.ndarray]:
        kept = self._decoded[index] if self._decoded else None
        if kept is None:
            frame = self.frames[self.chosen[index]]
        else:
            depth, image = kept
            frame = DepthFrame(image, depth, depth > 0, self._names[index])
        return frame, counted(frame, self.caps)

    def __getitems__(self, refs: list[SampleRef | int]) -> list[dict]:
        """The samples of a batch. Raises `InputError` if their images or depths differ in size."""
        samples = [self[ref] for ref in refs]
        first = samples[0]
        for sample in samples[1:]:
            if sample["depth"].shape != first["depth"].shape or sample["image"].shape != first["image"].shape:
                raise InputError(
                    f"{sample['path']} and {first['path']} are of different sizes "
                    f"({_size(sample)} and {_size(first)}) and do not fit into one batch: use batches of one for "
                    "evaluation, and one number as --resolution"
                )
        return samples

    def _square(self, image, depth, valid, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut the largest possible square at random, with depth at the network's resolution (nearest pixel)."""
        height, width = depth.shape
        side, target = min(height, width), self.size.height
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        picked = ((np.arange(target) + 0.5) * side / target).astype(int)
        rows, columns = (top + picked)[:, None], left + picked
        return image[top : top + side, left : left + side], depth[rows, columns], valid[rows, columns]


def resized_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a picture (H, W, 3) uint8 to (height, width, 3) fp32 in [0, 1]; bicubic, antialiased."""
    if image.shape[:2] != (height, width):
        image = np.asarray(
            Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC)
        )
    return image.astype(np.float32) / 255


def _jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """ZoeDepth's colour augmentation, with probability 0.5: gamma, brightness and tint within 10 %."""
    if rng.random() < 0.5:
        return pixels
    gamma, brightness, tint = rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1, 3)
    return np.clip(pixels**gamma * brightness * tint, 0, 1).astype(np.float32)


def _size(sample: dict) -> str:
    return "x".join(map(str, reversed(sample["depth"].shape)))
