"""Sets of images without classes, for evaluation: a folder of files, or an npz file in ADM's layout."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from onelora_vision.data.content import Hashes, file_hashes
from onelora_vision.data.images import list_images, read_images, shown
from onelora_vision.errors import InputError
from onelora_vision.storage.files import atomic_file


class ImageSet:
    """All images below a folder, or those in an npz file (``arr_0``, uint8, (N, H, W, 3), as in arXiv 2105.05233).

    Args:
        path: the folder or file.
        on_bad_image: how to treat files that cannot be read, see `read_images`.

    Attributes:
        path: the folder or file.
        hashes: content hashes, one per image file or one for the npz file.

    Raises:
        InputError: ``path`` does not exist, holds no images, or cannot be read.
    """

    def __init__(self, path: str | Path, on_bad_image: str = "error"):
        self.path, self.on_bad_image = Path(path), on_bad_image
        self._pixels, self._files = None, []
        if self.path.suffix == ".npz":
            self._pixels = _read_npz(self.path)
        else:
            self._files = list_images(self.path)
        if len(self) == 0:
            raise InputError(f"{shown(self.path)}: no images there")

    def __len__(self) -> int:
        return len(self._files) if self._pixels is None else len(self._pixels)

    @property
    def hashes(self) -> Hashes:
        return file_hashes(self._files or [self.path])

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the images in order, (n, 3, H, W) in [0, 1], with up to ``batch_size`` images of one size per batch."""
        waiting: list[torch.Tensor] = []
        for pixels in self._pictures():
            image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
            if waiting and (len(waiting) == batch_size or waiting[0].shape != image.shape):
                yield torch.stack(waiting)
                waiting = []
            waiting.append(image)
        yield torch.stack(waiting)

    def _pictures(self) -> Iterator[np.ndarray]:
        if self._pixels is not None:
            return iter(self._pixels)
        return (np.array(picture) for _, picture in read_images(self._files, self.on_bad_image))


def write_npz(path: str | Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Write images (N, H, W, 3) uint8 as ``arr_0`` and their classes (N,) as ``arr_1``."""
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, pixels, labels)


def _read_npz(path: Path) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels = archive["arr_0"]
    except FileNotFoundError:
        raise InputError(f"{shown(path)}: no such file") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{shown(path)}: cannot be read as images in arr_0 ({error})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise InputError(f"{shown(path)}: arr_0 is {pixels.dtype} {pixels.shape}, not uint8 (N, H, W, 3)")
    return pixels
