"""Datasets of pictures with metric depth, by name: ``open_frames("nyu", root, "test")``."""

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
        caps: name of its caps; None: the model's range.
        train_split, eval_split: its usual splits.
        ignores: flags that have no effect with it, those of its place without ``train_`` or ``eval_``.
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
    """A reader of this package, imported when it is first called: the names are needed where nothing slow is."""
    return lambda *place: getattr(importlib.import_module(f"{__package__}.{module}"), function)(*place)


_FOLDERS = frozenset({"split_file"})  # a split is a folder of these
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
    """The row of `FORMATS`. Raises `InputError`, naming the nearest, when there is none."""
    if name not in FORMATS:
        raise InputError(f"there is no depth dataset {name!r}{nearest(name, FORMATS, 'dataset')}")
    return FORMATS[name]


def needs_folder(name: str) -> bool:
    """Whether a dataset is in a folder. Raises `InputError` as `find_format`."""
    return "data_dir" not in find_format(name).ignores


def open_frames(name: str, root: str | None, split: str, split_file: str | None = None) -> "Sequence[DepthFrame]":
    """The frames of a dataset's split, read when they are asked for.

    Args:
        name: a key of `FORMATS`; "rooms" and "streets" are rendered (400 scenes to train on, 200 of each other split).
        root: the dataset's folder (NYU: or the labelled .mat file; jsonl: or the file); None for the rendered ones.
        split: a name or a path below the root, see each format's module.
        split_file: a list of files, where the format has one.

    Raises:
        MissingSplit: there are no frames of this split, or no such folder.
        InputError: an unknown name, no folder, a list or a table that cannot be read.
    """
    if needs_folder(name) and not root:
        raise InputError(f"the dataset {name} needs its folder: give --train_data_dir (or --eval_data_dir)")
    return FORMATS[name].open(root, split, split_file)
