"""Adapters that the app offers: those shipped, those of a folder, and what a user uploads; each read and checked."""

import hashlib
import os
import re
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from onelora_vision import embedded
from onelora_vision.adapters.container import CONFIG_FILE, WEIGHTS_FILE
from onelora_vision.adapters.file import Adapter, read_adapter
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.backbones.table import TASKS
from onelora_vision.errors import InputError, one_line

MAX_DEPTH, MAX_SIDE = 1000, 2048
_SUFFIXES = (".safetensors", ".zip")
_DEPTH = 5  # folders below the adapters folder that are looked into


@dataclass(frozen=True)
class Entry:
    """An adapter that can be used in the app.

    Attributes:
        fingerprint: a hash of its values, see `fingerprint`.
        source: ``shipped``, ``folder``, ``upload`` or ``hub``.
    """

    name: str
    adapter: Adapter
    fingerprint: str
    source: str
    path: Path
    file_bytes: int

    def facts(self) -> dict:
        """What a list shows of it, as plain values."""
        info = self.adapter.info
        return {
            "name": self.name,
            "source": self.source,
            "task": info.task,
            "base": info.base,
            "method": info.method or kind_of(self.adapter.config).name,
            "values": sum(tensor.numel() for tensor in self.adapter.tensors.values()),
            "bytes": self.file_bytes,
            "metrics": _changes(info.metrics),
            "class_names": list(info.class_names or []),
        }


def _changes(metrics: dict) -> list[tuple[str, float | None, float]]:
    """The metrics in a file as (name, before, after)."""
    before, after = metrics.get("before", {}), metrics.get("after", {})
    numbers = {key: value for key, value in after.items() if _is_number(value)}
    return [(key, before[key] if _is_number(before.get(key)) else None, value) for key, value in numbers.items()]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_entry(path: Path, name: str, source: str) -> Entry:
    """Read an adapter that can be used in the app.

    Raises:
        InputError: no adapter, or one that does not say what it is for.
    """
    adapter = read_adapter(path)
    if adapter.info.task not in TASKS or not adapter.info.base:
        raise InputError(
            f"{path.name}: does not say its task and base, so the app cannot tell what it goes on; "
            "`onelora import` writes a file that does"
        )
    _check_settings(adapter.info.extra, path.name)
    adapter.path = Path(name)  # what messages of the library call it
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    return Entry(name, adapter, fingerprint(adapter), source, path, weights.stat().st_size)


def _check_settings(extra: dict, name: str) -> None:
    """Refuse settings that would make a base of the wrong kind, or inputs that no memory holds."""
    depth = extra.get("max_depth")
    if not (depth is None or (type(depth) is int and 1 <= depth <= MAX_DEPTH)):
        raise InputError(f"{name}: max_depth {one_line(depth, 40)} is no range in metres up to {MAX_DEPTH}")
    resolution = str(extra.get("resolution") or 1)
    sides = re.findall(r"\d+", resolution)
    if not re.fullmatch(r"\d+(x\d+)?", resolution) or max(map(len, sides)) > 4 or max(map(int, sides)) > MAX_SIDE:
        raise InputError(f"{name}: resolution {one_line(resolution, 40)} is none up to {MAX_SIDE} pixels")


def fingerprint(adapter: Adapter) -> str:
    """A short hash of an adapter's config and values; the same file under another name has the same."""
    digest = hashlib.sha256(repr(sorted(adapter.config.to_dict().items(), key=lambda item: item[0])).encode())
    for key in sorted(adapter.tensors):
        digest.update(key.encode())
        digest.update(adapter.tensors[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _adapter_folders(path: Path) -> Iterable[Path]:
    """``path`` and the folders at most `_DEPTH` below it that are adapters; checkpoints and links are skipped."""
    for root, folders, files in os.walk(path):
        is_deep = len(Path(root).relative_to(path).parts) >= _DEPTH
        if WEIGHTS_FILE in files:
            yield Path(root)
        inner = [name for name in folders if not name.startswith((".", "checkpoint-"))]
        folders[:] = [] if WEIGHTS_FILE in files or is_deep else sorted(inner)


class Library:
    """The adapters that every user sees: the shipped ones, and those of a folder, which is read again on demand."""

    def __init__(self, folder: str | Path | None = None):
        self.folder = Path(folder).resolve() if folder else None
        if self.folder and not self.folder.is_dir():
            raise InputError(f"--adapters {folder}: no such folder")
        self._read: dict[tuple, Entry] = {}
        self._lock = threading.Lock()

    def entries(self) -> tuple[list[Entry], list[str]]:
        """All readable adapters, and one line for each file that could not be read."""
        shipped = [(path, "shipped") for path in sorted(embedded.ADAPTERS.iterdir()) if path.is_dir()]
        found, problems, taken = [], [], set()
        for path, source in [*shipped, *((path, "folder") for path in self._candidates())]:
            try:
                entry = self._entry(path, unique_name(self._name_of(path), taken), source)
            except InputError as error:
                problems.append(str(error))
                continue
            taken.add(entry.name)
            found.append(entry)
        return found, problems

    def _candidates(self) -> Iterable[Path]:
        """Adapter files in the folder, and adapter folders in it and below it, as those of runs."""
        for path in sorted(self.folder.iterdir()) if self.folder else []:
            inside = path.resolve().is_relative_to(self.folder)  # a link may lead anywhere
            if inside and path.is_file() and path.suffix in _SUFFIXES:
                yield path
            elif inside and path.is_dir():
                yield from _adapter_folders(path)

    def _name_of(self, path: Path) -> str:
        """The adapter's name: its folder's, or the run's if the folder is just called ``adapter``."""
        if path.is_file():
            return path.stem
        is_of_run = path.name == "adapter" and self.folder is not None and path.parent != self.folder
        return path.parent.name if is_of_run else path.name

    def _entry(self, path: Path, name: str, source: str) -> Entry:
        weights = path / WEIGHTS_FILE if path.is_dir() else path
        try:
            status = weights.stat()
        except OSError as error:  # a file that is just being replaced
            raise InputError(f"{path.name}: cannot be read ({one_line(error)})") from error
        key = (path, name, status.st_mtime_ns, status.st_size)
        with self._lock:
            if key not in self._read:
                self._read = {old: entry for old, entry in self._read.items() if old[0] != path}
                self._read[key] = read_entry(path, name, source)
            return self._read[key]


def unique_name(wanted: str, taken: Iterable[str]) -> str:
    """A short printable name that is not taken yet."""
    base = re.sub(r"[^\w\-. ]", "", wanted).strip(" .")[:48] or "adapter"
    names, number = [base], 2
    while names[-1] in taken:
        names.append(f"{base}-{number}")
        number += 1
    return names[-1]


def parcels(files: Sequence[str | Path]) -> list[list[Path]]:
    """Uploaded files grouped by adapter: the two files of a PEFT folder together, any other file alone."""
    paths = [Path(file) for file in files]
    pair = [path for name in (CONFIG_FILE, WEIGHTS_FILE) for path in paths if path.name == name]
    if len(pair) != 2 or pair[0].name == pair[1].name:
        pair = []
    return [[path] for path in paths if path not in pair] + ([pair] if pair else [])


def receive(files: Sequence[Path], folder: Path, limit: int) -> Path:
    """Copy the files of one uploaded adapter (see `parcels`) into a new folder below ``folder``.

    Returns the path of the adapter, which has the name that it was uploaded with.

    Raises:
        InputError: not an adapter's files, or larger than ``limit`` bytes.
    """
    *_, file = files  # of two, the weights
    if file.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"{one_line(file.name, 100)}: not an adapter; upload a .safetensors file, a .zip, or an adapter folder's "
            f"{CONFIG_FILE} and {WEIGHTS_FILE} together"
        )
    if (size := sum(path.stat().st_size for path in files)) > limit:
        raise InputError(
            f"{file.name}: {size / 1e6:.1f} MB is more than this app takes ({limit / 1e6:.0f} MB); "
            "its operator can set --max_upload_mb"
        )
    if file.suffix.lower() == ".zip":
        _check_zip(file, limit)
    place = Path(tempfile.mkdtemp(dir=folder))
    if len(files) > 1:
        place = place / "adapter"
        place.mkdir()
        for path in files:
            shutil.copyfile(path, place / path.name)
        return place
    return Path(shutil.copyfile(file, place / (file.stem + file.suffix.lower())))


def _check_zip(path: Path, limit: int) -> None:
    """Raise if an archive would unpack to more than the upload limit. The reader enforces each entry's stated size."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path.name}: not a whole zip archive ({one_line(error)})") from error
    if size > limit:
        raise InputError(
            f"{path.name}: unpacks to {size / 1e6:.0f} MB, more than this app takes ({limit / 1e6:.0f} MB)"
        )
