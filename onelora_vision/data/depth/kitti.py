"""KITTI depth (Geiger 2012, Uhrig 2017) with Eigen split lists: 16-bit PNG in units of 1/256 m, 0 where unknown."""

from collections.abc import Sequence
from pathlib import Path

from onelora_vision.data.depth.frames import (
    DepthFrame,
    FilePair,
    FrameFiles,
    existing_folder,
    read_list,
    require_frames,
)
from onelora_vision.data.images import shown
from onelora_vision.errors import InputError, MissingSplit
from onelora_vision.storage.textfiles import named_file

_IMAGE_FOLDERS = ("", "raw", "raw_data", "input")
_DEPTH_FOLDERS = (
    "",
    "data_depth_annotated",
    "data_depth_annotated/train",
    "data_depth_annotated/val",
    "gts",
    "train",
    "val",
)

KB_HEIGHT, KB_WIDTH = 352, 1216


class KittiFrames(FrameFiles):
    """KITTI's frames, cropped to the benchmark's 352 x 1216: bottom rows and middle columns ("KB crop")."""

    def __getitem__(self, index: int) -> DepthFrame:
        frame = super().__getitem__(index)
        height, width = frame.depth.shape
        if height < KB_HEIGHT or width < KB_WIDTH:
            raise InputError(f"{frame.name}: {width}x{height} pixels, but the KITTI crop needs {KB_WIDTH}x{KB_HEIGHT}")
        top, left = height - KB_HEIGHT, (width - KB_WIDTH) // 2
        rows, columns = slice(top, height), slice(left, left + KB_WIDTH)
        return DepthFrame(
            frame.image[rows, columns], frame.depth[rows, columns], frame.valid[rows, columns], frame.name
        )


def kitti(root: str, split: str, split_file: str | None = None) -> Sequence[DepthFrame]:
    """Open KITTI from a list with lines ``image depth [focal]``; depth ``None`` means no ground truth and is skipped.

    The list is ``split_file`` or, in ``root``, ``kitti_eigen_{split}_files_with_gt.txt`` with or without ``kitti_``.
    Images are looked up in root, raw, raw_data and input; depth in root, data_depth_annotated (and its train and val),
    gts, train and val.
    """
    folder = existing_folder(root)
    path = Path(split_file) if split_file else _split_list(folder, split)
    pairs = []
    for words in read_list(path):
        if len(words) < 2:
            raise InputError(f"{shown(path)}: the line {words[0]!r} names no depth file")
        if words[1] != "None":
            image, depth = _found(folder, _IMAGE_FOLDERS, words[0]), _found(folder, _DEPTH_FOLDERS, words[1])
            pairs.append(FilePair(image, depth, 1 / 256))
    return KittiFrames(require_frames(pairs, path, "lines 'image depth [focal]'"))


def _split_list(folder: Path, split: str) -> Path:
    names = [f"{prefix}eigen_{split}_files_with_gt.txt" for prefix in ("kitti_", "")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingSplit(
        f"{shown(folder)}: holds neither {names[0]} nor {names[1]}: give the Eigen list with --split_file"
    )


def _found(folder: Path, places: tuple[str, ...], name: str) -> Path:
    """Find a file of the list. If it is missing, return the first possible path, so reading it reports that path."""
    candidates = [named_file(folder / place, name.lstrip("/\\")) for place in places]
    return next((path for path in candidates if path.is_file()), candidates[0])
