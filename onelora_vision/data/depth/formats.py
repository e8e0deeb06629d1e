"""Opening datasets of pictures with metric depth by name: ``open_frames("nyu", root, "test")``."""

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from onelora_vision.errors import InputError, nearest

if TYPE_CHECKING:
    from onelora_vision.data.depth.frames import DepthFrame


class DepthFormat(NamedTuple):
    """How a dataset is read.

    Attributes:
        open: called as ``open(root, split, split_file)``.
        caps: name of its caps; None uses the model's range.
        train_split, eval_split: its default splits.
        ignores: flags that have no effect with it; flags for its location are given without ``train_`` or ``eval_``.
    """

    open: Callable[[str | None, str, str | None], "Sequence[DepthFrame]"]
    caps: str | None
    train_split: str = "train"
    eval_split: str = "test"
    ignores: frozenset[str] = frozenset()


def _scenes(kind: str) -> Callable:
    def opened(root: str | None, split: str, split_file: str | None) -> "Sequence[DepthFrame]":
        from onelora_vision.data.synthetic.scenes import SceneFrames

        return SceneFrames(kind, split, 400 if split == "train" else 200)

    return opened


def _reader(module: str, function: str) -> Callable:
    """A reader of this package, imported when it is called, so that importing this table stays fast."""
    return lambda *place: getattr(importlib.import_module(f"{__package__}.{module}"), function)(*place)


_FOLDERS = frozenset({"split_file"})  # their splits are folders
_RENDERED = frozenset({"data_dir", "split_file", "on_bad_image", "cache_images"})

FORMATS = {
    "rooms": DepthFormat(_scenes("rooms"), "rooms", ignores=_RENDERED),
    "streets": DepthFormat(_scenes("streets"), "streets", ignores=_RENDERED),
    "nyu": DepthFormat(_reader("nyu", "nyu"), "nyu"),
    "kitti": DepthFormat(_reader("kitti", "kitti"), "kitti"),
    "diode_indoor": DepthFormat(_reader("diode", "diode"), "diode_indoor", "train/indoors", "val/indoors", _FOLDERS),
    "diode_outdoor": DepthFormat(_reader("diode", "diode"), "diode_outdoor", "train/outdoor", "val/outdoor", _FOLDERS),
    "hypersim": DepthFormat(_reader("hypersim", "hypersim"), "hypersim", ignores=_FOLDERS),
    "vkitti2": DepthFormat(_reader("vkitti", "vkitti2"), "vkitti2", "Scene01", "Scene20", _FOLDERS),
    "jsonl": DepthFormat(_reader("jsonl", "jsonl"), None),
}


def find_format(name: str) -> DepthFormat:
    """Look up a row of `FORMATS`. Raises an `InputError` that suggests the closest name if there is none."""
    if name not in FORMATS:
        raise InputError(f"there is no depth dataset {name!r}{nearest(name, FORMATS, 'dataset')}")
    return FORMATS[name]


def needs_folder(name: str) -> bool:
    """Whether a dataset needs a folder. Raises `InputError` like `find_format`."""
    return "data_dir" not in find_format(name).ignores


def open_frames(name: str, root: str | None, split: str, split_file: str | None = None) -> "Sequence[DepthFrame]":
    """Open the frames of a dataset's split, which are read on access.

    Args:
        name: a key of `FORMATS`; "rooms" and "streets" are rendered (400 scenes for training, 200 in other splits).
        root: the dataset's folder (for NYU also the labelled .mat file, for jsonl also the file); None for rendered
            ones.
        split: a name or a path below the root, see each format's module.
        split_file: a list of files, if the format has one.

    Raises:
        MissingSplit: there are no frames of this split, or the folder does not exist.
        InputError: the name is unknown, the folder is missing, or a list or table cannot be read.
    """
    if needs_folder(name) and not root:
        raise InputError(f"the dataset {name} needs its folder: give --train_data_dir (or --eval_data_dir)")
    return FORMATS[name].open(root, split, split_file)
