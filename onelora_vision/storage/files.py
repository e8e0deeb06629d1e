"""Files and folders that are either complete or absent: written under a temporary name, synced, then renamed.

These are the primitives. `onelora_vision.storage.outputs` decides what a command may replace.
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

TEMPORARY_PREFIX = ".onelora-partial-"
ASIDE_PREFIX = ".onelora-replaced-"


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Re-raise write failures inside the block as a `WriteError` for ``path``; when nested, the outermost path wins."""
    try:
        yield
    except SafetensorError as error:  # not an OSError, even if the disk is full
        raise WriteError(path, error) from error
    except OSError as error:
        raise WriteError(path, error.strerror or error) from error


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on success it is synced and renamed to ``path``, on error removed.

    An existing file is replaced: callers must own it or have checked with `outputs`. If ``path`` is a symbolic link,
    its target is used.

    Raises:
        WriteError: it cannot be written; an existing file at ``path`` is unchanged.
    """
    with writing(path), _atomic_file(Path(os.path.realpath(path))) as temporary:
        yield temporary


@contextlib.contextmanager
def _atomic_file(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; a result should be as readable as any other file of the user.
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; on success its files are synced and it becomes ``path``, on error it is removed.

    A missing folder is created by a single rename. An empty one is filled entry by entry, so it may be the current
    folder or a mount point. With ``replace`` an existing folder is moved aside, the new one takes its place, and the
    old one is deleted last. If the process is killed between these two renames, the old folder remains complete as
    ``.onelora-replaced-*/NAME`` next to ``path``; `clear_leftovers` restores it.

    Raises:
        WriteError: it cannot be written; ``path`` is unchanged. This includes a folder that contains files, unless
            ``replace``.
    """
    path = Path(path).absolute()
    with writing(path), _atomic_directory(path, replace) as temporary:
        yield temporary


@contextlib.contextmanager
def _atomic_directory(path: Path, replace: bool) -> Iterator[Path]:
    fills = is_empty_folder(path)
    place = path if fills else path.parent
    place.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=place))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for entry in temporary.rglob("*"):
            if not entry.is_symlink():  # libraries make some files readable by their owner only
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
            _sync(entry)
        _sync(temporary)
        if fills:
            _move_entries(temporary, path)
        elif replace and path.exists():
            _swap(temporary, path)
        else:
            os.rename(temporary, path)  # fails if a folder with files has appeared there
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_empty_folder(path: Path) -> bool:
    """Whether ``path`` is a folder that is empty apart from this program's temporary files, current or left behind."""
    return path.is_dir() and all(entry.name.startswith(TEMPORARY_PREFIX) for entry in path.iterdir())


def _move_entries(source: Path, target: Path) -> None:
    """Move all entries of ``source`` into ``target``, or none of them."""
    moved: list[Path] = []
    try:
        for entry in sorted(source.iterdir()):  # hidden files first: the ledger of outputs
            place = target / entry.name
            if os.path.lexists(place):
                raise FileExistsError(f"{entry.name} has appeared there")
            os.rename(entry, place)
            moved.append(place)
        _sync(target)
    except BaseException:
        for place in moved:
            os.rename(place, source / place.name)
        raise


def _swap(new: Path, path: Path) -> None:
    """Replace ``path`` by ``new`` and delete the old folder; on failure, the old folder is restored."""
    aside = Path(tempfile.mkdtemp(prefix=ASIDE_PREFIX, dir=path.parent))
    try:
        os.rename(path, aside / path.name)
    except OSError:
        aside.rmdir()
        raise
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(aside / path.name, path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def clear_leftovers(folder: str | os.PathLike) -> None:
    """Remove half-written files of killed processes from ``folder``, and restore what they were about to replace."""
    for aside in Path(folder).glob(f"{ASIDE_PREFIX}*"):
        for old in aside.iterdir():
            if not (aside.parent / old.name).exists():
                os.replace(old, aside.parent / old.name)
        shutil.rmtree(aside)
    for leftover in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_json(path: str | os.PathLike, value) -> None:
    """Write ``value`` as indented JSON, atomically. Raises a ValueError for NaN and infinities, which are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def torch_save(value, path: str | os.PathLike) -> None:
    """``torch.save``, but raises `OSError`, like other writers; torch raises a RuntimeError if the disk is full."""
    import torch

    with open(path, "wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
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
