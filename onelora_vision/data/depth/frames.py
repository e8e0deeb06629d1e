"""Pictures with depth for all dataset formats: reading files, converting to metres and marking invalid pixels.

A dataset is a sequence of `DepthFrame`. Depth is in metres along the camera's axis. Values that are not positive and
finite are invalid from the start; caps, crops and masks exclude more later.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from onelora_vision.data.images import read_image, shown
from onelora_vision.data.paths import Paths
from onelora_vision.errors import InputError, MissingSplit, one_line
from onelora_vision.storage.textfiles import read_lines

_LOSSLESS = ("PNG", "TIFF", "PPM")  # Pillow's format names


class DepthFrame(NamedTuple):
    """``image`` (H, W, 3) uint8, ``depth`` (H, W) fp32 metres, ``valid`` (H, W) bool, ``name`` for messages."""

    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray
    name: str


class FilePair(NamedTuple):
    """The files of one frame. ``scale`` is as in `in_metres`; ``mask`` is nonzero where depth is valid."""

    image: Path
    depth: Path
    scale: float | None = None
    mask: Path | None = None


class FilePairs(Sequence[FilePair]):
    """Pairs stored as arrays (see `Paths`), which forked loader workers share."""

    def __init__(self, pairs: Iterable[FilePair]):
        pairs = list(pairs)
        self._image, self._depth = Paths(pair.image for pair in pairs), Paths(pair.depth for pair in pairs)
        self._mask = Paths(pair.mask or "" for pair in pairs)
        self._scale = np.array([np.nan if pair.scale is None else pair.scale for pair in pairs], np.float64)

    def __len__(self) -> int:
        return len(self._scale)

    def __getitem__(self, index: int) -> FilePair:
        scale, mask = float(self._scale[index]), self._mask[index]
        return FilePair(
            Path(self._image[index]),
            Path(self._depth[index]),
            None if np.isnan(scale) else scale,
            Path(mask) if mask else None,
        )


class FrameFiles(Sequence[DepthFrame]):
    """Frames in files, given by ``pairs``; ``read(path, scale)`` returns the depth of a file in metres (H, W)."""

    def __init__(self, pairs: Sequence[FilePair], read: "Callable[[Path, float | None], np.ndarray] | None" = None):
        self.pairs, self.read = FilePairs(pairs), read or read_depth

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> DepthFrame:
        """Read a frame. Raises an `InputError` that names the file if one is unreadable or their sizes differ."""
        pair = self.pairs[index]
        depth = self.read(pair.depth, pair.scale)
        mask = None if pair.mask is None else read_mask(pair.mask)
        return make_frame(np.asarray(read_image(pair.image)), depth, shown(pair.depth), shown(pair.image), mask)


def make_frame(
    image: np.ndarray, depth: np.ndarray, name: str, image_name: str, mask: np.ndarray | None = None
) -> DepthFrame:
    """Make a frame in which positive, finite depths inside ``mask`` are valid.

    Raises:
        InputError: the parts differ in size.
    """
    if image.shape[:2] != depth.shape:
        raise InputError(f"{name}: the depth is {_size(depth)} pixels, but its image {image_name} is {_size(image)}")
    if mask is not None and mask.shape != depth.shape:
        raise InputError(f"{name}: the depth is {_size(depth)} pixels, but its mask is {_size(mask)}: they must agree")
    depth = depth.astype(np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    return DepthFrame(image, depth, valid if mask is None else valid & (mask != 0), name)


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def read_depth(path: Path, scale: float | None = None) -> np.ndarray:
    """Read a depth file in metres (H, W) fp32: .npy, .npz (with a single array), PNG, TIFF or PGM.

    Args:
        scale: see `in_metres`.

    Raises:
        InputError: the file cannot be read, is compressed with loss (JPEG), or does not hold depth.
    """
    return in_metres(_read_values(path), shown(path), scale)


def in_metres(values: np.ndarray, name: str, scale: float | None = None) -> np.ndarray:
    """Convert the values of a depth file, an array (H, W) or (H, W, 1), to metres (H, W) fp32.

    Args:
        name: name of the file, for messages.
        scale: metres per unit. If None, floats are metres and integers are millimetres.

    Raises:
        InputError: the array has another shape, 8 bits (too few for depth: a colour map or a mask), or no numbers.
    """
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"{name}: depth has one channel and the shape (height, width), this is {values.shape}")
    if values.dtype.kind not in "iuf" or values.dtype.itemsize < 2:
        raise InputError(
            f"{name}: depth needs 16 bits or more, this has {8 * values.dtype.itemsize}: is it a picture or a mask?"
        )
    unit = 1.0 if values.dtype.kind == "f" else 0.001
    return values.astype(np.float32) * np.float32(unit if scale is None else scale)


def read_mask(path: Path) -> np.ndarray:
    """Read a mask file, (H, W), nonzero where valid: .npy or any grey picture with lossless compression."""
    values = _read_values(path)
    if values.ndim not in (2, 3):
        raise InputError(f"{shown(path)}: an array of shape {values.shape}, but a mask is (height, width)")
    return values if values.ndim == 2 else values.max(axis=2)


def _read_values(path: Path) -> np.ndarray:
    return _array(path) if path.suffix.lower() in (".npy", ".npz") else _pixels(path)


def _array(path: Path) -> np.ndarray:
    """Read the array of a .npy, or of a .npz with one array. Pickles are not accepted."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                if len(loaded.files) != 1:
                    raise ValueError(f"it holds {len(loaded.files)} arrays, expected one")
                loaded = loaded[loaded.files[0]]
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such depth file") from None
    # On broken files, numpy raises OSError, ValueError, EOFError, zipfile.BadZipFile, and more.
    except Exception as error:
        raise InputError(f"{shown(path)}: cannot be read as an array ({one_line(error)})") from error
    return np.asarray(loaded)


def read_hdf5(path: Path, key: str) -> np.ndarray:
    """Read one array of an HDF5 file."""
    h5py = import_h5py()
    try:
        with h5py.File(path) as file:
            return np.asarray(file[key])
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file") from None
    except (OSError, KeyError) as error:
        raise InputError(f"{shown(path)}: cannot read {key!r} from this HDF5 file ({one_line(error)})") from error


def import_h5py():
    """Import h5py, which only NYU's .mat file and Hypersim need."""
    try:
        import h5py
    except ImportError:
        raise InputError("this dataset is stored as HDF5, and h5py is not installed: pip install h5py") from None
    return h5py


def existing_folder(path: str | os.PathLike) -> Path:
    """Return ``path``, the folder of a dataset or split. Raises `MissingSplit` if it is not a folder."""
    path = Path(path)
    if not path.is_dir():
        raise MissingSplit(f"{shown(path)}: no such folder")
    return path


def require_frames(pairs: list, root: Path, expected: str) -> list:
    """Return ``pairs``. Raises `MissingSplit` if there are none: ``root`` lacks the split or has another layout."""
    if not pairs:
        raise MissingSplit(f"{shown(root)}: found no frames there; expected {expected}")
    return pairs


def read_list(path: str | os.PathLike) -> list[list[str]]:
    """Read the words of each line of a split file, without empty lines."""
    return [words for line in read_lines(path, "split file") if (words := line.split())]


def _pixels(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.format not in _LOSSLESS:
                raise InputError(
                    f"{shown(path)}: {image.format} does not keep values as they are; save depth as "
                    "16-bit PNG (millimetres), TIFF or .npy"
                )
            image.load()
            return np.asarray(image)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such depth file") from None
    # On broken files, Pillow's decoders raise OSError, SyntaxError, ValueError, EOFError, struct.error, and more.
    except Exception as error:
        raise InputError(f"{shown(path)}: cannot be read as a depth image ({one_line(error)})") from error
