"""Virtual KITTI 2 (Cabon et al. 2020): 16-bit PNG in centimetres. The cap excludes the sky, at 655.35 m."""

from collections.abc import Sequence
from pathlib import Path

from onelora_vision.data.depth.frames import (
    DepthFrame,
    FilePair,
    FrameFiles,
    existing_folder,
    require_frames,
)


def vkitti2(root: str, split: str, split_file: str | None = None) -> Sequence[DepthFrame]:
    """Open ``**/frames/rgb/Camera_N/rgb_X.jpg`` with ``frames/depth/Camera_N/depth_X.png`` below ``root/split``.

    A split is a path such as ``Scene01`` or ``Scene01/clone``; "all" is everything below root.
    """
    folder = existing_folder(root if split == "all" else Path(root) / split)
    images = sorted(path for path in folder.rglob("frames/rgb/*/rgb_*") if path.suffix in (".jpg", ".png"))
    pairs = [FilePair(path, _depth(path), 0.01) for path in images]
    return FrameFiles(
        require_frames(pairs, folder, "frames/rgb/Camera_*/rgb_*.jpg with frames/depth/Camera_*/depth_*.png"),
    )


def _depth(image: Path) -> Path:
    frames = image.parents[2]
    return frames / "depth" / image.parent.name / f"{image.stem.replace('rgb_', 'depth_')}.png"
