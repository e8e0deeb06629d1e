"""Content hashes from earlier runs, looked up by path, size and times of a file.

The user's cache has one file per dataset folder, with 48 bytes per image.
"""

import array
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.torch import save_file

from onelora_vision.data.paths import Paths
from onelora_vision.errors import InputError
from onelora_vision.storage.cache import combined_hash, default_cache
from onelora_vision.storage.files import atomic_file

_SETTLED_NS = 2 * 10**9  # a file changed more recently than this may change again within one tick of the clock
_COLUMNS = {"path": (np.uint64, ()), "state": (np.uint64, ()), "digest": (np.uint8, (32,))}


class FileStates(NamedTuple):
    """The state of files, determined without reading them, in arrays (N,).

    Attributes:
        path: 64 bits of a hash of each absolute path.
        state: 64 bits mixed from the size and the times of the last changes to content and metadata; 0 for a file that
            is missing or may have changed just now.
        total_size: size of all files in bytes.
    """

    path: np.ndarray
    state: np.ndarray
    total_size: int

    @classmethod
    def of(cls, paths: Paths, now: int) -> "FileStates":
        """The state of files at the time ``now``, in nanoseconds since 1970."""
        names, numbers = bytearray(), array.array("q")
        for path in _absolute(paths):
            names += _number(path)
            try:
                status = os.stat(path)
                numbers.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
            except (OSError, ValueError):
                numbers.extend((0, 0, 0))
        numbers = np.frombuffer(numbers, np.int64).reshape(-1, 3).T
        size, *times = numbers
        settled = np.maximum(*times) < now - _SETTLED_NS
        state = np.where(settled & (times[0] != 0), mixed(numbers.view(np.uint64)), np.uint64(0))
        return cls(np.frombuffer(names, np.uint64), state, int(size.sum()))


def path_numbers(paths: Paths) -> np.ndarray:
    """64 bits of a hash of each absolute path, (N,)."""
    return np.frombuffer(b"".join(map(_number, _absolute(paths))), np.uint64)


def _absolute(paths: Paths) -> Paths:
    return paths.moved(lambda folder: os.path.join(os.path.abspath(folder), ""))


def _number(path: str) -> bytes:
    return hashlib.blake2b(os.fsencode(path), digest_size=8).digest()


def mixed(columns: np.ndarray) -> np.ndarray:
    """Mix each column of numbers (K, N) into 64 bits with the finaliser of SplitMix64 (Steele et al. 2014)."""
    found = np.full(columns.shape[1], 0x9E3779B97F4A7C15, np.uint64)
    for values in columns:
        found = (found ^ values) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found ^= found >> np.uint64(31)
    return found


class KnownHashes:
    """Cached hashes of the files of one folder.

    Args:
        path, state: (N,) as in `FileStates`, sorted by ``path``.
        digest: SHA-256 of the contents, (N, 32) bytes.
    """

    def __init__(self, path: np.ndarray, state: np.ndarray, digest: np.ndarray):
        self.path, self.state, self.digest = path, state, digest

    @classmethod
    def empty(cls) -> "KnownHashes":
        return cls(*(np.empty((0, *shape), dtype) for dtype, shape in _COLUMNS.values()))

    @staticmethod
    def file_for(folders: Iterable[str]) -> Path:
        """The cache file for the hashes of the files in these folders. Raises `storage.cache.NoHomeFolder`."""
        folder = os.path.commonpath([os.path.abspath(folder) for folder in folders])
        return default_cache() / "hashes" / f"{combined_hash([folder])[:16]}.safetensors"

    @classmethod
    def load(cls, file: Path) -> "KnownHashes":
        """Read the hashes in ``file``; none if it does not exist. Raises `InputError` if it is damaged."""
        if not file.exists():
            return cls.empty()
        try:
            found = load_file(file)
            columns = [found[name] for name in _COLUMNS]
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{file} is damaged ({error}); the images are hashed again") from None
        count = len(columns[0])
        if any((c.dtype, c.shape) != (d, (count, *shape)) for c, (d, shape) in zip(columns, _COLUMNS.values())):
            raise InputError(f"{file} is damaged (shapes do not match); the images are hashed again")
        return cls(*columns)

    def save(self, file: Path) -> None:
        """Write the hashes to ``file``. Raises `WriteError`."""
        with atomic_file(file) as temporary:
            save_file({name: torch.from_numpy(getattr(self, name)) for name in _COLUMNS}, temporary)

    def find(self, files: FileStates) -> np.ndarray:
        """The row of each file that has not changed since it was hashed; -1 for the others."""
        if not len(self.path):
            return np.full(len(files.path), -1)
        rows = np.searchsorted(self.path, files.path).clip(max=len(self.path) - 1)
        same = (self.path[rows] == files.path) & (self.state[rows] == files.state) & (files.state != 0)
        return np.where(same, rows, -1)

    def updated(self, path: np.ndarray, state: np.ndarray, digest: np.ndarray) -> "KnownHashes":
        """Add or replace the hashes of files (columns as in `KnownHashes`, in any order), and keep all others."""
        keep, new = ~np.isin(self.path, path), state != 0
        joined, order = np.unique(np.concatenate([self.path[keep], path[new]]), return_index=True)
        state = np.concatenate([self.state[keep], state[new]])[order]
        return KnownHashes(joined, state, np.concatenate([self.digest[keep], digest[new]])[order])
