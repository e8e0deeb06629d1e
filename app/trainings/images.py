"""Unpack a zip of images as a folder with one subfolder per class. Zips are untrusted: paths and sizes are checked."""

import contextlib
import re
import shutil
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onelora_vision.data.images import IMAGE_EXTENSIONS, read_image
from onelora_vision.errors import InputError, listed, one_line

SPLITS = ("train", "test", "val", "validation")
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The most that one training may be sent: bytes unpacked, images and classes."""

    bytes: int = 512 << 20
    images: int = 20_000
    classes: int = 1000


def unpack(archive: Path, folder: Path, limits: Limits) -> dict[str, int]:
    """Write the images of a zip into ``folder``, which must not exist, as ``[SPLIT/]CLASS/NUMBER-NAME``.

    Files that are no images, whatever their names, are left out. Returns the number of images of each class, over all splits.

    Raises:
        InputError: not a zip of images in one folder per class, a class without one, or more than ``limits``; then there is
            no folder.
    """
    with _opened(archive) as opened:
        images = _images_of(opened, archive.name, limits)
        try:
            _write(opened, images, folder, limits, archive.name)
            return _counts(_without_unreadable(images, folder, archive.name))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def survey(archive: Path, limits: Limits) -> dict[str, int]:
    """What `unpack` would find, by the archive's list of files."""
    with _opened(archive) as opened:
        return _counts(_images_of(opened, archive.name, limits))


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive for a block, in which its faults are raised as `InputError`."""
    try:
        with zipfile.ZipFile(archive) as opened:
            yield opened
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise InputError(f"{archive.name}: not a whole zip archive ({one_line(error)})") from error


def _counts(images: list) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, (*_, name, _) in images:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _images_of(archive: zipfile.ZipFile, name: str, limits: Limits) -> list[tuple[zipfile.ZipInfo, tuple[str, ...]]]:
    """The images of an archive with where each goes: an optional split, class and file name."""
    entries = archive.infolist()
    if len(entries) > 4 * limits.images:
        raise InputError(f"{name}: {len(entries):,} entries; at most {limits.images:,} images are taken")
    found = [(info, parts) for info in entries if (parts := _parts_of(info, name)) is not None]
    if not found:
        raise InputError(f"{name}: no images in it ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    if len(found) > limits.images:
        raise InputError(f"{name}: {len(found):,} images; at most {limits.images:,} are taken")
    if (size := sum(info.file_size for info, _ in found)) > limits.bytes:
        raise InputError(f"{name}: unpacks to {size / 1e6:,.0f} MB; at most {limits.bytes / 1e6:,.0f} MB are taken")
    places = _without_common_folder([parts for _, parts in found])
    has_splits = {place[0] for place in places} <= set(SPLITS) and all(len(place) > 2 for place in places)
    images = []
    for number, ((info, _), place) in enumerate(zip(found, places)):
        split, rest = ((place[0],), place[1:]) if has_splits else ((), place)
        if len(rest) < 2:
            raise InputError(
                f"{name}: {one_line(rest[-1], 60)} is in no class; put the images into one folder per class"
            )
        images.append((info, (*split, rest[0], f"{number:05}-{_plain(rest[-1])}")))
    classes = {place[-2] for _, place in images}
    if len(classes) > limits.classes:
        raise InputError(f"{name}: {len(classes):,} classes; at most {limits.classes:,} are taken")
    return images


def _parts_of(info: zipfile.ZipInfo, archive: str) -> tuple[str, ...] | None:
    """An entry's path in parts, or None for what is no image.

    Raises:
        InputError: it leads out of the archive, is encrypted, or has a folder that cannot be the name of a class.
    """
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if info.is_dir() or path.suffix.lower() not in IMAGE_EXTENSIONS or _JUNK & set(path.parts):
        return None
    if path.name.startswith("._") or (info.external_attr >> 16) & 0o170000 == 0o120000:  # a link
        return None
    shown = f"{archive}: {one_line(info.filename, 80)}"
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", info.filename):
        raise InputError(f"{shown} leads out of the archive; pack the folder again")
    if info.flag_bits & 1:
        raise InputError(f"{shown} is encrypted; pack the folder without a password")
    for part in path.parts[:-1]:
        if len(part) > 80 or any(unicodedata.category(char).startswith("C") for char in part) or part.startswith("."):
            raise InputError(f"{shown}: a folder's name is too long, hidden or not printable; rename it")
    return path.parts


def _without_common_folder(places: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Paths without the folders that all of them are in, as long as each keeps the folder of its class."""
    while min(map(len, places)) > 2 and len({place[0] for place in places}) == 1:
        places = [place[1:] for place in places]
    return places


def _plain(name: str) -> str:
    """A file name of a few harmless characters with the same suffix."""
    path = PurePosixPath(name)
    return (re.sub(r"[^\w.-]", "_", path.stem)[:40] or "image") + path.suffix.lower()


def _write(archive: zipfile.ZipFile, images: list, folder: Path, limits: Limits, name: str) -> None:
    """Unpack, and count what comes out: an archive may say less than it holds."""
    left = limits.bytes
    folder.mkdir(parents=True)
    for info, place in images:
        target = folder.joinpath(*place)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, open(target, "xb") as file:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise InputError(f"{name}: unpacks to more than {limits.bytes / 1e6:,.0f} MB, the most taken")
                file.write(chunk)


def _without_unreadable(images: list, folder: Path, name: str) -> list:
    """The images that can be opened; the files of the others are deleted."""
    kept, classes = [], {place[-2] for _, place in images}
    for info, place in images:
        path = folder.joinpath(*place)
        try:
            read_image(path)
            kept.append((info, place))
        except InputError:
            path.unlink()
    if empty := sorted(classes - {place[-2] for _, place in kept}):
        raise InputError(f"{name}: no file of {listed(empty)} can be read as an image")
    return kept


def describe(counts: dict[str, int]) -> str:
    """The classes and the number of images in words."""
    classes = "class" if len(counts) == 1 else "classes"
    return f"{sum(counts.values()):,} images, {len(counts):,} {classes} ({listed(list(counts), 8)})"
