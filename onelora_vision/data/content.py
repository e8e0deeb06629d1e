"""Hashes of image contents, under which results computed from images are cached."""

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from onelora_vision.data.classes.images import ClassImages, encoded_or_picture
from onelora_vision.data.images import shown
from onelora_vision.data.known_hashes import FileStates, KnownHashes
from onelora_vision.data.paths import Paths
from onelora_vision.data.tar_images import TarImages
from onelora_vision.errors import InputError, WriteError
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.storage.cache import NoHomeFolder, dispensable

_log = logging.getLogger(__name__)
_THREADS = 8  # hashing releases the GIL, so files are read in parallel
_TASK, _BLOCK = 32, 1 << 14  # files per task of a thread, and files queued for the threads
#: Hashes are kept between runs if this many bytes have to be read; opening a file counts as `_FILE` bytes.
_WORTH_KEEPING, _FILE = 64 << 20, 16 << 10
_VERIFIED = 256  # files with a known hash that are read again at each start, drawn at random


class Hashes(Sequence):
    """SHA-256 hashes of images: indexing returns 64 hexadecimal digits, ``digests`` (N, 32) holds the bytes."""

    def __init__(self, digests: np.ndarray):
        self.digests = digests

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, index: int) -> str:
        return self.digests[index].tobytes().hex()


def content_hash(image: str | os.PathLike | bytes | Image.Image) -> str:
    """SHA-256 in hex of a file (given by its path or as bytes), or of a picture's mode, size and pixels.

    Raises:
        InputError: the file cannot be opened.
    """
    return _digest(image).hex()


def _digest(image: str | os.PathLike | bytes | Image.Image) -> bytes:
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    if isinstance(image, Image.Image):
        digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
        digest.update(image.tobytes())
        return digest.digest()
    try:
        return hashlib.sha256(Path(image).read_bytes()).digest()
    except OSError as error:
        raise InputError(f"{shown(image)}: the image cannot be read ({error.strerror})") from None


def content_hashes(source: ClassImages, accelerator: Accelerator | None = None) -> Hashes:
    """Compute the `content_hash` of every image, in order.

    A file that cannot be opened is hashed by its path, so the error is reported when it is read later. Images in a
    table of `datasets` are hashed without decoding them.

    For large amounts of data, the hashes of files are kept in the user's cache, and are valid as long as path, size and
    times stay the same. Still, `_VERIFIED` of these files are read again; if one does not match its hash, all files are
    hashed again.

    Args:
        accelerator: all processes of a run call this together, and each hashes its share. If None, a single process
            hashes everything.
    """
    if isinstance(source.images, (Paths, TarImages)):
        return _file_hashes(source.images, accelerator)
    rank, world = _place(accelerator)
    first, last = (len(source) * number // world for number in (rank, rank + 1))
    digests = np.empty((last - first, 32), np.uint8)
    _hash_into(
        digests,
        range(last - first),
        lambda index: encoded_or_picture(source.images, first + index),
        lambda index: source.path(first + index),
        _is_hidden(accelerator),
    )
    return Hashes(_together(_gathered(digests, accelerator)))


def file_hashes(paths: Iterable[str | os.PathLike]) -> Hashes:
    """Compute `content_hashes` for files."""
    return _file_hashes(Paths(paths), None)


def _file_hashes(images: Paths | TarImages, accelerator: Accelerator | None) -> Hashes:
    rank, world = _place(accelerator)
    files = images.take(slice(len(images) * rank // world, len(images) * (rank + 1) // world))
    states = files.states() if isinstance(files, TarImages) else FileStates.of(files, time.time_ns())
    kept = None
    if world * (states.total_size + _FILE * len(files)) >= _WORTH_KEEPING:
        with dispensable((NoHomeFolder,)):
            kept = KnownHashes.file_for(images.folders)
    known = KnownHashes.empty()
    if kept is not None:
        with dispensable((InputError,)):
            known = KnownHashes.load(kept)
    rows = known.find(states)
    if any(_gathered(_is_wrong(known, rows, files, -(-_VERIFIED // world)), accelerator)):
        _log.warning("files have changed although their sizes and times have not: all images are hashed again")
        rows[:] = -1
    missing = np.flatnonzero(rows < 0)
    digests = np.empty((len(files), 32), np.uint8)
    digests[rows >= 0] = known.digest[rows[rows >= 0]]
    unreadable = _hash_into(digests, missing, *_readers(files), _is_hidden(accelerator))
    states.state[unreadable] = 0
    *columns, new = zip(*_gathered((states.path, states.state, digests, len(missing)), accelerator))
    path, state, digests = map(_together, columns)
    if kept is not None and rank == 0 and any(new):
        with dispensable((WriteError,)):
            known.updated(path, state, digests).save(kept)
    return Hashes(digests)


def _place(accelerator: Accelerator | None) -> tuple[int, int]:
    return (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)


def _is_hidden(accelerator: Accelerator | None) -> bool:
    return accelerator is not None and not accelerator.is_local_main_process


def _gathered(value: Any, accelerator: Accelerator | None) -> list:
    """Gather ``value`` from every process, in order of rank."""
    return [value] if accelerator is None else gather_object([value])


def _together(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _readers(files: Paths | TarImages) -> tuple[Callable, Callable]:
    """Functions that map an index to the argument of `content_hash` and to the file's name."""
    return (files.encoded, files.path) if isinstance(files, TarImages) else (files.__getitem__, files.__getitem__)


def _is_wrong(known: KnownHashes, rows: np.ndarray, files: Paths | TarImages, count: int) -> bool:
    """Whether any of ``count`` randomly drawn files with a known hash no longer matches it."""
    candidates = np.flatnonzero(rows >= 0)
    chosen = random.SystemRandom().sample(range(len(candidates)), min(count, len(candidates)))
    chosen = candidates[np.array(chosen, int)]
    found, files = np.empty((len(chosen), 32), np.uint8), files.take(chosen)
    _hash_into(found, range(len(chosen)), *_readers(files), hidden=True)
    return not np.array_equal(found, known.digest[rows[chosen]])


def _hash_into(
    digests: np.ndarray, indices: Sequence[int], image: Callable, name: Callable, hidden: bool
) -> list[int]:
    """Write the hashes of the images at ``indices`` into these rows of ``digests``; return the unreadable indices."""
    unreadable = []

    def hash_some(first: int) -> int:
        some = indices[first : first + _TASK]
        for index in map(int, some):
            try:
                digest = _digest(image(index))
            except InputError:
                digest = hashlib.sha256(f"unreadable {name(index)}".encode(errors="surrogateescape")).digest()
                unreadable.append(index)
            digests[index] = np.frombuffer(digest, np.uint8)
        return len(some)

    count = len(indices)
    bar = progress_bar(count, desc="hashing images", unit="image", leave=False, hidden=hidden or not count)
    with ThreadPoolExecutor(_THREADS) as pool, bar:
        for block in range(0, count, _BLOCK):  # a million queued tasks would need more memory than the hashes
            for hashed in pool.map(hash_some, range(block, min(block + _BLOCK, count), _TASK)):
                bar.update(hashed)
    return unreadable
