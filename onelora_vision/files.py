"""Files that are either whole or absent: written under a temporary name in the same folder, synced, then renamed.

What cannot be written (a full disk) ends in a `WriteError` that names the file, and what stood there before stands.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from onelora_vision.errors import WriteError

TEMPORARY_PREFIX = ".partial-"
ASIDE_PREFIX = ".replaced-"


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Tell what prevents the block from writing as a `WriteError` that names ``path``; of nested ones, the outermost."""
    try:
        yield
    except SafetensorError as error:  # safetensors' own kind, also for a full disk
        raise WriteError(path, error) from error
    except OSError as error:
        raise WriteError(path, error.strerror or error) from error


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``, on error removed.

    Raises:
        WriteError: it cannot be written; what stood at ``path`` stands.
    """
    path = Path(path)
    with writing(path), _atomic_file(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _atomic_file(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a result is as readable as any other file the user writes.
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success its files are synced and it takes ``path``'s place.

    An existing folder at ``path`` is replaced: it is moved aside first and removed last, so that a reader sees the
    old folder or the new one, or for an instant none, and never a mixture. `clear_leftovers` puts it back after a
    process that was killed in that instant.

    Raises:
        WriteError: it cannot be written; what stood at ``path`` stands.
    """
    path = Path(path)
    with writing(path), _atomic_directory(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _atomic_directory(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    old = None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for entry in temporary.rglob("*"):
            _sync(entry)
        _sync(temporary)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=ASIDE_PREFIX, dir=path.parent)) / path.name
            os.replace(path, old)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old is not None:
            shutil.rmtree(old.parent, ignore_errors=True)


def clear_leftovers(folder: str | os.PathLike) -> None:
    """Remove what a killed process left half-written in ``folder``, and put back what it was about to replace."""
    for aside in Path(folder).glob(f"{ASIDE_PREFIX}*"):
        for old in aside.iterdir():
            if not (aside.parent / old.name).exists():
                os.replace(old, aside.parent / old.name)
        shutil.rmtree(aside)
    for leftover in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_json(path: str | os.PathLike, value) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinities are refused: they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def torch_save(value, path: str | os.PathLike) -> None:
    """``torch.save`` that fails with an `OSError`, as other writers do; torch's own error for a full disk is another."""
    import torch

    try:
        torch.save(value, path)
    except RuntimeError as error:
        raise OSError(f"torch.save: {str(error).splitlines()[0]}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
