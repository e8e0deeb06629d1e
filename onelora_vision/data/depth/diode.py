"""DIODE (Vasiljevic et al. 2019): ``X.png`` with ``X_depth.npy`` (metres) and ``X_depth_mask.npy``."""

from collections.abc import Sequence
from pathlib import Path

from onelora_vision.data.depth.frames import (
    DepthFrame,
    FilePair,
    FrameFiles,
    existing_folder,
    require_frames,
)


def diode(root: str, split: str, split_file: str | None = None) -> Sequence[DepthFrame]:
    """Open all frames below ``root/split``. A split is a path such as ``val/outdoor``, ``val/indoors`` or ``train``."""
    folder = existing_folder(Path(root) / split)
    depths = sorted(folder.rglob("*_depth.npy"))
    pairs = [
        FilePair(
            image=path.with_name(path.name.replace("_depth.npy", ".png")),
            depth=path,
            mask=path.with_name(path.name.replace("_depth.npy", "_depth_mask.npy")),
        )
        for path in depths
    ]
    return FrameFiles(require_frames(pairs, folder, "*.png with *_depth.npy and *_depth_mask.npy"))
