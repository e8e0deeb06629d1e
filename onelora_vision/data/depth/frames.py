"""One picture with its depth, whatever the data set's format: reading the files, in metres, with the invalid marked.

A data set is a sequence of `DepthFrame`. Depth is metres along the camera's axis. What is not a positive finite
number is invalid from the start; caps, crops and masks take more away later.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from onelora_vision.data.images import read_image, shown
from onelora_vision.errors import InputError


class DepthFrame(NamedTuple):
    """``image`` (H, W, 3) uint8, ``depth`` (H, W) fp32 metres, ``valid`` (H, W) bool, ``name`` for messages."""

    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray
    name: str


class FilePair(NamedTuple):
    """The files of one frame; ``scale`` turns the depth file's values into metres; ``mask`` is nonzero where valid."""

    image: Path
    depth: Path
    scale: float = 1.0
    mask: Path | None = None


class FrameFiles(Sequence[DepthFrame]):
    """Frames that are files: ``pairs`` say which, ``read_depth(path)`` gives a depth file's numbers (H, W)."""

    def __init__(self, pairs: Sequence[FilePair], read_depth: Callable[[Path], np.ndarray]):
        self.pairs = list(pairs)
        self.read_depth = read_depth

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> DepthFrame:
        """Read a frame. Raises `InputError`, naming the file, when one is unreadable or their sizes differ."""
        pair = self.pairs[index]
        values = self.read_depth(pair.depth)
        mask = None if pair.mask is None else read_mask(pair.mask)
        return make_frame(
            np.asarray(read_image(pair.image)),
            values * np.float32(pair.scale),
            shown(pair.depth),
            shown(pair.image),
            mask,
        )


def make_frame(
    image: np.ndarray, depth: np.ndarray, name: str, image_name: str, mask: np.ndarray | None = None
) -> DepthFrame:
    """Check that the parts are of one size and mark as valid the positive finite depths that ``mask`` lets through."""
    if image.shape[:2] != depth.shape:
        raise InputError(f"{name}: the depth is {_size(depth)} pixels, but its image {image_name} is {_size(image)}")
    if mask is not None and mask.shape != depth.shape:
        raise InputError(f"{name}: the depth is {_size(depth)} pixels, but its mask is {_size(mask)}: they must agree")
    depth = depth.astype(np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    return DepthFrame(image, depth, valid if mask is None else valid & (mask != 0), name)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def read_depth_png(path: Path) -> np.ndarray:
    """The integers of a 16-bit grey PNG, (H, W) fp32. An 8-bit or colour picture is no depth: it is refused."""
    values = _pixels(path)
    if values.ndim != 2 or values.dtype == np.uint8:
        raise InputError(f"{shown(path)}: a depth PNG has one channel of 16 bits, this is {_kind(values)}")
    return values.astype(np.float32)


def read_depth_any(path: Path) -> np.ndarray:
    """The numbers (H, W) of a depth file of any kind: .npy, .npz (its only array), 16-bit PNG, TIFF (also float)."""
    if path.suffix.lower() in (".npy", ".npz"):
        return read_npy(path)
    values = _pixels(path)
    if values.ndim != 2:
        raise InputError(f"{shown(path)}: depth has one channel, this is {_kind(values)}")
    return values.astype(np.float32)


def read_npy(path: Path) -> np.ndarray:
    """The array (H, W) or (H, W, 1) of a .npy, or of a .npz with one array, as (H, W) fp32; pickles are refused."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                if len(loaded.files) != 1:
                    raise ValueError(f"it holds {len(loaded.files)} arrays, expected one")
                loaded = loaded[loaded.files[0]]
        array = np.asarray(loaded, dtype=np.float32)
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such depth file") from None
    # numpy answers broken files with OSError, ValueError, EOFError, zipfile.BadZipFile, and more.
    except Exception as error:
        raise InputError(f"{shown(path)}: cannot be read as an array ({_one_line(error)})") from error
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{shown(path)}: an array of shape {array.shape}, but depth is (height, width)")
    return array


def read_mask(path: Path) -> np.ndarray:
    """A mask file, (H, W), nonzero where valid: .npy or any grey picture."""
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    values = _pixels(path)
    return values if values.ndim == 2 else values.max(axis=2)


def read_hdf5(path: Path, key: str) -> np.ndarray:
    """One array of an HDF5 file."""
    h5py = import_h5py()
    try:
        with h5py.File(path) as file:
            return np.asarray(file[key])
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file") from None
    except (OSError, KeyError) as error:
        raise InputError(f"{shown(path)}: cannot read {key!r} from this HDF5 file ({_one_line(error)})") from error


def import_h5py():
    """The h5py module, which only NYU's .mat and Hypersim need."""
    try:
        import h5py
    except ImportError:
        raise InputError("this data set is stored as HDF5, and h5py is not installed: pip install h5py") from None
    return h5py


def existing_folder(path: str | os.PathLike) -> Path:
    """``path`` if it is a folder, else an `InputError`."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{shown(path)}: no such folder")
    return path


def require_frames(pairs: list, root: Path, expected: str) -> list:
    """``pairs`` unless there are none, which means that ``root`` is not laid out as the format says."""
    if not pairs:
        raise InputError(f"{shown(root)}: found no frames there; expected {expected}")
    return pairs


def read_list(path: str | os.PathLike) -> list[list[str]]:
    """The words of each line of a split file; empty lines are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such split file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{shown(path)}: cannot be read as a split file ({_one_line(error)})") from error
    return [words for line in lines if (words := line.split())]


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image.load()
            return np.asarray(image)
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such depth file") from None
    # Pillow's decoders answer broken files with OSError, SyntaxError, ValueError, EOFError, struct.error, and more.
    except Exception as error:
        raise InputError(f"{shown(path)}: cannot be read as a depth image ({_one_line(error)})") from error


def _kind(values: np.ndarray) -> str:
    channels = 1 if values.ndim == 2 else values.shape[2]
    return f"{channels} of {values.dtype.itemsize * 8} bits"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
