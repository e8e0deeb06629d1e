"""Published statistics of reference images: an npz file with ``mu`` and ``sigma`` of InceptionV3's features.

ADM's files (arXiv 2105.05233) also have ``mu_s`` and ``sigma_s`` of the spatial features, and images in ``arr_0``.
"""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onelora_vision.errors import InputError, one_line

if TYPE_CHECKING:
    from onelora_vision.metrics.frechet import FeatureStatistics

_PAIRS = {"known": ("mu", "sigma"), "known_spatial": ("mu_s", "sigma_s")}  # by field of `FeatureSet`
_MOST = 4096  # features
_ROUNDING = 1e-4  # of a covariance, relative to its largest value


def has_statistics(path: str | Path) -> bool:
    """Whether a file is an npz file with ``mu`` and ``sigma``; does not read them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in _PAIRS["known"]} <= {*archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return False


def has_images(path: str | Path) -> bool:
    """Whether a file with statistics also contains images."""
    with zipfile.ZipFile(path) as archive:
        return "arr_0.npy" in archive.namelist()


def read_statistics(path: str | Path) -> dict[str, "FeatureStatistics"]:
    """The statistics in a file, by their fields in `metrics.generative.FeatureSet`.

    Raises:
        InputError: the file cannot be read, or its contents are not a mean and a covariance.
    """
    import numpy as np

    found = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for field, (mean, covariance) in _PAIRS.items():
                if mean in archive and covariance in archive:
                    found[field] = _checked(path, archive[mean], archive[covariance], mean, covariance)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as statistics of images ({one_line(error)})") from None
    if "known" not in found:
        raise InputError(f"{path}: contains no mu and sigma of reference images")
    return found


def _checked(path: str | Path, mean: Any, covariance: Any, *names: str) -> "FeatureStatistics":
    """Two arrays of a file as statistics, after checking them."""
    import numpy as np
    import torch

    from onelora_vision.metrics.frechet import FeatureStatistics

    size = mean.size
    fits = mean.shape == (size,) and covariance.shape == (size, size) and 1 < size <= _MOST
    if not fits or mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise InputError(
            f"{path}: {names[0]} {mean.shape} and {names[1]} {covariance.shape} are not a mean and a covariance"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(f"{path}: {names[0]} or {names[1]} holds values that are not finite")
    scale = np.abs(covariance).max() or 1.0
    if (
        np.abs(covariance - covariance.T).max() > _ROUNDING * scale
        or np.linalg.eigvalsh(covariance)[0] < -_ROUNDING * scale
    ):
        raise InputError(f"{path}: {names[1]} is not a covariance: it is not symmetric, or has negative variances")
    return FeatureStatistics.known(torch.from_numpy(mean), torch.from_numpy(covariance))
