"""Compact storage for millions of file paths, in a few arrays that forked loader workers share."""

import itertools
import os
from collections.abc import Iterable, Sequence

import numpy as np

_CHUNK = 1 << 15  # paths held as Python objects at a time


class Paths(Sequence):
    """An immutable sequence of file paths, stored in arrays: 10 bytes per path plus the file name.

    A list of a million strings needs four times as much memory, and each loader worker copies it page by page, because
    Python updates the reference count of every string that is accessed. An array has a single reference count.

    Args:
        paths: consumed in chunks, so a generator never holds all of them in memory.
    """

    def __init__(self, paths: Iterable[str | os.PathLike] = ()):
        folders, numbers, lengths, names = {}, [], [], bytearray()
        paths = iter(paths)
        while chunk := [os.fspath(path).rpartition(os.sep) for path in itertools.islice(paths, _CHUNK)]:
            numbers.append(np.array([folders.setdefault(a + b, len(folders)) for a, b, _ in chunk], np.uint32))
            encoded = [os.fsencode(name) for *_, name in chunk]
            lengths.append(np.array([len(name) for name in encoded], np.uint16))
            names += b"".join(encoded)
        self._folders, self._names = tuple(folders), bytes(names)
        self._folder = np.concatenate(numbers) if numbers else np.empty(0, np.uint32)
        self._length = np.concatenate(lengths) if lengths else np.empty(0, np.uint16)
        offset = np.uint32 if len(names) < 1 << 32 else np.uint64
        self._start = np.cumsum(self._length, dtype=np.uint64).astype(offset) - self._length

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> str:
        start = int(self._start[index])
        name = self._names[start : start + int(self._length[index])]
        return self._folders[self._folder[index]] + os.fsdecode(name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (Paths, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None

    def take(self, indices: np.ndarray) -> "Paths":
        """Select the paths at ``indices``, in that order. The stored names are shared."""
        taken = Paths()
        taken._folders, taken._names = self._folders, self._names
        for part in ("_folder", "_length", "_start"):
            setattr(taken, part, getattr(self, part)[indices])
        return taken

    def moved(self, change) -> "Paths":
        """Move the names to other folders: ``change`` maps each folder, which ends in a separator or is empty."""
        moved = self.take(slice(None))
        moved._folders = tuple(map(change, self._folders))
        return moved

    @property
    def folders(self) -> list[str]:
        """The distinct folders of the paths."""
        return [self._folders[number] for number in np.unique(self._folder)]
