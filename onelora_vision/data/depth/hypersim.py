"""Hypersim (Roberts et al. 2021): tone-mapped previews with HDF5 distances, converted to z-depth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onelora_vision.data.depth.frames import (
    DepthFrame,
    FilePair,
    FrameFiles,
    existing_folder,
    in_metres,
    read_hdf5,
    require_frames,
)
from onelora_vision.data.images import shown

FOCAL_PIXELS = 886.81  # at a width of 1024


def hypersim(root: str, split: str, split_file: str | None = None) -> Sequence[DepthFrame]:
    """Open ``**/scene_cam_NN_final_preview/frame.N.tonemap.jpg`` below ``root/split`` (split "all": below root).

    Depth is in ``scene_cam_NN_geometry_hdf5/frame.N.depth_meters.hdf5`` next to that folder.
    """
    folder = existing_folder(root if split == "all" else Path(root) / split)
    images = sorted(folder.rglob("*_final_preview/frame.*.tonemap.jpg"))
    pairs = [FilePair(path, _geometry(path)) for path in images]
    expected = "*_final_preview/frame.*.tonemap.jpg with *_geometry_hdf5/frame.*.depth_meters.hdf5"
    return FrameFiles(require_frames(pairs, folder, expected), read_z_depth)


def _geometry(image: Path) -> Path:
    camera = image.parent.name.replace("_final_preview", "_geometry_hdf5")
    return image.parent.with_name(camera) / image.name.replace(".tonemap.jpg", ".depth_meters.hdf5")


def read_z_depth(path: Path, scale: float | None = None) -> np.ndarray:
    """Convert the distances (H, W) from the camera's centre to depth along its axis in metres; NaN stays NaN.

    ``depth_meters`` is the length of the ray: z = distance / sqrt(1 + (x² + y²) / f²), with x and y from the centre.
    """
    distance = in_metres(read_hdf5(path, "dataset"), shown(path), scale)
    height, width = distance.shape
    focal = FOCAL_PIXELS * width / 1024
    x, y = np.arange(width) + 0.5 - width / 2, np.arange(height)[:, None] + 0.5 - height / 2
    return (distance / np.sqrt(1 + (x**2 + y**2) / focal**2)).astype(np.float32)
