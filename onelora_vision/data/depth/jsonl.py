"""Custom datasets: a ``metadata.jsonl`` with lines ``{"image": …, "depth": …, "scale": …, "mask": …}``."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from onelora_vision.data.depth.frames import DepthFrame, FilePair, FrameFiles, require_frames
from onelora_vision.data.images import shown
from onelora_vision.errors import InputError, nearest
from onelora_vision.storage.textfiles import named_file, read_lines

_KEYS = ("image", "depth", "scale", "mask", "split")


def jsonl(root: str, split: str, split_file: str | None = None) -> Sequence[DepthFrame]:
    """Open the frames listed in ``root`` (the file, or a folder with ``metadata.jsonl``); paths are relative to it.

    Depth files are .npy, .npz, 16-bit PNG or TIFF. ``scale`` is in metres per unit of their values; without it,
    integers are millimetres and floats are metres. ``mask`` is nonzero where depth is known. A line with a ``split``
    key belongs to that split only, and a line without one to every split; split "all" uses every line.
    """
    path = Path(split_file or root)
    path = path / "metadata.jsonl" if path.is_dir() else path
    entries = [_entry(path, number, line) for number, line in enumerate(read_lines(path), 1) if line]
    pairs = [_pair(path, entry) for entry in entries if split == "all" or entry.get("split", split) == split]
    return FrameFiles(require_frames(pairs, path, f'lines {{"image": …, "depth": …}} of the split {split!r}'))


def _entry(path: Path, number: int, line: str) -> dict:
    """Parse and check one line. Every error names file and line."""
    where = f"{shown(path)} line {number}"
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg})") from None
    if not isinstance(entry, dict):
        raise InputError(f'{where}: expected an object such as {{"image": "a.jpg", "depth": "a.png"}}')
    for key in entry:
        if key not in _KEYS:
            raise InputError(f"{where}: unknown key {key!r}{nearest(key, _KEYS, 'key')}")
    for key in ("image", "depth"):
        if not isinstance(entry.get(key), str):
            raise InputError(f"{where}: {key!r} must be the path of a file")
    scale = entry.get("scale", 1.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale <= 0:
        raise InputError(f"{where}: 'scale' is {scale!r}, but must be a number above 0 (metres per unit of depth)")
    if not isinstance(entry.get("mask"), (str, type(None))):
        raise InputError(f"{where}: 'mask' must be the path of a file")
    return entry


def _pair(path: Path, entry: dict) -> FilePair:
    image, depth = (named_file(path.parent, entry[key]) for key in ("image", "depth"))
    mask = named_file(path.parent, entry["mask"]) if entry.get("mask") else None
    return FilePair(image, depth, entry.get("scale"), mask)
