"""NYU Depth v2 (Silberman et al. 2012): the labelled .mat file, or folders with 16-bit depth in millimetres."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onelora_vision.data.depth.frames import (
    DepthFrame,
    FilePair,
    FrameFiles,
    existing_folder,
    import_h5py,
    in_metres,
    make_frame,
    read_list,
    require_frames,
)
from onelora_vision.data.images import shown
from onelora_vision.errors import InputError, MissingSplit, one_line
from onelora_vision.storage.textfiles import named_file


class NyuMat(Sequence[DepthFrame]):
    """``nyu_depth_v2_labeled.mat``: 1,449 frames of 480 x 640, depth in metres (inpainted ``depths``).

    Args:
        path: the .mat file (HDF5: ``images`` (N, 3, 640, 480) uint8, ``depths`` (N, 640, 480) fp32).
        split: "train" or "test" of ``splits.mat`` next to it (Eigen's 795 and 654), or "all".
    """

    def __init__(self, path: Path, split: str = "all"):
        self.path = path
        try:
            with import_h5py().File(path) as file:
                count = len(file["depths"])
                if file["images"].shape[0] != count:
                    raise InputError(f"{shown(path)}: {file['images'].shape[0]} images but {count} depth maps")
        except FileNotFoundError:
            raise InputError(f"{shown(path)}: no such file") from None
        except (OSError, KeyError) as error:
            raise InputError(f"{shown(path)}: not NYU's labelled .mat file ({one_line(error)})") from error
        self.indices = (
            np.arange(count) if split == "all" else _split_indices(path.with_name("splits.mat"), split, count)
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> DepthFrame:
        number = int(self.indices[index])
        with import_h5py().File(self.path) as file:  # reopened: a file handle must not be passed to a worker process
            image, depth = file["images"][number].transpose(2, 1, 0), file["depths"][number].T
        name = f"{shown(self.path)} frame {number}"
        return make_frame(np.ascontiguousarray(image), in_metres(depth, name), name, name)


def _split_indices(path: Path, split: str, count: int) -> np.ndarray:
    from scipy.io import loadmat

    try:
        indices = loadmat(path)[f"{split}Ndxs"].ravel().astype(int) - 1  # Matlab counts from 1
    except FileNotFoundError:
        raise MissingSplit(
            f"{shown(path)}: no such file, and the split {split!r} is defined there; use split 'all'"
        ) from None
    except (KeyError, ValueError, OSError) as error:
        raise MissingSplit(f"{shown(path)}: holds no {split}Ndxs, so it has no split {split!r}") from error
    if len(indices) == 0 or indices.min() < 0 or indices.max() >= count:
        raise InputError(
            f"{shown(path)}: the split {split!r} names frames that the .mat file of {count} does not have"
        )
    return indices


def nyu(root: str, split: str, split_file: str | None = None) -> Sequence[DepthFrame]:
    """Open NYU from the .mat file, from a split file (lines ``image depth [focal]``), or from ``root/split`` folders.

    In folders, the depth of an image ``rgb_X.jpg`` (or .png) is next to it in ``sync_depth_X.png``, the layout in which
    the Eigen split is distributed. Depth PNGs are in millimetres.
    """
    if Path(root).suffix == ".mat":
        if split_file:
            raise InputError(f"{shown(root)}: the .mat file has its own splits: leave {shown(split_file)} out")
        return NyuMat(Path(root), split)
    folder = existing_folder(root)
    if split_file:
        lines = read_list(split_file)
        if short := [words for words in lines if len(words) < 2]:
            raise InputError(f"{shown(split_file)}: the line {short[0][0]!r} names no depth file")
        pairs = [FilePair(*(named_file(folder, word.lstrip("/\\")) for word in words[:2]), 0.001) for words in lines]
    else:
        images = [path for path in sorted((folder / split).rglob("rgb_*")) if path.suffix.lower() in (".jpg", ".png")]
        pairs = [FilePair(path, path.with_name(f"sync_depth_{path.stem[4:]}.png"), 0.001) for path in images]
    require_frames(pairs, folder, f"{split}/**/rgb_*.jpg with sync_depth_*.png, or a --split_file")
    return FrameFiles(pairs)
