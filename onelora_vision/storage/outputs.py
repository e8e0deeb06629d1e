"""What a command may write to and what it may replace: only its own earlier output, and only on request.

Folders that this program writes contain a ledger, `.onelora-files`: one JSON line with the kind of output, then one
line per file with its name and SHA-256. A file is ours if its name and its content are in the ledger. Anything else,
such as a note next to the results or an edited README, is never changed or deleted. Single files are recognised by a
mark in their format: a safetensors header, a PNG text field, an HTML meta element, a zip comment.

The rules, for every command and script:

* A missing path or an empty folder can be written to.
* An existing output is replaced only if it is of the same kind, every file in it is ours, and ``overwrite`` is set.
* Everything else is refused with an `InputError` before any work is done.
* An output is never inside one of the command's inputs.
* After any failure the target is unchanged (see `files.atomic_directory` for power loss between two renames).
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.storage.files import (
    ASIDE_PREFIX,
    TEMPORARY_PREFIX,
    atomic_directory,
    atomic_file,
    is_empty_folder,
    writing,
)

LEDGER = ".onelora-files"
MARK = "onelora_vision"
#: Prefix of our text fields in PNG files.
NOTE_PREFIX = "onelora."
_MAX_LEDGER = 256 << 20
_OVERWRITE = "set --overwrite to replace it, or choose another name"


class Ledger:
    """The record of the files that this program wrote into a folder.

    Attributes:
        folder: of the files.
        kind: of output: "adapter", "samples", "run", …
        hashes: file name relative to the folder, with forward slashes -> SHA-256 of each of its versions. The hash is
            recorded before the file gets its name, so a process killed in between leaves no unowned files.
    """

    def __init__(self, folder: str | os.PathLike, kind: str, hashes: dict[str, set[str]] | None = None):
        self.folder, self.kind, self.hashes = Path(folder), kind, hashes or {}

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Ledger | None":
        """The ledger in ``folder``, or None if there is no readable one."""
        file, hashes = Path(folder) / LEDGER, {}
        try:
            if file.stat().st_size > _MAX_LEDGER:
                return None
            head, *lines = file.read_text(encoding="utf-8").splitlines()
            kind = json.loads(head)["kind"]
            for line in lines:
                with contextlib.suppress(
                    ValueError, KeyError, TypeError
                ):  # a killed process may leave a partial last line
                    entry = json.loads(line)
                    hashes.setdefault(entry["file"], set()).add(entry["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return cls(folder, kind, hashes)

    def create(self) -> "Ledger":
        """Write the ledger with its current entries."""
        lines = [json.dumps({"written_by": MARK, "kind": self.kind})]
        lines += [_line(name, digest) for name, digests in self.hashes.items() for digest in sorted(digests)]
        with atomic_file(self.folder / LEDGER) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return self

    @contextlib.contextmanager
    def writing_file(self, name: str) -> Iterator[Path]:
        """Yield a temporary path; on success the file is recorded and becomes ``name`` in the folder.

        Raises:
            InputError: a file of that name exists that this program did not write.
            WriteError: it cannot be written.
        """
        path = self.folder / name
        self.require_ours([name])
        with writing(path):
            if not (self.folder / LEDGER).exists():
                self.create()
            with atomic_file(path) as temporary:
                yield temporary
                self.record(name, temporary)

    def delete(self, names: Iterable[str] | None = None) -> None:
        """Delete our files in ``names``, by default all of them; files of others stay."""
        for name in list(self._files() if names is None else names):
            if name != LEDGER and self._is_ours(name):
                with writing(self.folder / name):
                    (self.folder / name).unlink()

    def record(self, name: str, content: Path) -> None:
        """Record that the file ``name`` has the content of the file ``content``."""
        digest = _sha256(content)
        if digest in self.hashes.setdefault(name, set()):
            return
        with writing(self.folder / LEDGER), open(self.folder / LEDGER, "a", encoding="utf-8") as file:
            file.write(_line(name, digest) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.hashes[name].add(digest)

    def foreign(self, names: Iterable[str] | None = None) -> list[str]:
        """Existing files that are not ours: in ``names``, or in the whole folder. Links are never ours."""
        names = self._files() if names is None else names
        return sorted(name for name in names if os.path.lexists(self.folder / name) and not self._is_ours(name))

    def require_ours(self, names: Iterable[str] | None = None) -> None:
        """Raise an `InputError` that lists the foreign files, if there are any."""
        if foreign := self.foreign(names):
            raise InputError(
                f"{self.folder} contains files that onelora_vision did not write, or that were changed since: "
                f"{listed(foreign)}; move them away or choose another output"
            )

    def _is_ours(self, name: str) -> bool:
        path = self.folder / name
        if name == LEDGER or path.name.startswith((TEMPORARY_PREFIX, ASIDE_PREFIX)):
            return True
        return path.is_file() and not path.is_symlink() and _sha256(path) in self.hashes.get(name, ())

    def _files(self) -> Iterator[str]:
        for root, folders, files in os.walk(self.folder):
            links = [name for name in folders if os.path.islink(os.path.join(root, name))]
            is_empty = not files and not folders and Path(root) != self.folder  # none of ours ends up empty
            for name in [*files, *links, *([""] if is_empty else [])]:
                yield Path(root, name).relative_to(self.folder).as_posix()


def _line(name: str, digest: str) -> str:
    return json.dumps({"file": name, "sha256": digest}, ensure_ascii=False)


def check_folder(
    path: str | os.PathLike, kind: str, *, overwrite: bool = False, inputs: Collection[str | os.PathLike] = ()
) -> Path:
    """Decide whether an output of ``kind`` may be written to the folder ``path``; commands call this before any work.

    Args:
        path: may be relative, a symbolic link (its target is used), missing, or an existing folder.
        kind: of the output. Only outputs of the same kind are replaced.
        overwrite: whether an earlier output may be replaced.
        inputs: files and folders that the command reads.

    Returns the resolved path.

    Raises:
        InputError: it may not; the message says why and what to do.
    """
    place = _resolved(path, inputs)
    if not os.path.lexists(place) or is_empty_folder(place):
        return place
    if not place.is_dir():
        raise InputError(f"{path} is a file, and the output is a folder: choose another name")
    ledger = Ledger.read(place)
    if ledger is None or ledger.kind != kind:
        what = (
            "files that onelora_vision did not write"
            if ledger is None
            else f"an output of another kind ({ledger.kind})"
        )
        raise InputError(f"{path} is a folder with {what}: choose a new or an empty folder")
    if not overwrite:
        raise InputError(f"{path} exists already: {_OVERWRITE}")
    ledger.require_ours()
    if place == Path.cwd() or place in Path.cwd().parents:
        raise InputError(f"{path} contains the current folder and cannot be replaced: change to another folder first")
    return place


def check_additions(
    path: str | os.PathLike,
    kind: str,
    names: Iterable[str],
    *,
    overwrite: bool = False,
    inputs: Collection[str | os.PathLike] = (),
) -> Ledger:
    """Decide whether files ``names`` of ``kind`` may be added to the folder ``path``, next to existing files.

    Returns the folder's ledger, to write them with `Ledger.writing_file`.

    Raises:
        InputError: they may not: the folder is inside an input or is an output of another kind, or files of these names
            exist that are foreign, or ours without ``overwrite``.
    """
    place, names = _resolved(path, inputs), list(names)
    if place.exists() and not place.is_dir():
        raise InputError(f"{path} is a file, and the output is a folder: choose another name")
    ledger = Ledger.read(place) or Ledger(place, kind)
    if ledger.kind != kind:
        raise InputError(f"{path} is an output of another kind ({ledger.kind}): choose another folder")
    ledger.require_ours(names)
    if not overwrite and (there := [name for name in names if os.path.lexists(place / name)]):
        raise InputError(f"{path} contains {listed(there)} already: {_OVERWRITE}")
    return ledger


def check_file(
    path: str | os.PathLike, *, overwrite: bool = False, inputs: Collection[str | os.PathLike] = ()
) -> Path:
    """`check_folder` for an output that is a single file; an existing file is replaced if it has our mark."""
    place = _resolved(path, inputs)
    if not os.path.lexists(place):
        return place
    if place.is_dir():
        raise InputError(f"{path} is a folder, and the output is a file: give a file name")
    if not is_marked(place):
        raise InputError(f"{path} exists and was not written by onelora_vision: choose another name")
    if not overwrite:
        raise InputError(f"{path} exists already: {_OVERWRITE}")
    return place


@contextlib.contextmanager
def folder_output(path: str | os.PathLike, kind: str, *, overwrite: bool = False) -> Iterator[Path]:
    """`check_folder`, then yield a temporary folder that becomes ``path``, with a ledger of all its files."""
    place = check_folder(path, kind, overwrite=overwrite)
    with writing(path), atomic_directory(place, replace=overwrite) as temporary:
        yield temporary
        ledger = Ledger(temporary, kind)
        ledger.hashes = {name: {_sha256(temporary / name)} for name in ledger._files() if name != LEDGER}
        ledger.create()
        check_folder(path, kind, overwrite=overwrite)  # someone may have used the path in the meantime


@contextlib.contextmanager
def file_output(path: str | os.PathLike, *, overwrite: bool = False) -> Iterator[Path]:
    """`check_file`, then yield a temporary path that becomes ``path``. The caller's format must carry the mark."""
    place = check_file(path, overwrite=overwrite)
    with writing(path), atomic_file(place) as temporary:
        yield temporary
        check_file(path, overwrite=overwrite)


def is_marked(path: Path) -> bool:
    """Whether a file has this program's mark in its own format."""
    try:
        if path.suffix == ".safetensors":
            return _has_marked_header(path)
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path, formats=["PNG"]) as image:
                return image.info.get("Software") == MARK
        if path.suffix == ".html":
            with open(path, "rb") as file:
                return f'<meta name="generator" content="{MARK}">'.encode() in file.read(1024)
        with zipfile.ZipFile(path) as archive:  # NumPy's .npz and PyTorch's .pt
            return archive.comment == MARK.encode()
    except Exception:  # readers of foreign files may raise anything
        return False


def is_sheet(path: str | os.PathLike) -> bool:
    """Whether an image file was drawn by this program for viewing: a grid, a plot, a depth map.

    All our PNG files have the mark; only samples contain the seed that they were generated with.
    """
    if os.path.splitext(path)[1].lower() != ".png":
        return False
    try:
        with open(path, "rb") as file:
            if MARK.encode() not in file.read(4096):  # in a large folder, opening each as an image would be slow
                return False
        from PIL import Image

        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == MARK and f"{NOTE_PREFIX}seed" not in image.info
    except Exception:  # readers of foreign files may raise anything
        return False


def mark_zip(path: str | os.PathLike) -> None:
    """Mark a file that is a zip archive: NumPy's .npz, PyTorch's .pt."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = MARK.encode()


def _has_marked_header(path: Path) -> bool:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, 32 << 20)))
    return any(key.startswith("onelora.") for key in header.get("__metadata__", {}))


def _resolved(path: str | os.PathLike, inputs: Collection[str | os.PathLike]) -> Path:
    place = Path(os.path.realpath(path))
    for given in inputs:
        source = Path(os.path.realpath(given))
        if place == source or source in place.parents:
            raise InputError(f"{path} is the input {given}, or inside it: choose another output")
    _require_possible(path, place)
    return place


def _require_possible(path: str | os.PathLike, place: Path) -> None:
    """Refuse a path that cannot be created: below a file or an inaccessible folder, or with a name that is too long."""
    if not str(path):
        raise InputError("the output has an empty name: choose one")
    try:
        above = next((parent for parent in place.parents if os.path.lexists(parent)), place)
        os.path.lexists(place)
        if any(len(os.fsencode(part)) > os.pathconf(above, "PC_NAME_MAX") for part in place.parts):
            raise InputError(f"{one_line(path, 100)}: a name in it is too long for this file system")
    except OSError as error:
        raise InputError(f"{one_line(path, 100)} cannot be written: {error.strerror}") from None
    if not above.is_dir():
        raise InputError(f"{path} cannot be written: {above} is not a folder")
    if not os.path.lexists(place) and not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write into {above}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
