"""Random access to pictures in tar files of the WebDataset layout, without unpacking them.

The members of a sample are adjacent and share the name up to the first dot: ``n01/0001.jpg``, ``n01/0001.cls``. Files
are untrusted: the sizes of names, labels and headers are limited, and members' names are never used as paths.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from onelora_vision.data.images import IMAGE_EXTENSIONS, decode_image, shown
from onelora_vision.data.known_hashes import FileStates, mixed, path_numbers
from onelora_vision.data.paths import Paths
from onelora_vision.errors import InputError

_BLOCK = 512
_LONGEST_NAME, _LONGEST_LABEL, _LARGEST_HEADER, _LARGEST_JSON = 1024, 256, 64 << 10, 1 << 20  # bytes
_REGULAR = (b"0", b"\0", b"7")
_LABELS = ("cls", "label", "class")  # in a sample's JSON


class DamagedTar(ValueError):
    """A tar file is damaged or has unsupported contents; the message says what is wrong."""


class Member(NamedTuple):
    """A file in a tar file: its name, and the position of its bytes."""

    name: str
    offset: int
    size: int


class TarIndex(NamedTuple):
    """The pictures of one tar file: names, positions (n,) and labels (n,), which are indices into ``label_names``."""

    names: Sequence[str]
    offset: np.ndarray
    size: np.ndarray
    label: np.ndarray
    label_names: list[str]


class TarImages(Sequence):
    """Pictures in tar files, read when indexed.

    Args:
        names: names of the pictures, prefixed by the path of their tar file.
        tars: paths of the tar files.
        states: states of the tar files, as in `FileStates`.
        tar: (N,) number of each picture's tar file.
        offset, size: (N,) position of its bytes in that file.
    """

    def __init__(self, names: Paths, tars: list[str], states: np.ndarray, tar, offset, size):
        self.names, self.tars, self.tar_states = names, tars, states
        self.tar, self.offset, self.size = tar, offset, size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Image.Image:
        return decode_image(BytesIO(self.encoded(index)), shown(self.path(index)))

    def path(self, index: int) -> str:
        """The path of the tar file, followed by the picture's name in it."""
        return self.names[index]

    def encoded(self, index: int) -> bytes:
        """The bytes of a picture's file.

        Raises:
            InputError: the tar file cannot be read, or has changed since it was opened.
        """
        size, tar = int(self.size[index]), self.tars[self.tar[index]]
        state = self.tar_states[self.tar[index]]
        if (
            state and state != FileStates.of(Paths([tar]), time.time_ns()).state[0]
        ):  # 0 if the file may have been changing at that time
            raise InputError(f"{shown(tar)}: has changed since this run opened it; start again")
        try:
            with open(tar, "rb", buffering=0) as file:
                file.seek(int(self.offset[index]))
                found = file.read(size)
        except OSError as error:
            raise InputError(f"{shown(self.path(index))}: the tar file cannot be read ({error.strerror})") from None
        if len(found) < size:
            raise InputError(f"{shown(self.path(index))}: the tar file ends before this image does")
        return found

    def take(self, indices: np.ndarray | slice) -> "TarImages":
        """Select the pictures at ``indices``, in that order."""
        parts = (getattr(self, part)[indices] for part in ("tar", "offset", "size"))
        return TarImages(self.names.take(indices), self.tars, self.tar_states, *parts)

    def joined(self, other: "TarImages") -> "TarImages":
        """Append the pictures of ``other``."""
        pairs = ((self.tar, other.tar + len(self.tars)), (self.offset, other.offset), (self.size, other.size))
        states = np.concatenate([self.tar_states, other.tar_states])
        names = Paths(name for images in (self, other) for name in images.names)
        return TarImages(names, [*self.tars, *other.tars], states, *map(np.concatenate, pairs))

    @property
    def folders(self) -> list[str]:
        """The folders of the tar files."""
        return sorted({os.path.dirname(path) for path in self.tars})

    def states(self) -> FileStates:
        """The states of the pictures, as if they were files of the same age as their tar file."""
        tar = self.tar_states[self.tar]
        state = np.where(tar, mixed(np.stack([tar, self.offset, self.size.astype(np.uint64)])), np.uint64(0))
        return FileStates(path_numbers(self.names), state, int(self.size.sum()))


def index_tar(path: str) -> TarIndex:
    """Find the pictures of a tar file and their labels, given as text in ``.cls`` or as an entry in ``.json``.

    Raises:
        InputError: the file cannot be read, is damaged or compressed, or a picture has no label.
    """
    try:
        with open(path, "rb", buffering=4096) as file:
            samples = [_sample(file, group) for group in _groups(_members(file)) if _picture(group)]
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    except DamagedTar as error:
        raise InputError(f"{shown(path)}: {error}") from None
    pictures, labels = zip(*samples) if samples else ((), ())
    label_names, label = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True)
    return TarIndex(
        [member.name for member in pictures],
        np.array([member.offset for member in pictures], np.uint64),
        np.array([member.size for member in pictures], np.uint32),
        label.astype(np.int32),
        label_names.tolist(),
    )


def _members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the regular files of a tar file (POSIX ustar and pax, GNU), in order."""
    end, position, extended = os.fstat(file.fileno()).st_size, 0, {}
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if position == 0 and header[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            raise DamagedTar("is compressed, so single images cannot be read: decompress it")
        if len(header) < _BLOCK:
            raise DamagedTar("is damaged: it ends without the empty block that ends a tar file")
        if not any(header):
            return
        size, kind = _checked_size(header), header[156:157]
        size = extended.get("size", size) if kind in _REGULAR else size
        start = position + _BLOCK
        position = start + -(-size // _BLOCK) * _BLOCK
        if start + size > end:
            raise DamagedTar(f"is damaged: it ends in the middle of a member of {size:,} bytes")
        if kind in (b"L", b"x"):
            if size > _LARGEST_HEADER:
                raise DamagedTar(f"has a header of {size:,} bytes; names may have {_LONGEST_NAME}")
            content = file.read(size)
            extended |= {"name": _text(content)} if kind == b"L" else _pax(content)
            continue
        if kind in _REGULAR:
            name = extended.get("name") or _own_name(header)
            if len(os.fsencode(name)) > _LONGEST_NAME:
                raise DamagedTar(f"has a name of more than {_LONGEST_NAME} bytes, {name[:40]!r}…")
            yield Member(name, start, size)
        elif kind == b"S":
            raise DamagedTar("has a sparse member; store images as plain files")
        if kind != b"g":
            extended = {}


def _checked_size(header: bytes) -> int:
    try:
        sum_given = int(_text(header[148:156]).strip() or "x", 8)
        field = header[124:136]
        size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(_text(field).strip() or "0", 8)
    except ValueError:
        raise DamagedTar("is damaged, or not a tar file: a header has no valid numbers") from None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != sum_given or size < 0:
        raise DamagedTar("is damaged, or not a tar file: the checksum of a header is wrong")
    return size


def _own_name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])


def _pax(content: bytes) -> dict:
    """Parse path and size from an extended header, whose records are ``LENGTH KEY=VALUE\\n``."""
    found = {}
    while content.strip(b"\0"):
        match = re.match(rb"(\d{1,6}) ([^=\n]{1,200})=", content)
        length = int(match[1]) if match else 0
        if not match or not match.end() < length <= len(content):
            raise DamagedTar("is damaged: an extended header is malformed")
        value = content[match.end() : length - 1]
        if match[2] == b"path":
            found["name"] = os.fsdecode(value)
        elif match[2] == b"size":
            if not re.fullmatch(rb"\d{1,18}", value):
                raise DamagedTar("is damaged: an extended header has no valid size")
            found["size"] = int(value)
        content = content[length:]
    return found


def _groups(members: Iterator[Member]) -> Iterator[dict[str, Member]]:
    """Yield the members of each sample by extension: the name after its first dot, in lower case."""
    key, group = None, {}
    for member in members:
        folder, slash, name = member.name.rpartition("/")
        if name.startswith("."):  # for example, files added by macOS
            continue
        stem, _, ending = name.partition(".")
        if folder + slash + stem != key:
            if group:
                yield group
            key, group = folder + slash + stem, {}
        group.setdefault(ending.lower(), member)
    if group:
        yield group


def _picture(group: dict[str, Member]) -> Member | None:
    return next((member for ending, member in group.items() if f".{ending}" in IMAGE_EXTENSIONS), None)


def _sample(file: IO[bytes], group: dict[str, Member]) -> tuple[Member, str]:
    """A sample's picture and label. This moves the file's position; every reader seeks first."""
    picture = _picture(group)
    name = shown(picture.name)[:200]
    if picture.size >= 1 << 32:
        raise DamagedTar(f"the image {name} has {picture.size:,} bytes")
    found, limit = group.get("cls"), _LONGEST_LABEL
    if found is None and "json" in group:
        found, limit = group["json"], _LARGEST_JSON
    if found is None:
        raise DamagedTar(f"the image {name} has no label: a .cls, or a .json with {', '.join(_LABELS)}, next to it")
    if found.size > limit:
        raise DamagedTar(f"the label of {name} has {found.size:,} bytes")
    file.seek(found.offset)
    try:
        label = file.read(found.size).decode()
        if found is not group.get("cls"):
            label = _label_in(json.loads(label))
    except (ValueError, RecursionError):
        label = None
    label = str(label).strip() if isinstance(label, (int, str)) and not isinstance(label, bool) else ""
    if not label or len(label.encode(errors="replace")) > _LONGEST_LABEL or not label.isprintable():
        raise DamagedTar(f"the label of {name} is not one line of text or a number")
    return picture, label


def _label_in(entry: object) -> object:
    return next((entry[name] for name in _LABELS if name in entry), None) if isinstance(entry, dict) else None
