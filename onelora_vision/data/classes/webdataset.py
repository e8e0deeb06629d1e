"""Tar files in the WebDataset layout: pictures with a class name or number in a ``.cls`` or ``.json`` next to them.

The positions of images and their labels are determined once and kept in the user's cache, in a file per tar file.
"""

import glob
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from onelora_vision.data.classes.images import ClassImages, class_numbers, stratified_split
from onelora_vision.data.images import shown
from onelora_vision.data.known_hashes import FileStates
from onelora_vision.data.paths import Paths
from onelora_vision.data.tar_images import TarImages, TarIndex, index_tar
from onelora_vision.errors import InputError, MissingSplit, WriteError
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.storage.cache import NoHomeFolder, combined_hash, default_cache, dispensable
from onelora_vision.storage.files import atomic_file
from onelora_vision.storage.textfiles import read_lines

_SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test",
}  # fmt: skip
_MOST_FILES = 100_000
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_NAMES = "classnames.txt"
_NUMBER = re.compile(r"-?\d+")
_FORMAT = "1"  # of the index files


def webdataset(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """Open tar files below ``root``, or matching it as a pattern: ``DIR/part-{0000..0099}.tar``, ``DIR/*.tar``.

    The words train, val and test in the name of a file or its folder in ``root`` determine its split. Without them,
    80 % of each class are for training, drawn by ``seed``. Classes are those of the training split. They are names, or
    numbers, whose names can be given as the lines of ``classnames.txt`` next to the files.

    Raises:
        MissingSplit: there are no tar files of this split.
        InputError: there are no tar files, or one is damaged or has an image without a label.
    """
    files = _files(root)
    by_split = _by_split(files, root)
    train = _opened(by_split["train"])
    values = sorted({value for part in train[1] for value in part.label_names}, key=_in_order)
    if set(by_split) == {"train"}:
        images = _class_images(root, train, values, "train")
        return stratified_split(images, split, seed)
    own = ("validation",) if "test" in by_split else ()
    wanted = {"train": ("train",), "validation": own, "test": ("test", "validation")}[split]
    there = next((name for name in wanted if name in by_split), None)
    if there is None:
        raise MissingSplit(f"{shown(root)}: has no tar files of a {split} split; it has {', '.join(by_split)}")
    return _class_images(root, train if there == "train" else _opened(by_split[there]), values, split)


def _class_images(root: Path, opened: tuple[TarImages, list[TarIndex]], values: list[str], split: str) -> ClassImages:
    images, parts = opened
    where, names = f"{shown(root)}/{split}", values
    numbers = [np.array(class_numbers(part.label_names, values, where), np.int32)[part.label] for part in parts]
    listed = Path(images.folders[0]) / _NAMES
    if listed.is_file() and any(_NUMBER.fullmatch(value) for value in values):
        names = _listed_names(listed, values)
    return ClassImages(images, np.concatenate(numbers), [shown(name) for name in names], shown(root.name), split)


def _listed_names(listed: Path, values: Sequence[str]) -> list[str]:
    """Look up class numbers in a list of class names; the first line belongs to class 0.

    Raises:
        InputError: a value is not the number of a line, or a line is empty or equal to another one.
    """
    lines = read_lines(listed, "list of class names")
    for value in values:
        if not (value.isdecimal() and int(value) < len(lines)):
            raise InputError(f"{shown(listed)}: has {len(lines)} names, from 0, but there is a class {shown(value)}")
    names = [lines[int(value)] for value in values]
    empty = next((value for value, name in zip(values, names) if not name), None)
    if empty is not None:
        raise InputError(f"{shown(listed)}: line {int(empty) + 1} is empty, but there is a class {empty}")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{shown(listed)}: {shown(name)} is the name of {count} classes")
    return names


def _in_order(value: str) -> tuple:
    return (0, int(value), value) if value.isdecimal() else (1, 0, value)


def _files(root: Path) -> list[str]:
    """The tar files in a folder and its subfolders, or those that match a pattern, sorted."""
    pattern = str(root)
    if root.is_dir():
        found = [str(path) for path in itertools.chain(root.glob("*.tar"), root.glob("*/*.tar"))]
    elif glob.has_magic(pattern):
        found = [path for name in _in_ranges(pattern) for path in glob.glob(name)]
    else:
        found = _in_ranges(pattern) if _RANGE.search(pattern) or root.is_file() else []
    if not found:
        where = "--data_dir takes their folder, or a pattern such as DIR/part-{0000..0099}.tar"
        raise InputError(f"{shown(root)}: no tar files there; {where}")
    return sorted(found)


def _in_ranges(pattern: str) -> list[str]:
    """Expand a pattern with ``{FIRST..LAST}`` to names."""
    names = [pattern]
    while match := _RANGE.search(names[0]):
        first, last = map(int, match.groups())
        if not 0 <= last - first < _MOST_FILES // len(names):
            raise InputError(f"{shown(pattern)}: names no files, or more than {_MOST_FILES:,}")
        numbers = [f"{k:0{len(match[1])}}" for k in range(first, last + 1)]
        names = [name.replace(match[0], number, 1) for name in names for number in numbers]
    return names


def _by_split(files: list[str], root: Path) -> dict[str, list[str]]:
    """Group files by split. If no name contains a split, all of them are ``train``."""
    found: dict[str | None, list[str]] = {}
    for path in files:
        name = str(Path(path).relative_to(root)) if root.is_dir() else Path(path).name
        words = re.split(r"[^a-z]+", name.lower())
        found.setdefault(next((_SPLITS[word] for word in words if word in _SPLITS), None), []).append(path)
    if set(found) == {None}:
        return {"train": files}
    if None in found:
        raise InputError(f"{shown(found[None][0])}: has no train, val or test in its name, unlike other files")
    if "train" not in found:
        raise InputError(f"{shown(root)}: has no tar files of a train split; it has {', '.join(found)}")
    return found


def _opened(files: list[str]) -> tuple[TarImages, list[TarIndex]]:
    """The pictures of tar files, and the index of each file without the names."""
    states, parts = FileStates.of(Paths(files), time.time_ns()).state, []

    def names() -> Iterator[str]:
        with progress_bar(len(files), desc="opening tar files", unit="file", leave=False) as bar:
            for path, state in zip(files, states):
                part = _index(path, int(state))
                parts.append(part._replace(names=()))
                yield from (f"{path}/{name}" for name in part.names)
                bar.update()

    found = Paths(names())
    tar = np.repeat(np.arange(len(files), dtype=np.uint32), [len(part.label) for part in parts])
    offset, size = (np.concatenate([getattr(part, column) for part in parts]) for column in ("offset", "size"))
    return TarImages(found, files, states, tar, offset, size), parts


def _index(path: str, state: int) -> TarIndex:
    """The index of a tar file. The cached one is used if the file's state is unchanged and not 0."""
    kept = None
    with dispensable((NoHomeFolder,)):
        kept = default_cache() / "tars" / f"{combined_hash([str(Path(path).resolve())])[:16]}.safetensors"
    if kept is not None and state and (found := _kept_index(kept, state)):
        return found
    found = index_tar(path)
    if kept is not None and state:
        names = [name.encode(errors="surrogateescape") for name in found.names]
        arrays = {
            "offset": found.offset,
            "size": found.size,
            "label": found.label,
            "name_size": np.array([len(name) for name in names], np.uint16),
            "names": np.frombuffer(b"".join(names), np.uint8),
        }
        facts = {"state": str(state), "format": _FORMAT, "labels": json.dumps(found.label_names)}
        with dispensable((WriteError,)), atomic_file(kept) as temporary:
            save_file(arrays, temporary, facts)
    return found


def _kept_index(file: Path, state: int) -> TarIndex | None:
    """The cached index of a tar file in ``state``; None if it is missing or cannot be read."""
    try:
        with safe_open(file, framework="numpy") as opened:
            facts = opened.metadata() or {}
            if (facts.get("state"), facts.get("format")) != (str(state), _FORMAT):
                return None
            parts = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dictionary
        text, ends = parts["names"].tobytes(), np.cumsum(parts["name_size"], dtype=np.int64)
        names = [
            text[end - size : end].decode(errors="surrogateescape") for end, size in zip(ends, parts["name_size"])
        ]
        return TarIndex(names, parts["offset"], parts["size"], parts["label"], json.loads(facts["labels"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
