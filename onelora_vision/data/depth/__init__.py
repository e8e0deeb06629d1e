"""Data sets of pictures with metric depth, by name: ``open_frames("nyu", root, "test")``."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from onelora_vision.data.depth.diode import diode
from onelora_vision.data.depth.frames import DepthFrame
from onelora_vision.data.depth.hypersim import hypersim
from onelora_vision.data.depth.jsonl import jsonl
from onelora_vision.data.depth.kitti import kitti
from onelora_vision.data.depth.nyu import nyu
from onelora_vision.data.depth.vkitti import vkitti2
from onelora_vision.errors import InputError, nearest


class DepthFormat(NamedTuple):
    """How a data set is read, the name of its caps (None: the model's range), and its usual splits."""

    open: Callable[[str, str, str | None], Sequence[DepthFrame]]
    caps: str | None
    train_split: str = "train"
    eval_split: str = "test"


FORMATS = {
    "nyu": DepthFormat(nyu, "nyu"),
    "kitti": DepthFormat(kitti, "kitti"),
    "diode_indoor": DepthFormat(diode, "diode_indoor", "train/indoors", "val/indoors"),
    "diode_outdoor": DepthFormat(diode, "diode_outdoor", "train/outdoor", "val/outdoor"),
    "hypersim": DepthFormat(hypersim, "hypersim"),
    "vkitti2": DepthFormat(vkitti2, "vkitti2", "Scene01", "Scene20"),
    "jsonl": DepthFormat(jsonl, None),
}


def open_frames(name: str, root: str, split: str, split_file: str | None = None) -> Sequence[DepthFrame]:
    """The frames of a data set's split, read when they are asked for.

    Args:
        name: of the format, a key of `FORMATS`.
        root: the data set's folder (NYU: or the labelled .mat file; jsonl: or the file).
        split: a name or a path below the root, see each format's module.
        split_file: a list of files, where the format has one.
    """
    if name not in FORMATS:
        raise InputError(f"there is no depth data set {name!r}{nearest(name, FORMATS, 'data set')}")
    return FORMATS[name].open(root, split, split_file)
